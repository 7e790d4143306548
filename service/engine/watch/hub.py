"""`WatchHub`: delivers events of committed predictions to the watchers of this worker, whichever worker commits.

The store publishes a commit's event in the script call that applies the commit. So events have the order of the
commits, and a worker that crashes loses none.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from service.background import cancel
from service.engine.watch.commit_events import CommitEvent, decode_events, events_since, merge_log_and_live
from service.engine.watch.interest_gossip import InterestGossip
from service.engine.watch.interests import InterestTable, Subscription
from service.engine.watch.subscriber import CatchUpBuffer, Subscriber
from service.errors import ServiceError
from service.store import keys
from service.types import StreamKey

if TYPE_CHECKING:
    from service.store.pubsub import StorePubSub
    from service.store.state_store import StateStore

_log = logging.getLogger(__name__)
_CATCH_UP_TIMEOUT_S: Final = 5.0


class WatchHub:
    """The watchers of this worker."""

    def __init__(self, interests: InterestTable, store: StateStore, pubsub: StorePubSub) -> None:
        """Create it without watchers.

        Args:
            interests: The table of the interests of all workers.
            store: Reads the event logs of streams.
            pubsub: Messages between the workers, and events from the store.
        """
        self._store = store
        self._pubsub = pubsub
        self._gossip = InterestGossip(interests, pubsub, self._own_subscriptions)
        self._subscribers: set[Subscriber] = set()
        self._by_stream: dict[StreamKey, set[Subscriber]] = {}
        self._by_model: dict[tuple[str, str], dict[Subscriber, tuple[str, ...]]] = {}
        self._topics: Counter[str] = Counter()
        self._marks: dict[bytes, tuple[CatchUpBuffer, asyncio.Event]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Return the number of watchers of this worker."""
        return len(self._subscribers)

    async def start(self) -> None:
        """Connect, and start the gossip with the other workers."""
        await self._pubsub.start(self)
        await self._gossip.start()

    async def close(self) -> None:
        """Cancel running catch-ups and disconnect."""
        await cancel(self._tasks)
        await self._gossip.close()
        await self._pubsub.close()

    def end_all(self) -> None:
        """Close all watchers, and those that are added later."""
        self._closed = True
        for watcher in self._subscribers:
            watcher.close()

    async def add(self, watcher: Subscriber) -> None:
        """Add a watcher; once this returns, it has the missed events, and receives those of all workers' commits."""
        self._subscribers.add(watcher)
        for subscription in watcher.subscriptions:
            if subscription.key is not None:
                self._by_stream.setdefault(subscription.key, set()).add(watcher)
            else:
                of_model = self._by_model.setdefault((subscription.tenant, subscription.model), {})
                of_model[watcher] = (*of_model.get(watcher, ()), subscription.prefix)
        topics = {subscription.topic for subscription in watcher.subscriptions}
        self._topics.update(topics)
        catch_ups = watcher.begin_catch_up()  # from here on, live events are delivered after the missed ones
        await self._pubsub.subscribe(topics)
        await self._gossip.announce(watcher.subscriptions)
        await asyncio.gather(*(self._catch_up(watcher, key, catch_up) for key, catch_up in catch_ups.items()))
        if self._closed:
            watcher.close()

    def remove(self, watcher: Subscriber) -> None:
        """Remove a watcher."""
        self._subscribers.discard(watcher)
        for subscription in watcher.subscriptions:
            if subscription.key is not None:
                _discard(self._by_stream, subscription.key, watcher)
            else:
                _discard(self._by_model, (subscription.tenant, subscription.model), watcher)
        topics = {subscription.topic for subscription in watcher.subscriptions}
        self._topics.subtract(topics)
        self._topics = +self._topics
        self._pubsub.unsubscribe(topics - self._topics.keys())

    # ---------------------------------------------------------------- called by `StorePubSub`

    def on_message(self, topic: str, message: bytes) -> None:
        """Handle a message."""
        try:
            # Marks are published on the own topic only; messages on other topics may have megabytes and are not hashed.
            mark = self._marks.get(message) if topic == self._gossip.own_topic else None
            if mark is not None:
                catch_up, is_read = mark
                catch_up.is_read = True
                is_read.set()
            elif not self._gossip.on_message(topic, message):
                for event in decode_events(message):
                    self._deliver(event)
        except ValueError as exc:
            _log.warning("Ignored a message on the store's topic %s that is not an event: %s", topic, exc)

    def on_disconnect(self) -> None:
        """Handle the loss of the connection: messages are missed, so the known interests may be incomplete."""
        self._gossip.mark_stale()

    def on_reconnect(self) -> None:
        """Handle a new connection: missed events are read from the event logs; without a log, a gap is recorded."""
        self._gossip.resync()
        for watcher in self._subscribers:
            catch_ups = watcher.begin_catch_up()
            if len(catch_ups) < len(watcher.subscriptions):
                watcher.record_gap(1)
            for key, catch_up in catch_ups.items():
                task = asyncio.create_task(self._catch_up(watcher, key, catch_up))
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

    async def _catch_up(self, watcher: Subscriber, key: StreamKey, catch_up: CatchUpBuffer) -> None:
        """Deliver the missed events of a stream to a watcher, then the live events that were held back."""
        mark, is_read = secrets.token_bytes(16), asyncio.Event()
        self._marks[mark] = (catch_up, is_read)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CATCH_UP_TIMEOUT_S):
                step, log = await self._store.history(
                    keys.record_key(*key),
                    topic=self._gossip.own_topic,
                    mark=mark,
                    deadline=loop.time() + _CATCH_UP_TIMEOUT_S,
                )
                await is_read.wait()  # by then all events committed before the read have arrived
            logged = [event for message in log for event in decode_events(message)]
            events = merge_log_and_live(logged, catch_up.before_read.events)
            missed, backlog = events_since(events, watcher.last_steps[key], step)
        except (TimeoutError, ServiceError, ValueError) as exc:
            _log.warning(
                "The event log of a stream cannot be read, so its watcher gets a gap (model=%s, stream=%s): %s",
                key.model,
                key.stream,
                exc,
            )
            missed, backlog = 1, list(catch_up.before_read.events)
        finally:
            del self._marks[mark]
        if watcher.catch_ups.get(key) is catch_up:  # else the connection was lost meanwhile, and the log is read again
            watcher.deliver_backlog(key, missed, backlog, catch_up)

    def _own_subscriptions(self) -> list[Subscription]:
        return list({subscription for watcher in self._subscribers for subscription in watcher.subscriptions})


def _discard(watchers: dict[Any, Any], key: object, watcher: Subscriber) -> None:
    group = watchers.get(key)
    if isinstance(group, set):
        group.discard(watcher)
    elif group is not None:
        group.pop(watcher, None)
    if not group:
        watchers.pop(key, None)
