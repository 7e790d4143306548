"""A sequence graph is loaded once for all of its runs, and each of these is made once."""

from __future__ import annotations

from stepwell_export.streaming.axes.inputs import read_inputs
from stepwell_export.streaming.axes.measured_shapes import TensorRuns, measure_shapes
from stepwell_export.streaming.normal_form.plain_form import load_graph
from tests.model_export.streaming.zoo import ZOO


def test_a_graph_is_loaded_once_and_each_run_is_made_once() -> None:
    plain, declared, _ = load_graph(ZOO["lstm"].build(), {})
    runs = TensorRuns(plain)
    loaded = runs.loaded
    inputs = read_inputs(plain.graph, declared, time_axes={})
    found = runs.at(inputs), runs.at(inputs, 1, 1)

    facts = measure_shapes(runs, inputs)

    assert runs.loaded is loaded
    assert facts.first is found[0]
    assert facts.values(plain.graph.output[0].name)[-1] is found[1][plain.graph.output[0].name]
