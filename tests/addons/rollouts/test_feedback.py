"""Inputs that are drawn from a predicted distribution: reproducible by seed, and refused if it is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell.addons.rollouts.feedback import FeedbackInputs
from stepwell.errors import ServiceError
from stepwell_export.runtime.feedback import rules_of
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.forecasters import NEAR, ahead
from tests.graphs import wave


def drawn(rule: dict[str, Any], value: float, spread: float, *, samples: int = 4_000, seed: int = 1) -> Array:
    """Return what is fed back after a prediction of `value` and `spread`, for each sample."""
    graph, manifest = wave()
    rules = rules_of({"x": rule}, StepModel(graph, manifest).manifest)
    outputs = {
        name: np.full((samples, *spec.row_shape), number, np.float32)
        for name, number in (("y", value), ("spread", spread))
        for spec in [next(spec for spec in StepModel(graph, manifest).manifest.outputs if spec.name == name)]
    }
    found = FeedbackInputs(rules, seed=seed, samples=samples, horizon=1).next(outputs, 0, {})["x"]
    return np.asarray(found).reshape(-1)


def test_students_noise_has_the_predicted_location_and_scale() -> None:
    """A DeepAR-like head: location, scale and degrees of freedom are outputs."""
    found = drawn({"output": "y", "std": "spread", "df": 2}, value=5.0, spread=3.0)

    np.testing.assert_allclose(
        np.quantile(found, [0.25, 0.5, 0.75]), 5 + 3 * np.array([-1, 0, 1]) * np.sqrt(2 / 3), atol=0.3
    )
    np.testing.assert_array_equal(found, drawn({"output": "y", "std": "spread", "df": 2}, value=5.0, spread=3.0))


def test_counts_have_the_predicted_mean_and_dispersion() -> None:
    found = drawn({"output": "y", "dispersion": "spread"}, value=4.0, spread=0.5)

    assert (found == np.round(found)).all()
    assert found.mean() == pytest.approx(4.0, rel=0.05)
    assert found.var() == pytest.approx(4.0 + 0.5 * 16, rel=0.15)


def test_the_nearest_of_several_timesteps_ahead_is_fed_back() -> None:
    _, manifest = ahead(NEAR)
    outputs = {"next": np.arange(6, dtype=np.float32).reshape(1, 3, 2)}
    inputs = FeedbackInputs(rules_of(manifest.feedback, manifest), seed=1, samples=1, horizon=1).next(outputs, 0, {})

    assert inputs["sensors"].tolist() == [[0, 1]]


def test_a_prediction_that_is_no_distribution_is_rejected() -> None:
    with pytest.raises(ServiceError, match="expected degrees of freedom above 0") as caught:
        drawn({"output": "y", "std": 1.0, "df": "spread"}, value=1.0, spread=0.0)

    assert caught.value.code == "bad_input"
