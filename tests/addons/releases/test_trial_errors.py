"""The streams whose predictions are kept until their truths come."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from stepwell.addons.releases import trial_errors
from stepwell.addons.releases.forecast_errors import ErrorFigures, figures
from stepwell.addons.releases.trial_errors import TrialErrors
from stepwell.engine.placing import Followed
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.truth import truths_of
from tests.forecasters import NEAR, ahead, walks

EPOCHS = np.array([7, 8, 9], np.uint64)


def judged(
    xs: Array, steps: Iterable[int], epochs: Callable[[int], Array] = lambda _step: EPOCHS
) -> list[ErrorFigures]:
    """Give timesteps of three streams to an object with the truth of `ahead`, and return the figures by label.

    Args:
        xs: The timesteps, `(3, T, 2)`; predictions are their values.
        steps: Which of them are given.
        epochs: The epochs of the streams at a step.
    """
    [truth] = truths_of(ahead(NEAR)[1])
    errors, sums = TrialErrors([truth]), np.zeros((6, 7))
    for t in steps:
        rows = Followed(["a", "b", "c"], epochs(t), np.full(3, t), {"sensors": xs[:, t : t + 1]})
        predicted = {"next": np.repeat(xs[:, t : t + 1, None], 3, axis=2)}
        for _, added in errors.add(rows, predicted, predicted, np.ones((3, 1), bool)):
            sums += added
    return [figures(one) for one in sums]


def test_each_row_of_a_batch_is_judged_though_fewer_predictions_are_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_errors, "MOST_BYTES", 0)
    xs = walks(3, 20)
    found = judged(xs, range(20))

    assert [one.n for one in found] == [3 * 19, 3 * 19, 3 * 18, 3 * 18, 3 * 17, 3 * 17]
    assert found[5].current == pytest.approx(np.abs(xs[:, 3:, 1].astype(float) - xs[:, :-3, 1]).mean())


def test_timesteps_of_other_workers_between_a_prediction_and_its_truth_are_counted() -> None:
    xs, seen = walks(3, 12), [0, 1, 3, 4, 8, 11]
    found = judged(xs, seen)

    for n in (1, 2, 3):
        pairs = [(t, t + n) for t in seen if t + n in seen]
        expected = np.mean([np.abs(xs[:, later, 1].astype(float) - xs[:, t, 1]) for t, later in pairs])
        assert found[2 * n - 1].n == 3 * len(pairs)
        assert found[2 * n - 1].current == pytest.approx(expected)


def test_nothing_after_a_reset_is_the_truth_of_a_prediction_before_it() -> None:
    found = judged(walks(3, 12), range(12), lambda step: EPOCHS + np.uint64(step >= 6))

    assert [one.n for one in found] == [2 * 3 * 5, 2 * 3 * 5, 2 * 3 * 4, 2 * 3 * 4, 2 * 3 * 3, 2 * 3 * 3]
