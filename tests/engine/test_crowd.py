"""How many may wait follows from how fast they are answered."""

from __future__ import annotations

import math

import pytest

from service.engine.crowd import Crowd


def watched(crowd: Crowd, *, rate: float, waiting: int, seconds: float, since: float = 0.0) -> Crowd:
    """Look ten times a second at a queue that never empties."""
    for tick in range(round(seconds * 10) + 1):
        crowd.look(since + tick / 10, waiting, int((since + tick / 10) * rate))
    return crowd


def test_without_a_rate_there_is_room_for_everyone() -> None:
    assert Crowd(2.5).room == math.inf
    assert watched(Crowd(2.5), rate=600, waiting=100, seconds=0.3).room == math.inf


def test_so_many_may_wait_as_are_answered_in_time() -> None:
    assert watched(Crowd(2.5), rate=600, waiting=5000, seconds=1).room == pytest.approx(1500)


def test_a_queue_that_empties_has_room_again() -> None:
    crowd = watched(Crowd(2.5), rate=600, waiting=5000, seconds=1)
    crowd.look(1.1, 0, 660)

    assert crowd.room == math.inf


def test_the_rate_is_that_of_the_last_second() -> None:
    crowd = Crowd(2.5)
    for tick in range(51):
        answered = tick * 60 if tick <= 30 else 1800 + (tick - 30) * 6
        crowd.look(tick / 10, 5000, answered)

    assert crowd.room == pytest.approx(150)


def test_where_nothing_is_answered_everyone_waits_for_the_reason() -> None:
    """A store that is gone is told as such, and not as a crowd."""
    assert watched(Crowd(2.5), rate=0, waiting=5000, seconds=3).room == math.inf


def test_a_few_may_always_wait() -> None:
    assert watched(Crowd(2.5), rate=1, waiting=5000, seconds=3).room == 16


def test_the_wait_for_room_is_told() -> None:
    crowd = watched(Crowd(2.5), rate=600, waiting=5000, seconds=1)

    assert crowd.excess(2100) == pytest.approx((1500, 1.0))
    assert crowd.excess(10) is None
    assert Crowd(2.5).excess(10_000) is None
