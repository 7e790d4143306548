"""`EventOrder`: puts the events of single streams that arrive over two paths into the order of their commits.

In a Cluster, an event arrives on the shard channel of its stream or, while a worker is not yet subscribed there, on the
topic of its model. The two paths are connections to different nodes, so a later event may arrive first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.types import StreamKey

MAX_HELD_S: Final = 0.5
"""Longest wait for an earlier event. One that never comes was not published: a state was put, with a higher step."""

_MAX_HELD: Final = 256


class EventOrder:
    """Delivers the events of a stream in order; an event that follows a missing one is held for a moment."""

    def __init__(self, deliver: Callable[[CommitEvent], None]) -> None:
        """Create it without streams.

        Args:
            deliver: Called with each event in order.
        """
        self._deliver = deliver
        self._streams: dict[StreamKey, _StreamOrder] = {}

    def __contains__(self, key: StreamKey) -> bool:
        return key in self._streams

    def add(self, key: StreamKey) -> None:
        """Order the events of a stream from now on; those before the next `settle` are in the order of arrival."""
        self._streams.setdefault(key, _StreamOrder())

    def discard(self, key: StreamKey) -> None:
        """Order the events of a stream no longer; held ones are delivered."""
        self.flush(key)
        self._streams.pop(key, None)

    def unsettle(self, key: StreamKey) -> None:
        """Hold the events of the stream's shard channel until `settle`: earlier ones may be under way on the topic."""
        if (order := self._streams.get(key)) is not None:
            order.unsettled = True

    def settle(self, key: StreamKey, step: int | None = None) -> None:
        """Deliver what `unsettle` has held.

        Args:
            key: The stream's key.
            step: A step up to which all events of the topic have arrived; None: not known.
        """
        if (order := self._streams.get(key)) is None or not order.unsettled:
            return
        order.unsettled = False
        if order.step is None:
            order.step = step
        early, order.early = order.early, []
        for event in early:
            self.accept(event, on_shard=True)

    def accept(self, event: CommitEvent, *, on_shard: bool) -> None:
        """Deliver an event, or hold it until those before it have arrived, at most `MAX_HELD_S`."""
        order = self._streams[event.key]
        if on_shard and order.unsettled:
            order.early.append(event)
            return
        is_next = order.step is None or event.step_before <= order.step  # or the first after a reset
        if is_next and not any(event.step_before >= early.step for early in order.early):
            self._advance(order, event)
            return
        order.held[event.step_before] = event
        if len(order.held) > _MAX_HELD:
            self.flush(event.key)
        elif order.timer is None:
            order.timer = asyncio.get_running_loop().call_later(MAX_HELD_S, self.flush, event.key)

    def flush(self, key: StreamKey) -> None:
        """Deliver the held events of a stream, although earlier ones are missing."""
        if (order := self._streams.get(key)) is None:
            return
        order.cancel_timer()
        held, order.held = order.held, {}
        for _, event in sorted(held.items()):
            order.step = event.step
            self._deliver(event)

    def close(self) -> None:
        """Stop all timers."""
        for order in self._streams.values():
            order.cancel_timer()

    def _advance(self, order: _StreamOrder, event: CommitEvent) -> None:
        following: CommitEvent | None = event
        while following is not None:
            order.step = following.step
            self._deliver(following)
            following = order.held.pop(order.step, None)
        if not order.held:
            order.cancel_timer()


class _StreamOrder:
    """The order of one stream's events.

    Attributes:
        step: The step of the last delivered event; None: not known.
        held: Events that follow a missing one, by the step before them.
        early: Events of the shard channel that arrived before `settle`.
        unsettled: Whether events of the topic may be under way that are earlier than those of the shard channel.
        timer: Ends the wait for a missing event.
    """

    __slots__ = ("early", "held", "step", "timer", "unsettled")

    def __init__(self) -> None:
        self.step: int | None = None
        self.held: dict[int, CommitEvent] = {}
        self.early: list[CommitEvent] = []
        self.unsettled = False
        self.timer: asyncio.TimerHandle | None = None

    def cancel_timer(self) -> None:
        """Stop the timer."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
