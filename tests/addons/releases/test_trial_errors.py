"""The streams whose predictions are kept until their truths come."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.addons.releases import trial_errors
from stepwell.addons.releases.trial_errors import TrialErrors
from stepwell.engine.placing import Followed
from stepwell.models.forecast_errors import figures
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.truth import truths_of
from tests.forecasters import NEAR, ahead, walks


def hashes(step: int, rows: int) -> Array:
    return np.array([bytes([step, row, *range(14)]) for row in range(1, rows + 1)], "V16")


def test_each_row_of_a_batch_is_judged_though_fewer_predictions_are_to_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial_errors, "MOST_BYTES", 0)
    [truth] = truths_of(ahead(NEAR)[1])
    errors, xs, sums = TrialErrors([truth]), walks(3, 20), np.zeros((6, 7))
    for t in range(20):
        rows = Followed(["a", "b", "c"], hashes(t, 3), hashes(t + 1, 3), {"sensors": xs[:, t : t + 1]})
        predicted = {"next": np.repeat(xs[:, t : t + 1, None], 3, axis=2)}
        for _, added in errors.add(rows, predicted, predicted, np.ones((3, 1), bool)):
            sums += added

    assert [figures(one).n for one in sums] == [3 * 19, 3 * 19, 3 * 18, 3 * 18, 3 * 17, 3 * 17]
    expected = np.abs(xs[:, 3:, 1].astype(float) - xs[:, :-3, 1]).mean()
    assert figures(sums[5]).current == pytest.approx(expected)
