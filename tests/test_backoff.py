"""`Backoff`."""

from __future__ import annotations

import pytest

from stepwell_client.wire.backoff import Backoff


def test_pauses_double_up_to_the_longest() -> None:
    """Also after more failures than a float has powers of two."""
    backoff = Backoff(0.5, 3.0, jitter=0)

    assert [backoff.after(n) for n in (1, 2, 3, 4, 5, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(("number", "pause"), [(0.0, 1.5), (0.5, 1.75), (1.0, 2.0)])
def test_the_jitter_shortens_a_pause_by_its_part_at_most(number: float, pause: float) -> None:
    assert Backoff(2.0, 8.0, jitter=0.25).after(1, lambda: number) == pause
