"""The bound of the queue follows the rate at which requests are answered."""

from __future__ import annotations

import math

import pytest

from stepwell.engine.admission import QueueAdmission
from stepwell.errors import ServiceError


def sampled(crowd: QueueAdmission, *, rate: float, waiting: int, seconds: float, since: float = 0.0) -> QueueAdmission:
    """Sample a queue that never empties, ten times a second."""
    for tick in range(round(seconds * 10) + 1):
        crowd.sample(since + tick / 10, waiting, int((since + tick / 10) * rate))
    return crowd


def test_without_a_measured_rate_the_queue_is_unbounded() -> None:
    assert QueueAdmission(2.5).max_rows == math.inf
    assert sampled(QueueAdmission(2.5), rate=600, waiting=100, seconds=0.3).max_rows == math.inf


def test_the_queue_is_bounded_by_what_can_be_answered_in_time() -> None:
    assert sampled(QueueAdmission(2.5), rate=600, waiting=5000, seconds=1).max_rows == pytest.approx(1500)


def test_an_empty_queue_removes_the_bound() -> None:
    crowd = sampled(QueueAdmission(2.5), rate=600, waiting=5000, seconds=1)
    crowd.sample(1.1, 0, 660)

    assert crowd.max_rows == math.inf


def test_the_rate_is_measured_over_the_last_second() -> None:
    crowd = QueueAdmission(2.5)
    for tick in range(51):
        answered = tick * 60 if tick <= 30 else 1800 + (tick - 30) * 6
        crowd.sample(tick / 10, 5000, answered)

    assert crowd.max_rows == pytest.approx(150)


def test_the_queue_is_unbounded_while_nothing_is_answered() -> None:
    """A store that is down is reported as such, not as overload."""
    assert sampled(QueueAdmission(2.5), rate=0, waiting=5000, seconds=3).max_rows == math.inf


def test_a_few_requests_may_always_wait() -> None:
    assert sampled(QueueAdmission(2.5), rate=1, waiting=5000, seconds=3).max_rows == 16


def test_the_time_until_there_is_room_is_estimated() -> None:
    crowd = sampled(QueueAdmission(2.5), rate=600, waiting=5000, seconds=1)

    with pytest.raises(ServiceError, match="it can process 1500 in time") as refused:
        crowd.check(2100)
    assert refused.value.code == "overloaded"
    assert refused.value.retry_after_s == pytest.approx(1.0)
    crowd.check(10)
    QueueAdmission(2.5).check(10_000)
