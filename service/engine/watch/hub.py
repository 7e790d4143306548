"""`WatchHub`: committed predictions for those who follow them, from whichever worker committed them.

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
from service.engine.watch.commit_events import CommitEvent, decode_events, events_since, merge_log_and_live
from service.engine.watch.interest_gossip import InterestGossip, PubSub
from service.engine.watch.interests import InterestTable, Subscription
from service.engine.watch.subscriber import CatchUpBuffer, Subscriber
from service.errors import ServiceError
from service.store import keys
from service.types import StreamKey

_log = logging.getLogger(__name__)
_PAST_WITHIN_S: Final = 5.0


class EventLog(Protocol):
    """What is needed of the store."""

    async def history(self, record: str, *, topic: str, mark: bytes, deadline: float) -> tuple[int, list[bytes]]:
        """Return a stream's step and its history, and publish `mark` at that moment."""
        ...


class WatchHub:
    """All who watch through this worker."""

    def __init__(self, audience: InterestTable, history: EventLog, messages: PubSub) -> None:
        """Begin with nobody.

        Args:
            audience: Takes note of what is followed anywhere.
            history: Reads what is kept of streams.
            messages: To and from the other workers and the store.
        """
        self._history = history
        self._pubsub = messages
        self._gossip = InterestGossip(audience, messages, self._own_subscriptions)
        self._subscribers: set[Subscriber] = set()
        self._by_stream: dict[StreamKey, set[Subscriber]] = {}
        self._by_model: dict[tuple[str, str], dict[Subscriber, tuple[str, ...]]] = {}
        self._topics: Counter[str] = Counter()
        self._marks: dict[bytes, tuple[CatchUpBuffer, asyncio.Event]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Watchers of this worker."""
        return len(self._subscribers)

    async def start(self) -> None:
        """Begin to hear."""
        await self._pubsub.start(self)
        await self._gossip.start()

    async def close(self) -> None:
        """Stop."""
        await cancel(self._tasks)
        await self._gossip.close()
        await self._pubsub.close()

    def end_all(self) -> None:
        """Say to all who watch, and to those who still come, that no more will come."""
        self._closed = True
        for watcher in self._subscribers:
            watcher.close()

    async def add(self, watcher: Subscriber) -> None:
        """Register a watcher; when this returns, it has what it missed, and commits of every worker reach it."""
        self._subscribers.add(watcher)
        for want in watcher.subscriptions:
            if want.key is not None:
                self._by_stream.setdefault(want.key, set()).add(watcher)
            else:
                of_model = self._by_model.setdefault((want.tenant, want.model), {})
                of_model[watcher] = (*of_model.get(watcher, ()), want.prefix)
        topics = {want.topic for want in watcher.subscriptions}
        self._topics.update(topics)
        holds = watcher.begin_catch_up()  # what is heard from here on comes behind what was missed
        await self._pubsub.subscribe(topics)
        await self._gossip.announce(watcher.subscriptions)
        await asyncio.gather(*(self._catch_up(watcher, key, hold) for key, hold in holds.items()))
        if self._closed:
            watcher.close()

    def remove(self, watcher: Subscriber) -> None:
        """Forget a watcher."""
        self._subscribers.discard(watcher)
        for want in watcher.subscriptions:
            if want.key is not None:
                _take_out(self._by_stream, want.key, watcher)
            else:
                _take_out(self._by_model, (want.tenant, want.model), watcher)
        topics = {want.topic for want in watcher.subscriptions}
        self._topics.subtract(topics)
        self._topics = +self._topics
        self._pubsub.unsubscribe(topics - self._topics.keys())

    # ---------------------------------------------------------------- what the channel calls

    def on_message(self, topic: str, message: bytes) -> None:
        """Take a message of the channel."""
        try:
            # Marks are published on the own topic alone: what comes on others may be megabytes, and is not hashed.
            mark = self._marks.get(message) if topic == self._gossip.own_topic else None
            if mark is not None:
                hold, is_read = mark
                hold.is_read = True
                is_read.set()
            elif not self._gossip.on_message(topic, message):
                for event in decode_events(message):
                    self._deliver(event)
        except ValueError as exc:
            _log.warning("What came on the store's topic %s is none of ours: %s", topic, exc)

    def on_disconnect(self) -> None:
        """See that messages are missed from now on, and so maybe what other workers want."""
        self._gossip.mark_stale()

    def on_reconnect(self) -> None:
        """See that messages are heard again: what was missed is read where it is kept, and told as a gap where not."""
        self._gossip.resync()
        for watcher in self._subscribers:
            holds = watcher.begin_catch_up()
            if len(holds) < len(watcher.subscriptions):
                watcher.record_gap(1)
            for key, hold in holds.items():
                task = asyncio.create_task(self._catch_up(watcher, key, hold))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    # ---------------------------------------------------------------- helpers

    def _deliver(self, event: CommitEvent) -> None:
        direct = self._by_stream.get(event.key, ())
        for watcher in direct:
            watcher.push(event)
        for watcher, prefixes in self._by_model.get((event.tenant, event.model), {}).items():
            if watcher not in direct and event.stream.startswith(prefixes):
                watcher.push(event)

    async def _catch_up(self, watcher: Subscriber, key: StreamKey, hold: CatchUpBuffer) -> None:
        """Tell a watcher what it has missed of a stream, then what was held back."""
        mark, is_read = secrets.token_bytes(16), asyncio.Event()
        self._marks[mark] = (hold, is_read)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_PAST_WITHIN_S):
                step, kept = await self._history.history(
                    keys.record_key(*key),
                    topic=self._gossip.own_topic,
                    mark=mark,
                    deadline=loop.time() + _PAST_WITHIN_S,
                )
                await is_read.wait()  # so all that was committed before has been heard
            past = merge_log_and_live([one for raw in kept for one in decode_events(raw)], hold.before_read.events)
            missed, told = events_since(past, watcher.last_steps[key], step)
        except (TimeoutError, ServiceError, ValueError) as exc:
            _log.warning("What a watcher missed of a stream could not be read, so it is told of a gap: %s", exc)
            missed, told = 1, list(hold.before_read.events)
        finally:
            del self._marks[mark]
        if watcher.catch_ups.get(key) is hold:  # else the channel was lost meanwhile, and it is read again
            watcher.deliver_backlog(key, missed, told, hold)

    def _own_subscriptions(self) -> list[Subscription]:
        return list({want for watcher in self._subscribers for want in watcher.subscriptions})


def _take_out(watchers: dict[Any, Any], key: object, watcher: Subscriber) -> None:
    """Take a watcher out of those under a key."""
    under = watchers.get(key)
    if isinstance(under, set):
        under.discard(watcher)
    elif under is not None:
        under.pop(watcher, None)
    if not under:
        watchers.pop(key, None)
