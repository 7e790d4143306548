"""The first forecasts after a move to a new version: which states make them best."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stepwell_export.forecasts_after_a_move import FirstForecasts, first_forecasts
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.graphs import Built, _s, _t, graph_from_text, manifest_of, write_model


def smoother(gain: float, sign: int = 1, *, feedback: bool = True) -> Built:
    """A forecast that is a running mean of the inputs; with `sign` -1 the state is its negative."""
    graph = graph_from_text(
        """
        smoother (float[B,1] x, float[B,1] m) => (float[B,1] y, float[B,1] m_next) {
            kept = Mul (m, keep)
            new = Mul (x, gain)
            m_next = Add (kept, new)
            y = Mul (m_next, sign)
        }""",
        {
            "keep": np.array([1 - gain], np.float32),
            "gain": np.array([sign * gain], np.float32),
            "sign": np.array([sign], np.float32),
        },
    )
    return graph, manifest_of(
        name="smoother",
        inputs=[{**_t("x", "float32", [1]), "labels": ["level"]}],
        states=[_s("m", "m_next", "float32", [1])],
        outputs=[_t("y", "float32", [1])],
        feedback={"x": "y"} if feedback else {},
    )


@pytest.fixture
def levels() -> Array:
    """Levels between 5 and 10 with noise, `(20, 200, 1)`."""
    rng = np.random.default_rng(0)
    found: Array = (rng.uniform(5, 10, (20, 1, 1)) + rng.normal(size=(20, 200, 1))).astype(np.float32)
    return found


def moved(folder: Path, old: Built, new: Built, data: Array, *, keeps: bool = True) -> FirstForecasts:
    before = StepModel(write_model(folder, "old", lambda: old))
    found = first_forecasts(before, StepModel(write_model(folder, "new", lambda: new)), {"x": data}, keeps=keeps)
    assert found is not None
    return found


def test_states_of_a_version_that_was_trained_on_are_kept(tmp_path: Path, levels: Array) -> None:
    found = moved(tmp_path, smoother(0.05), smoother(0.06), levels)

    assert (found.recommended, found.against, found.moves, found.forecasts) == ("keep", "truth", 80, 16)
    assert found.overall["own"] == pytest.approx(found.overall["keep"], rel=0.05)
    assert found.errors["y"]["level"]["reset"] > 3 * found.errors["y"]["level"]["keep"]


def test_states_that_mean_something_else_are_reset_with_as_many_warm_steps_as_they_need(
    tmp_path: Path, levels: Array
) -> None:
    found = moved(tmp_path, smoother(0.05), smoother(0.05, sign=-1), levels)

    assert found.recommended == "reset"
    assert found.overall["own"] < found.overall["reset"] < found.overall["keep"]
    assert found.warm_steps is not None
    assert 30 < found.warm_steps < 80  # 0.95 ** 50 is 0.08 of the level


def test_without_a_truth_forecasts_are_compared_with_those_of_own_states(tmp_path: Path, levels: Array) -> None:
    old, new = smoother(0.05, feedback=False), smoother(0.05, feedback=False)
    found = moved(tmp_path, old, new, levels)

    assert (found.against, found.recommended) == ("own", "keep")
    assert found.errors["y"]["0"]["keep"] == 0


def test_states_that_cannot_be_kept_are_not_measured(tmp_path: Path, levels: Array) -> None:
    found = moved(tmp_path, smoother(0.05), smoother(0.05), levels, keeps=False)

    assert set(found.overall) == {"own", "reset"}
