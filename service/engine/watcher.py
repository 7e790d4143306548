"""`Watcher`: one who follows committed predictions, and what waits for it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from service.engine.audience import Want
from service.engine.events import Event
from service.engine.types import StreamKey

QUEUE: Final = 256
"""Events that may wait for one watcher."""

QUEUE_BYTES: Final = 8 * 2**20
"""Bytes of tensors that may wait for one watcher; a single event may have more."""


class Gap(NamedTuple):
    """The predictions of at least so many timesteps were missed here."""

    timesteps: int


class Waiting:
    """Events that wait, in their order; the oldest go when there are too many.

    Attributes:
        lost: Timesteps of those that went.
    """

    __slots__ = ("events", "lost", "nbytes")

    def __init__(self) -> None:
        self.events: deque[Event] = deque()
        self.lost = 0
        self.nbytes = 0

    def put(self, event: Event) -> None:
        """Add the newest."""
        self.events.append(event)
        self.nbytes += event.nbytes
        while len(self.events) > QUEUE or (self.nbytes > QUEUE_BYTES and len(self.events) > 1):
            oldest = self.events.popleft()
            self.nbytes -= oldest.nbytes
            self.lost += oldest.length

    def take(self) -> list[Event | Gap]:
        """Take all out; first the gap, if there is one."""
        items: list[Event | Gap] = [Gap(self.lost)] if self.lost else []
        items += self.events
        self.events.clear()
        self.lost = self.nbytes = 0
        return items


class Hold:
    """Events of a stream whose past is being read: they wait until that is told.

    Attributes:
        heard: Those that were committed before it was read.
        later: Those after that.
        is_read: Whether what comes now is later.
    """

    __slots__ = ("heard", "is_read", "later")

    def __init__(self) -> None:
        self.heard = Waiting()
        self.later = Waiting()
        self.is_read = False

    def put(self, event: Event) -> None:
        """Add an event."""
        (self.later if self.is_read else self.heard).put(event)


class Watcher:
    """One who follows: events wait here until they are taken; the oldest are lost when too many wait.

    Attributes:
        wants: What it follows.
        inputs: Whether it is to be shown the inputs, too.
        places: The last step that it was given of each single stream that it follows, as far as it is known.
        holds: The streams whose past is being read.
        over: The process is about to end; what waits is the last.
    """

    def __init__(self, wants: Sequence[Want], *, inputs: bool, since: Mapping[StreamKey, int] | None = None) -> None:
        """Begin with nothing.

        Args:
            wants: What it follows.
            inputs: Whether it is to be shown the inputs, too.
            since: The last step that it has seen, of streams among its wants.
        """
        self.wants = wants
        self.inputs = inputs
        self.places = dict(since or {})
        self.holds: dict[StreamKey, Hold] = {}
        self.over = False
        self._singles = {want.key for want in wants if want.key is not None}
        self._past: list[Event | Gap] = []  # what it came back for: never dropped, and bounded by what is kept
        self._live = Waiting()
        self._news = asyncio.Event()

    def offer(self, event: Event) -> None:
        """Add an event that it wants."""
        if (hold := self.holds.get(event.key)) is not None:
            hold.put(event)
            return
        if event.key in self._singles:
            self.places[event.key] = event.step
        self._live.put(event)
        self._news.set()

    def hold(self) -> dict[StreamKey, Hold]:
        """Hold back the streams of which it is known what was seen last; return what is held of each."""
        self.holds = {key: Hold() for key in self.places}
        return self.holds

    def tell_past(self, key: StreamKey, missed: int, past: Sequence[Event], hold: Hold) -> None:
        """Add what it has missed of a stream, and then what was held back meanwhile.

        Args:
            key: The stream.
            missed: Timesteps that are not known any more.
            past: What is known.
            hold: What was held back.
        """
        self.holds.pop(key, None)
        if past:
            self.places[key] = past[-1].step
        if missed or past:
            self._past += self._live.take()
            self._past += [Gap(missed)] if missed else []
            self._past += past
            self._news.set()
        for event in hold.later.events:
            self.offer(event)
        self.lose(hold.later.lost)

    def lose(self, timesteps: int) -> None:
        """Take note that the predictions of at least so many timesteps were missed."""
        if timesteps:
            self._live.lost += timesteps
            self._news.set()

    def end(self) -> None:
        """Say that no more will come."""
        self.over = True
        self._news.set()

    async def take(self) -> list[Event | Gap]:
        """Wait for news, and take all that waits; it may be nothing once it is over."""
        await self._news.wait()
        self._news.clear()
        past, self._past = self._past, []
        return past + self._live.take()
