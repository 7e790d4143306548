"""`Watchers`: committed predictions for those who follow them, from whichever worker committed them.

The store publishes a commit in the very script call that applies it: events have the order of the commits, and a
worker that dies takes none with it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from typing import Any, Final, Protocol

from service.background import cancel
from service.engine.audience import Audience, Want
from service.engine.events import Event, decode_events, following, joined
from service.engine.types import StreamKey
from service.engine.wants import Messages, SharedWants
from service.engine.watcher import Hold, Watcher
from service.errors import ServiceError
from service.store import keys

_log = logging.getLogger(__name__)
_PAST_WITHIN_S: Final = 5.0


class History(Protocol):
    """What is needed of the store."""

    async def history(self, record: str, *, topic: str, mark: bytes, deadline: float) -> tuple[int, list[bytes]]:
        """Return a stream's step and its history, and publish `mark` at that moment."""
        ...


class Watchers:
    """All who watch through this worker."""

    def __init__(self, audience: Audience, history: History, messages: Messages) -> None:
        """Begin with nobody.

        Args:
            audience: Takes note of what is followed anywhere.
            history: Reads what is kept of streams.
            messages: To and from the other workers and the store.
        """
        self._history = history
        self._messages = messages
        self._shared = SharedWants(audience, messages, self._own_wants)
        self._watchers: set[Watcher] = set()
        self._by_stream: dict[StreamKey, set[Watcher]] = {}
        self._by_model: dict[tuple[str, str], dict[Watcher, tuple[str, ...]]] = {}
        self._topics: Counter[str] = Counter()
        self._marks: dict[bytes, tuple[Hold, asyncio.Event]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False

    def __len__(self) -> int:
        """Watchers of this worker."""
        return len(self._watchers)

    async def start(self) -> None:
        """Begin to hear."""
        await self._messages.start(self)
        await self._shared.start()

    async def close(self) -> None:
        """Stop."""
        await cancel(self._tasks)
        await self._shared.close()
        await self._messages.close()

    def end(self) -> None:
        """Say to all who watch, and to those who still come, that no more will come."""
        self._is_over = True
        for watcher in self._watchers:
            watcher.end()

    async def add(self, watcher: Watcher) -> None:
        """Register a watcher; when this returns, it has what it missed, and commits of every worker reach it."""
        self._watchers.add(watcher)
        for want in watcher.wants:
            if want.key is not None:
                self._by_stream.setdefault(want.key, set()).add(watcher)
            else:
                of_model = self._by_model.setdefault((want.tenant, want.model), {})
                of_model[watcher] = (*of_model.get(watcher, ()), want.prefix)
        topics = {want.topic for want in watcher.wants}
        self._topics.update(topics)
        holds = watcher.hold()  # what is heard from here on comes behind what was missed
        await self._messages.listen(topics)
        await self._shared.tell(watcher.wants)
        await asyncio.gather(*(self._tell_past(watcher, key, hold) for key, hold in holds.items()))
        if self._is_over:
            watcher.end()

    def remove(self, watcher: Watcher) -> None:
        """Forget a watcher."""
        self._watchers.discard(watcher)
        for want in watcher.wants:
            if want.key is not None:
                _take_out(self._by_stream, want.key, watcher)
            else:
                _take_out(self._by_model, (want.tenant, want.model), watcher)
        topics = {want.topic for want in watcher.wants}
        self._topics.subtract(topics)
        self._topics = +self._topics
        self._messages.leave(topics - self._topics.keys())

    # ---------------------------------------------------------------- what the channel calls

    def hear(self, topic: str, message: bytes) -> None:
        """Take a message of the channel."""
        try:
            # Marks are published on the own topic alone: what comes on others may be megabytes, and is not hashed.
            mark = self._marks.get(message) if topic == self._shared.own_topic else None
            if mark is not None:
                hold, is_read = mark
                hold.is_read = True
                is_read.set()
            elif not self._shared.hear(topic, message):
                for event in decode_events(message):
                    self._deliver(event)
        except ValueError as exc:
            _log.warning("What came on the store's topic %s is none of ours: %s", topic, exc)

    def lost(self) -> None:
        """See that messages are missed from now on, and so maybe what other workers want."""
        self._shared.be_unsure()

    def back(self) -> None:
        """See that messages are heard again: what was missed is read where it is kept, and told as a gap where not."""
        self._shared.listen_again()
        for watcher in self._watchers:
            holds = watcher.hold()
            if len(holds) < len(watcher.wants):
                watcher.lose(1)
            for key, hold in holds.items():
                task = asyncio.create_task(self._tell_past(watcher, key, hold))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- helpers

    def _deliver(self, event: Event) -> None:
        direct = self._by_stream.get(event.key, ())
        for watcher in direct:
            watcher.offer(event)
        for watcher, prefixes in self._by_model.get((event.tenant, event.model), {}).items():
            if watcher not in direct and event.stream.startswith(prefixes):
                watcher.offer(event)

    async def _tell_past(self, watcher: Watcher, key: StreamKey, hold: Hold) -> None:
        """Tell a watcher what it has missed of a stream, then what was held back."""
        mark, is_read = secrets.token_bytes(16), asyncio.Event()
        self._marks[mark] = (hold, is_read)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_PAST_WITHIN_S):
                step, kept = await self._history.history(
                    keys.record_key(*key),
                    topic=self._shared.own_topic,
                    mark=mark,
                    deadline=loop.time() + _PAST_WITHIN_S,
                )
                await is_read.wait()  # so all that was committed before has been heard
            past = joined([one for raw in kept for one in decode_events(raw)], hold.heard.events)
            missed, told = following(past, watcher.places[key], step)
        except (TimeoutError, ServiceError, ValueError) as exc:
            _log.warning("What a watcher missed of a stream could not be read, so it is told of a gap: %s", exc)
            missed, told = 1, list(hold.heard.events)
        finally:
            del self._marks[mark]
        if watcher.holds.get(key) is hold:  # else the channel was lost meanwhile, and it is read again
            watcher.tell_past(key, missed, told, hold)

    def _own_wants(self) -> list[Want]:
        return list({want for watcher in self._watchers for want in watcher.wants})


def _take_out(watchers: dict[Any, Any], key: object, watcher: Watcher) -> None:
    """Take a watcher out of those under a key."""
    under = watchers.get(key)
    if isinstance(under, set):
        under.discard(watcher)
    elif under is not None:
        under.pop(watcher, None)
    if not under:
        watchers.pop(key, None)
