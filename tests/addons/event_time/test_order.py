"""`addons/event_time/order.py`."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from stepwell.addons.event_time.order import Decided, Order


def decided_of(order: Order[str], messages: Sequence[tuple[str, str, int]]) -> list[str]:
    """Return what is decided of (partition, stream, time): `stream time`, late ones with a `!`."""
    found: list[str] = []
    for partition, stream, time in messages:
        found += map(shown, order.add(partition, stream, time, f"{stream} {time}"))
    return found


def shown(one: Decided[str]) -> str:
    return f"{one.item}!" if one.late else one.item


def test_a_message_waits_until_the_newest_time_of_its_partition_is_later_by_the_wait() -> None:
    order = Order[str](5)
    assert decided_of(order, [("p", "a", 10), ("p", "a", 8), ("p", "a", 12), ("q", "b", 99)]) == []
    assert decided_of(order, [("p", "a", 14)]) == ["a 8"]
    assert decided_of(order, [("p", "a", 15)]) == ["a 10"]
    assert order.n_waiting == 4
    assert order.waiting_by_partition() == {"p": 3, "q": 1}
    assert order.watermarks() == {"p": 10, "q": 94}


def test_the_first_of_two_messages_with_one_time_counts() -> None:
    order = Order[str](5)
    order.add("p", "a", 10, "first")
    order.add("p", "a", 10, "second")
    assert [shown(one) for one in order.flush()] == ["first", "second!"]


def test_a_message_that_is_not_newer_than_what_its_stream_has_is_late() -> None:
    order = Order[str](0)
    assert decided_of(order, [("p", "a", 10), ("p", "a", 9), ("p", "a", 10), ("p", "b", 9)]) == [
        *("a 10", "a 9!", "a 10!", "b 9")
    ]
    order.resume("c", 20)
    assert decided_of(order, [("p", "c", 20), ("p", "c", 21)]) == ["c 20!", "c 21"]


def test_a_stream_behind_the_watermark_goes_on_in_the_order_of_arrival() -> None:
    order = Order[str](5)
    assert decided_of(order, [("p", "a", 100), ("p", "b", 12), ("p", "b", 11), ("p", "b", 13)]) == [
        *("b 12", "b 11!", "b 13")
    ]


def test_the_watermark_of_an_idle_partition_is_its_newest_time() -> None:
    order = Order[str](5)
    decided_of(order, [("p", "a", 3), ("p", "a", 2), ("q", "b", 1)])
    assert [shown(one) for one in order.flush("p")] == ["a 2", "a 3"]
    assert decided_of(order, [("p", "c", 2), ("p", "a", 4)]) == ["c 2"]
    assert order.n_waiting == 2


def test_the_oldest_go_on_when_too_many_wait() -> None:
    order = Order[str](100, most=2)
    assert decided_of(order, [("p", "a", 5), ("p", "a", 3), ("q", "b", 4), ("q", "b", 6)]) == ["a 3", "b 4"]
    assert (order.n_waiting, order.overflowed) == (2, 2)


@pytest.mark.parametrize("seed", range(5))
def test_what_goes_on_of_each_stream_is_sorted_and_no_message_is_lost(seed: int) -> None:
    rng = random.Random(seed)
    order = Order[tuple[str, int]](5)
    messages = [(rng.choice("abc"), at // 3 + rng.randrange(8)) for at in range(600)]
    found = [one for stream, time in messages for one in order.add("p", stream, time, (stream, time))] + order.flush()

    assert sorted(one.item for one in found) == sorted(messages)
    for stream in "abc":
        times = [one.item[1] for one in found if one.item[0] == stream and not one.late]
        assert times == sorted(set(times))
