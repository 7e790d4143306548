"""Every model of the zoo: exported, and equal to Keras on whole sequences."""

from __future__ import annotations

import onnx
import pytest

from model_export.keras import export_model
from model_export.step_model import StepModel
from tests.model_export.keras import zoo


@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_model_of_the_zoo_equals_keras_step_by_step(name: str) -> None:
    """The export itself compares 64 timesteps of nine sequences, and rows in a batch with rows alone."""
    graph, report = export_model(zoo.build(name), name=name)

    model = StepModel(graph)
    assert report.parity.max_abs <= report.parity.atol == zoo.ZOO[name].tolerance
    assert all(output.compared >= 9 for output in report.outputs)
    assert report.max_abs_alone == 0, "a row of a batch comes out bit for bit as it does alone"
    assert model.batched
    assert model.manifest.verified == report.parity
    onnx.checker.check_model(onnx.load_model_from_string(graph), full_check=True)
