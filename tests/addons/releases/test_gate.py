"""The limits of a gate: none is judged too early, each is judged by `greater than`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell.addons.releases.counters import TrialCounts
from stepwell.addons.releases.document import Gate
from stepwell.addons.releases.gate import broken_limit
from stepwell_export.runtime.manifest import Array


def counted(steps: int = 10) -> TrialCounts:
    """Return counts with one differing class of ten, a largest difference of 0.5, two failures, and twice the time."""
    counts = TrialCounts(steps=steps, lost=1, fell_back=1, non_finite=1, run_s=(2.0, 4.0))
    old = np.tile([0.25, 0.75], (10, 1))
    new = old.copy()
    new[0] = [0.75, 0.25]
    counts.compare("y", old, new, ["low", "high"])
    counts.compare("z", old, old)
    # 10 streams of each 1 truth: the candidate's errors are 1.9 to 2.1 times as large in one label, half in another
    current, candidate = np.ones(10), np.tile([1.9, 2.1], 5)
    counts.add_errors("y", ["low", "high"], np.array([sums_of(current, candidate), sums_of(current, current / 2)]))
    return counts


def sums_of(current: Array, candidate: Array) -> Array:
    """Return the sums of streams that have each one truth."""
    of = (current, candidate)
    squares = [current @ current, candidate @ candidate, current @ candidate]
    return np.array([len(current), len(current), *(each.sum() for each in of), *squares])


@pytest.mark.parametrize(
    ("kept", "broken"),
    [
        ({"max_abs": {"y": 0.5}}, {"max_abs": {"y": 0.49}}),
        ({"max_abs": {"y": {"high": 0.5}}}, {"max_abs": {"y": {"high": 0.49}}}),
        ({"max_error_ratio": 2.0}, {"max_error_ratio": 1.9}),
        ({"max_disagree": 0.1}, {"max_disagree": 0.09}),
        ({"max_non_finite": 1}, {"max_non_finite": 0}),
        ({"max_lost": 2}, {"max_lost": 1}),
        ({"max_run_ratio": 2.0}, {"max_run_ratio": 1.9}),
    ],
)
def test_a_limit_is_broken_by_a_greater_value_only(kept: dict[str, Any], broken: dict[str, Any]) -> None:
    assert broken_limit(Gate(min_compared=10, **kept), counted()) is None
    assert broken_limit(Gate(min_compared=10, **broken), counted()) is not None


def test_an_error_is_not_judged_by_a_ratio_whose_interval_holds_the_limit() -> None:
    """The ratio is 2; its interval is 1.93 to 2.08."""
    assert broken_limit(Gate(min_compared=10, max_error_ratio=1.95), counted()) is None


def test_the_reason_names_the_worst_label_and_its_interval() -> None:
    why = broken_limit(Gate(min_compared=10, max_error_ratio=0.4), counted())

    assert why == (
        "The error of 'y[low]' is 2, 2 times that of the current version (1.926 to 2.077, 10 truths); the limit is 0.4."
    )


def test_nothing_is_judged_before_enough_was_compared() -> None:
    assert broken_limit(Gate(min_compared=11, max_lost=0), counted()) is None
    assert broken_limit(Gate(), counted(999)) is None


def test_a_gate_without_limits_is_never_broken() -> None:
    assert broken_limit(Gate(min_compared=0), counted()) is None
