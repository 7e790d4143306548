"""Acceptance: published weights, exported, against the authors' own ONNX files on recorded speech."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stepwell_export.runtime.step_model import StepModel
from tests.model_export.keras import dtln
from tests.model_export.keras.proven import export_model

pytestmark = pytest.mark.skipif(not dtln.FOLDER.is_dir(), reason="the published DTLN model is not on this machine")


@pytest.mark.parametrize(("number", "build"), [(1, dtln.mask_network), (2, dtln.block_network)])
def test_dtln_equals_its_authors_onnx_over_the_reference_sequence(number: int, build: Callable[[], Any]) -> None:
    reference = np.load(dtln.FOLDER / f"model_{number}.reference.npz")
    x, y, final = (next(reference[key] for key in reference if key.startswith(kind)) for kind in ("x:", "y:", "final:"))
    graph, report = export_model(build(), name=f"dtln_{number}")
    step = StepModel(graph)
    (name,) = (spec.name for spec in step.manifest.inputs)

    outputs, states = step.chunk({name: x.reshape(1, len(x), -1)}, step.initial_states(1))

    assert np.abs(next(iter(outputs.values())).reshape(y.shape) - y).max() <= 1e-6
    # The authors pack all states into one tensor (batch, layer, unit, [h, c]).
    ours = np.stack([states[state.input] for state in step.manifest.states]).reshape(2, 2, 128)
    np.testing.assert_allclose(ours.transpose(0, 2, 1)[None], final, atol=2e-5)
    assert report.parity.max_abs <= 1e-5
