"""`Subscriber`: one watcher, and the queue of its events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.addons.watch.interests import Subscription
from stepwell.types import StreamKey

MAX_QUEUED_TIMESTEPS: Final = 256
"""Most events in the queue of one watcher."""

MAX_QUEUED_BYTES: Final = 8 * 2**20
"""Most bytes of tensors in the queue of one watcher; a single event may have more."""


class EventGap(NamedTuple):
    """The watcher did not receive the events of at least so many timesteps, at this point."""

    timesteps: int


class BoundedEventBuffer:
    """A bounded queue of events in order; if it is full, the oldest are dropped.

    Attributes:
        lost: Timesteps of the dropped events.
    """

    __slots__ = ("events", "lost", "nbytes")

    def __init__(self) -> None:
        self.events: deque[CommitEvent] = deque()
        self.lost = 0
        self.nbytes = 0

    def append(self, event: CommitEvent) -> None:
        """Add the newest event."""
        self.events.append(event)
        self.nbytes += event.nbytes
        while len(self.events) > MAX_QUEUED_TIMESTEPS or (self.nbytes > MAX_QUEUED_BYTES and len(self.events) > 1):
            oldest = self.events.popleft()
            self.nbytes -= oldest.nbytes
            self.lost += oldest.length

    @property
    def is_half_full(self) -> bool:
        """Whether half as many events are queued as can be."""
        return 2 * len(self.events) >= MAX_QUEUED_TIMESTEPS or 2 * self.nbytes >= MAX_QUEUED_BYTES

    def drain(self) -> list[CommitEvent | EventGap]:
        """Remove and return all events, after the gap if events were dropped."""
        items: list[CommitEvent | EventGap] = [EventGap(self.lost)] if self.lost else []
        items += self.events
        self.events.clear()
        self.lost = self.nbytes = 0
        return items


class CatchUpBuffer:
    """The live events of a stream, held back while its event log is read.

    Attributes:
        before_read: Events of commits before the read.
        after_read: Events of commits after the read.
        is_read: Whether the read has happened, so that new events are after it.
    """

    __slots__ = ("after_read", "before_read", "is_read")

    def __init__(self) -> None:
        self.before_read = BoundedEventBuffer()
        self.after_read = BoundedEventBuffer()
        self.is_read = False

    def append(self, event: CommitEvent) -> None:
        """Add an event."""
        (self.after_read if self.is_read else self.before_read).append(event)


class Subscriber:
    """One watcher: events are queued here until it drains them; if the queue is full, the oldest are dropped.

    Attributes:
        subscriptions: What it watches.
        inputs: Whether it receives the inputs, too.
        candidate: Whether it receives what the candidate of a release computes, too.
        last_steps: The last step that it received, by key, of each single stream that it watches, as far as known.
        catch_ups: The streams whose event log is being read.
        closed: The worker is about to end; the queued events are the last.
    """

    def __init__(
        self,
        subscriptions: Sequence[Subscription],
        *,
        inputs: bool,
        candidate: bool = False,
        since: Mapping[StreamKey, int] | None = None,
    ) -> None:
        """Create it with an empty queue.

        Args:
            subscriptions: What it watches.
            inputs: Whether it receives the inputs, too.
            candidate: Whether it receives what the candidate of a release computes, too.
            since: The last step that it received, by key, of streams among its subscriptions.
        """
        self.subscriptions = subscriptions
        self.inputs = inputs
        self.candidate = candidate
        self.last_steps = dict(since or {})
        self.catch_ups: dict[StreamKey, CatchUpBuffer] = {}
        self.closed = False
        self._streams = {subscription.key for subscription in subscriptions if subscription.key is not None}
        # The missed events: never dropped, and bounded by the length of the event logs.
        self._backlog: list[CommitEvent | EventGap] = []
        self._live = BoundedEventBuffer()
        # State ids of the missed events: of two paths, one may bring an event later that the event log had already.
        self._from_log: dict[StreamKey, frozenset[bytes]] = {}
        self._has_events = asyncio.Event()
        self._has_many = asyncio.Event()

    def push(self, event: CommitEvent) -> None:
        """Add an event that matches its subscriptions."""
        if (catch_up := self.catch_ups.get(event.key)) is not None:
            catch_up.append(event)
            return
        if event.state_id in self._from_log.get(event.key, ()):
            return
        if event.key in self._streams:
            self.last_steps[event.key] = event.step
        self._live.append(event)
        self._has_events.set()
        if self._live.is_half_full:
            self._has_many.set()

    def begin_catch_up(self) -> dict[StreamKey, CatchUpBuffer]:
        """Hold back the live events of the streams whose last received step is known; returns their buffers."""
        self.catch_ups = {key: CatchUpBuffer() for key in self.last_steps}
        return self.catch_ups

    def begin_catch_up_of(self, key: StreamKey) -> CatchUpBuffer | None:
        """Hold back the live events of one stream; returns their buffer, None if its last step is not known."""
        if key not in self.last_steps:
            return None
        self.catch_ups[key] = CatchUpBuffer()
        return self.catch_ups[key]

    def deliver_backlog(
        self, key: StreamKey, missed: int, events: Sequence[CommitEvent], catch_up: CatchUpBuffer
    ) -> None:
        """Add the missed events of a stream, and then the live events that were held back.

        Args:
            key: The stream's key.
            missed: Number of missed timesteps without an event.
            events: The missed events.
            catch_up: The live events that were held back.
        """
        self.catch_ups.pop(key, None)
        self._from_log[key] = frozenset([event.state_id for event in events])
        if events:
            self.last_steps[key] = events[-1].step
        if missed or events:
            self._backlog += self._live.drain()
            self._backlog += [EventGap(missed)] if missed else []
            self._backlog += events
            self._has_events.set()
        for event in catch_up.after_read.events:
            self.push(event)
        self.record_gap(catch_up.after_read.lost)

    def record_gap(self, timesteps: int) -> None:
        """Record that the events of at least so many timesteps were missed."""
        if timesteps:
            self._live.lost += timesteps
            self._has_events.set()

    def close(self) -> None:
        """Close it: no more events are added."""
        self.closed = True
        self._has_events.set()
        self._has_many.set()

    async def drain(self) -> list[CommitEvent | EventGap]:
        """Wait for events, then remove and return all that are queued; the list may be empty once it is closed."""
        await self._has_events.wait()
        self._has_events.clear()
        self._has_many.clear()
        backlog, self._backlog = self._backlog, []
        return backlog + self._live.drain()

    async def wait_for_many(self) -> None:
        """Wait until half as many events are queued as can be, or it is closed."""
        await self._has_many.wait()
