"""Every model of the zoo: exported, and equal to Keras on whole sequences."""

from __future__ import annotations

import onnx
import pytest

from stepwell_export.graph.decompose_rnn import decompose_rnn
from stepwell_export.keras import convert
from stepwell_export.runtime.outside_weights import file_bytes
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.verify.parity import STEPS, verify_parity
from stepwell_export.verify.tolerance import Tolerance
from tests.model_export.keras import zoo
from tests.model_export.rows_apart import assert_rows_alone, assert_rows_apart


@pytest.mark.many
@pytest.mark.parametrize("name", zoo.ZOO)
def test_a_model_of_the_zoo_equals_keras_step_by_step(name: str) -> None:
    """Compared are 64 timesteps of nine sequences, and rows in a batch with rows alone."""
    made = convert(zoo.build(name), name=name)
    allowed = zoo.ZOO[name].tolerance

    report = verify_parity(
        made.original,
        model := StepModel(graph := file_bytes(decompose_rnn(made.proto)), made.manifest),
        against=made.against,
        samplers=made.samplers,
        steps=made.only_length or STEPS,
        long_steps=0,
        tolerance=Tolerance(allowed, 10 * allowed),
    )

    assert made.rounding in {0, allowed}, "a model that computes in float32 is held to the common tolerance"
    assert all(output.compared >= 9 for output in report.outputs)
    assert model.batched
    onnx.checker.check_model(file_bytes(made.proto), full_check=True)
    assert_rows_apart(model)
    assert_rows_alone(model, graph)
    assert report.max_abs_alone <= (0 if zoo.ZOO[name].rows_alike else 1e-6)
