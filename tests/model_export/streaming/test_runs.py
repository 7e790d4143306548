"""A sequence graph is loaded once for all the runs that show its axes, and the runs of a reading are made once."""

from __future__ import annotations

from stepwell_export.streaming.axes.axis_search import find_inputs
from stepwell_export.streaming.axes.measured_shapes import TensorRuns, measure_shapes
from stepwell_export.streaming.normal_form.plain_form import load_graph
from tests.model_export.streaming.zoo import ZOO


def test_a_graph_is_loaded_once_and_each_run_is_made_once() -> None:
    plain, declared, _ = load_graph(ZOO["lstm"].build(), {})
    runs = TensorRuns(plain)
    loaded = runs.load()
    inputs = find_inputs(runs, declared, time_axes={"x": 1}, batch_axes={"x": 0})
    found = runs.at(inputs), runs.at(inputs, 1, 1)

    facts = measure_shapes(runs, inputs)

    assert runs.load(inputs, 47) is runs.load(inputs, 53) is loaded
    assert facts.first is found[0]
    assert facts.values(plain.graph.output[0].name)[-1] is found[1][plain.graph.output[0].name]


def test_a_graph_of_one_length_is_loaded_for_each_that_is_written_into_it() -> None:
    plain, declared, _ = load_graph(ZOO["length_in_shapes"].build(), {})
    runs = TensorRuns(plain)
    inputs = find_inputs(runs, declared, time_axes={})

    first, second = (runs.load(inputs, steps) for steps in inputs.lengths)

    assert inputs.only_steps is not None
    assert first is not second
    assert first is runs.load(inputs, inputs.lengths[0])
