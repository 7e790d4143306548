"""The limits of a gate: none is judged too early, each is judged by `greater than`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from stepwell.releases.counters import TrialCounts
from stepwell.releases.document import Gate
from stepwell.releases.gate import broken_limit


def counted(steps: int = 10) -> TrialCounts:
    """Return counts with one differing class of ten, a largest difference of 0.5, two failures, and twice the time."""
    counts = TrialCounts(steps=steps, lost=1, fell_back=1, non_finite=1, run_s=(2.0, 4.0))
    old = np.tile([0.25, 0.75], (10, 1))
    new = old.copy()
    new[0] = [0.75, 0.25]
    counts.compare("y", old, new)
    return counts


@pytest.mark.parametrize(
    ("kept", "broken"),
    [
        ({"max_abs": {"y": 0.5}}, {"max_abs": {"y": 0.49}}),
        ({"max_disagree": 0.1}, {"max_disagree": 0.09}),
        ({"max_non_finite": 1}, {"max_non_finite": 0}),
        ({"max_lost": 2}, {"max_lost": 1}),
        ({"max_run_ratio": 2.0}, {"max_run_ratio": 1.9}),
    ],
)
def test_a_limit_is_broken_by_a_greater_value_only(kept: dict[str, Any], broken: dict[str, Any]) -> None:
    assert broken_limit(Gate(min_compared=10, **kept), counted()) is None
    assert broken_limit(Gate(min_compared=10, **broken), counted()) is not None


def test_nothing_is_judged_before_enough_was_compared() -> None:
    assert broken_limit(Gate(min_compared=11, max_lost=0), counted()) is None
    assert broken_limit(Gate(), counted(999)) is None


def test_a_gate_without_limits_is_never_broken() -> None:
    assert broken_limit(Gate(min_compared=0), counted()) is None
