"""Events of one stream are delivered in the order of its commits, whichever path each arrives on."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from stepwell.addons.watch import event_order
from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.addons.watch.event_order import EventOrder
from stepwell.types import StreamKey

A = StreamKey("default", "m", "a")


def event(step: int, length: int = 1) -> CommitEvent:
    return CommitEvent(*A, step, length, b"", {}, {})


class Delivered(list[int]):
    """The steps of delivered events."""

    def __call__(self, event: CommitEvent) -> None:
        self.append(event.step)


def order_at(step: int) -> tuple[EventOrder, Delivered]:
    """Return an order of one stream that is at a step."""
    delivered = Delivered()
    order = EventOrder(delivered)
    order.add(A)
    order.unsettle(A)
    order.settle(A, step)
    return order, delivered


@pytest.mark.parametrize("arrival", list(itertools.permutations([5, 6, 7, 8])))
async def test_events_that_overtake_are_held(arrival: tuple[int, ...]) -> None:
    order, delivered = order_at(4)
    for step in arrival:
        order.accept(event(step), on_shard=step % 2 == 0)

    assert delivered == [5, 6, 7, 8]


async def test_a_chunk_is_one_event(  # a chunk of 3 timesteps, then a step, in the wrong order
) -> None:
    order, delivered = order_at(4)
    order.accept(event(8), on_shard=True)
    order.accept(event(7, length=3), on_shard=False)

    assert delivered == [7, 8]


async def test_events_of_the_channel_wait_for_earlier_ones_of_the_topic() -> None:
    delivered = Delivered()
    order = EventOrder(delivered)
    order.add(A)
    order.unsettle(A)
    order.accept(event(3), on_shard=True)
    order.accept(event(2), on_shard=False)
    order.settle(A, 3)

    assert delivered == [2, 3]


async def test_a_reset_is_not_held() -> None:
    order, delivered = order_at(4)
    for step in (5, 1, 2):
        order.accept(event(step), on_shard=True)

    assert delivered == [5, 1, 2]


async def test_an_event_that_follows_no_other_is_delivered_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_order, "MAX_HELD_S", 0.01)
    arrived = asyncio.Event()
    steps: list[int] = []

    def deliver(one: CommitEvent) -> None:
        steps.append(one.step)
        arrived.set()

    order = EventOrder(deliver)
    order.add(A)
    order.accept(event(4), on_shard=True)
    order.accept(event(101), on_shard=True)  # a state was put, at step 100
    arrived.clear()
    async with asyncio.timeout(20):
        await arrived.wait()

    assert steps == [4, 101]


async def test_a_stream_that_is_ordered_no_longer_keeps_no_event() -> None:
    order, delivered = order_at(4)
    order.accept(event(9), on_shard=True)
    order.discard(A)

    assert delivered == [9]
    assert A not in order
