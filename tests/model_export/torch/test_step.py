"""A module that takes and returns its states becomes a step graph with its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell_export import StepSpec
from stepwell_export.converted import ConvertedModel, verify_model
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.torch import convert, export_step
from tests.model_export.torch import zoo
from tests.model_export.torch.zoo_parts import nn, of, torch

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def made() -> ConvertedModel:
    """An LSTM of two layers called with its state, `(layers, batch, width)`; c begins with 0.5."""
    return zoo.made("layer_with_its_state")


def test_the_manifest_says_what_it_takes_carries_and_gives(made: ConvertedModel) -> None:
    manifest = made.manifest

    assert manifest.name == "layer_with_its_state"
    assert [(i.name, i.shape) for i in manifest.inputs] == [("x", [4])]
    assert [(s.input, s.output, s.shape, s.batch_axis) for s in manifest.states] == [
        ("h", "h_next", [2, 8], 1),
        ("c", "c_next", [2, 8], 1),
    ]
    assert [(o.name, o.shape) for o in manifest.outputs] == [("label", [3])]


def test_a_state_begins_with_what_was_given(made: ConvertedModel) -> None:
    h, c = made.manifest.states

    assert h.init == "zeros"
    assert c.initial().tolist() == np.full((2, 8), 0.5).tolist()


def test_the_graph_does_not_tell_where_it_was_made(made: ConvertedModel) -> None:
    graph = made.proto.SerializeToString()

    assert str(Path(__file__).parent).encode() not in graph
    assert str(Path(torch.__file__).parent).encode() not in graph


def test_the_graph_is_for_runtimes_of_the_last_years(made: ConvertedModel) -> None:
    assert [(opset.domain, opset.version) for opset in made.proto.opset_import] == [("", 18)]
    assert made.proto.ir_version <= 10


def add(m: Any, x: Any, h: Any) -> Any:
    return {"sum": x + h, "half": (x + h) / 2, "h": x + h}


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["one"], "1 output_names, ['one'], for 2 outputs"),
        (["y", "y"], "'y' stands for two things"),
        (["y", "x"], "'x' stands for two things"),
        (["y", "h_next"], "'h_next' stands for two things"),
    ],
)
def test_output_names_that_do_not_fit_are_told(names: list[str], told: str) -> None:
    with pytest.raises(RefusedModelError) as caught:
        export_step(of(add), {"x": torch.zeros(2, 4)}, {"h": torch.zeros(1, 4)}, output_names=names)

    assert told in caught.value.problem


def test_examples_may_be_arrays_and_lists() -> None:
    made = export_step(of(add), {"x": np.zeros((2, 4))}, {"h": [[0.0] * 4]})

    assert [(i.name, i.dtype) for i in made.manifest.inputs] == [("x", "float32")]
    assert [o.name for o in made.manifest.outputs] == ["sum", "half"]


def test_a_step_may_have_operations_that_only_torch_export_has() -> None:
    module = of(lambda m, x, h: (torch.heaviside(x - h, x), x))
    made = convert(StepSpec(module, {"x": torch.zeros(2, 4)}, {"h": torch.zeros(1, 4)}), name="edge")

    assert verify_model(made, long_steps=100)[1].parity.max_abs == 0.0


@pytest.mark.parametrize("time_axis", [None, 1])
def test_an_input_that_the_module_does_not_use_is_an_input_all_the_same(time_axis: int | None) -> None:
    row = (2,) if time_axis is None else (2, 9)
    inputs = {"unused": torch.randn(*row, 3), "x": torch.randn(*row, 4)}
    whole = StepSpec(of(lambda m, unused, x: x * 2), inputs, time_axis=1)
    step = StepSpec(of(lambda m, unused, x, h: (x + 1, x * 2)), inputs, {"h": torch.zeros(1, 4)})

    graph, _ = verify_model(convert(step if time_axis is None else whole, name="m"), long_steps=100)

    assert [spec.name for spec in StepModel(graph).manifest.inputs] == ["unused", "x"]


def test_ids_are_drawn_from_the_whole_table() -> None:
    """An example of zeros would show one row of it."""
    (sampler,) = (zoo.made("cells_in_a_loop").samplers or {}).values()

    assert set(sampler(np.random.default_rng(0), 3, 64)["ids"].flat) == set(range(11))


def test_an_input_without_time_stays_the_same_for_a_sequence() -> None:
    (sampler,) = (zoo.made("started_by_an_input").samplers or {}).values()
    drawn = sampler(np.random.default_rng(0), 3, 5)

    assert (drawn["who"] == drawn["who"][:, :1]).all()
    assert not (drawn["x"] == drawn["x"][:, :1]).all()


def test_numbers_that_a_module_does_not_take_are_drawn_from_the_examples() -> None:
    def run(m: Any, x: Any, h: Any) -> Any:
        h = h + m.table((16 * x * (1 - x)).long())  # between 0 and 1 this is beyond the table
        return h, h

    x = torch.tensor([[0.0], [1.0], [0.0]])
    spec = StepSpec(of(run, table=nn.Embedding(1, 4)), inputs={"x": x}, states={"h": torch.zeros(1, 1, 4)})
    ((kind, sampler),) = (convert(spec, name="floats").samplers or {}).items()

    assert kind == "example"
    assert set(sampler(np.random.default_rng(0), 3, 9)["x"].flat) <= set(x.numpy().flat)


def test_a_step_is_made_of_operators_that_onnxruntime_has() -> None:
    """Linear interpolation may be written as a Resize, which it does not have in float64."""

    def run(_module: Any, x: Any, h: Any) -> tuple[Any, Any]:
        h = torch.tanh(h + x)
        return torch.nn.functional.interpolate(h[:, None], scale_factor=2.0, mode="linear")[:, 0], h

    example, initial = torch.zeros(2, 4, dtype=torch.float64), torch.zeros(1, 4, dtype=torch.float64)
    made = convert(StepSpec(of(run), inputs={"x": example}, states={"h": initial}), name="interpolating")

    assert StepModel(verify_model(made, long_steps=100)[0]).batched
