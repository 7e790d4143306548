"""Every graph of the zoo: a step graph, and equal to itself on whole sequences."""

from __future__ import annotations

import onnx
import pytest

from model_export.converted import verify_model
from model_export.step_model import StepModel
from model_export.streaming import convert
from tests.model_export.streaming.zoo import ZOO

ONE_ROW = {
    "cumulative_norm", "positions", "positions_in_floats", "one_dimension", "batch_of_one", "made_for_one_row",
    "length_in_shapes",
}  # fmt: skip
"""Graphs whose rows cannot be run together."""


@pytest.mark.parametrize("name", ZOO)
def test_a_graph_of_the_zoo_equals_itself_step_by_step(name: str) -> None:
    """The proof compares 64 timesteps of nine sequences, rows in a batch with rows alone, chunks with steps."""
    content, report = verify_model(convert(ZOO[name].build(), name=name), long_steps=100)

    model = StepModel(content)
    assert report.parity.max_abs <= 1e-5
    assert not report.weak
    assert all(output.compared >= 9 for output in report.outputs)
    assert model.batched == (name not in ONE_ROW)
    assert model.manifest.states
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
