"""Every module of the zoo: exported, and equal to itself on whole sequences."""

from __future__ import annotations

import copy

import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.spec import StepSpec
from stepwell_export.torch import convert
from tests.model_export.rows_apart import assert_rows_alone, assert_rows_apart
from tests.model_export.torch import zoo
from tests.model_export.torch.zoo_parts import torch

pytestmark = pytest.mark.torch


@pytest.mark.many
@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_module_of_the_zoo_equals_itself_step_by_step(name: str) -> None:
    """The proof compares 64 timesteps of nine sequences, rows in a batch with rows alone, chunks with steps."""
    graph, report = verify_model(zoo.made(name), long_steps=100)

    model = StepModel(graph)
    assert report.parity.max_abs <= 1e-5
    assert not report.weak
    assert report.parity.steps == 64
    assert all(output.compared >= 9 for output in report.outputs)
    assert model.batched
    onnx.checker.check_model(onnx.load_model_from_string(graph), full_check=True)
    assert_rows_apart(model)
    assert_rows_alone(model, graph)


def test_what_a_recurrence_starts_from_is_sent_where_the_module_takes_it() -> None:
    class Begun(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(3, 4, batch_first=True)

        def forward(self, x: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
            return self.rnn(x, first.unsqueeze(0))[0]

    torch.manual_seed(0)
    spec = StepSpec(Begun(), inputs={"x": torch.randn(2, 9, 3), "first": torch.randn(2, 4)}, time_axis=1)
    made = convert(spec, name="m")
    _, report = verify_model(made, long_steps=100)

    assert [given.name for given in made.manifest.inputs] == ["x", "first"]
    assert not report.weak


@pytest.mark.parametrize("name", ["in_training", "chomped", "cell"])
def test_the_users_module_stays_as_it_is_and_nothing_is_printed(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    spec = zoo.build(name)
    training, before = spec.module.training, copy.deepcopy(spec.module.state_dict())
    convert(spec, name=name)

    assert capfd.readouterr() == ("", "")
    assert spec.module.training == training
    assert all(torch.equal(value, before[key]) for key, value in spec.module.state_dict().items())
