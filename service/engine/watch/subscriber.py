"""`Subscriber`: one who follows committed predictions, and what waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from service.engine.watch.commit_events import CommitEvent
from service.engine.watch.interests import Subscription
from service.types import StreamKey

MAX_QUEUED_TIMESTEPS: Final = 256
"""Events that may wait for one watcher."""

MAX_QUEUED_BYTES: Final = 8 * 2**20
"""Bytes of tensors that may wait for one watcher; a single event may have more."""


class EventGap(NamedTuple):
    """The predictions of at least so many timesteps were missed here."""

    timesteps: int


class BoundedEventBuffer:
    """Events that wait, in their order; the oldest go when there are too many.

    Attributes:
        lost: Timesteps of those that went.
    """

    __slots__ = ("events", "lost", "nbytes")

    def __init__(self) -> None:
        self.events: deque[CommitEvent] = deque()
        self.lost = 0
        self.nbytes = 0

    def append(self, event: CommitEvent) -> None:
        """Add the newest."""
        self.events.append(event)
        self.nbytes += event.nbytes
        while len(self.events) > MAX_QUEUED_TIMESTEPS or (self.nbytes > MAX_QUEUED_BYTES and len(self.events) > 1):
            oldest = self.events.popleft()
            self.nbytes -= oldest.nbytes
            self.lost += oldest.length

    def drain(self) -> list[CommitEvent | EventGap]:
        """Take all out; first the gap, if there is one."""
        items: list[CommitEvent | EventGap] = [EventGap(self.lost)] if self.lost else []
        items += self.events
        self.events.clear()
        self.lost = self.nbytes = 0
        return items


class CatchUpBuffer:
    """Events of a stream whose past is being read: they wait until that is told.

    Attributes:
        heard: Those that were committed before it was read.
        later: Those after that.
        is_read: Whether what comes now is later.
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
    """One who follows: events wait here until they are taken; the oldest are lost when too many wait.

    Attributes:
        wants: What it follows.
        inputs: Whether it is to be shown the inputs, too.
        places: The last step that it was given of each single stream that it follows, as far as it is known.
        holds: The streams whose past is being read.
        over: The process is about to end; what waits is the last.
    """

    def __init__(
        self, wants: Sequence[Subscription], *, inputs: bool, since: Mapping[StreamKey, int] | None = None
    ) -> None:
        """Begin with nothing.

        Args:
            wants: What it follows.
            inputs: Whether it is to be shown the inputs, too.
            since: The last step that it has seen, of streams among its wants.
        """
        self.subscriptions = wants
        self.inputs = inputs
        self.last_steps = dict(since or {})
        self.catch_ups: dict[StreamKey, CatchUpBuffer] = {}
        self.closed = False
        self._singles = {want.key for want in wants if want.key is not None}
        self._backlog: list[
            CommitEvent | EventGap
        ] = []  # what it came back for: never dropped, and bounded by what is kept
        self._live = BoundedEventBuffer()
        self._has_events = asyncio.Event()

    def push(self, event: CommitEvent) -> None:
        """Add an event that it wants."""
        if (hold := self.catch_ups.get(event.key)) is not None:
            hold.append(event)
            return
        if event.key in self._singles:
            self.last_steps[event.key] = event.step
        self._live.append(event)
        self._has_events.set()

    def begin_catch_up(self) -> dict[StreamKey, CatchUpBuffer]:
        """Hold back the streams of which it is known what was seen last; return what is held of each."""
        self.catch_ups = {key: CatchUpBuffer() for key in self.last_steps}
        return self.catch_ups

    def deliver_backlog(self, key: StreamKey, missed: int, past: Sequence[CommitEvent], hold: CatchUpBuffer) -> None:
        """Add what it has missed of a stream, and then what was held back meanwhile.

        Args:
            key: The stream.
            missed: Timesteps that are not known any more.
            past: What is known.
            hold: What was held back.
        """
        self.catch_ups.pop(key, None)
        if past:
            self.last_steps[key] = past[-1].step
        if missed or past:
            self._backlog += self._live.drain()
            self._backlog += [EventGap(missed)] if missed else []
            self._backlog += past
            self._has_events.set()
        for event in hold.after_read.events:
            self.push(event)
        self.record_gap(hold.after_read.lost)

    def record_gap(self, timesteps: int) -> None:
        """Take note that the predictions of at least so many timesteps were missed."""
        if timesteps:
            self._live.lost += timesteps
            self._has_events.set()

    def close(self) -> None:
        """Say that no more will come."""
        self.closed = True
        self._has_events.set()

    async def drain(self) -> list[CommitEvent | EventGap]:
        """Wait for news, and take all that waits; it may be nothing once it is over."""
        await self._has_events.wait()
        self._has_events.clear()
        past, self._backlog = self._backlog, []
        return past + self._live.drain()
