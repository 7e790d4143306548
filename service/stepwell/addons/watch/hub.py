"""`WatchHub`: delivers events of committed predictions to the watchers of this worker, whichever worker commits.

The store publishes a commit's event in the script call that applies the commit. So events have the order of the
commits, and a worker that crashes loses none.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from stepwell.addons.watch.commit_events import CommitEvent, decode_events, events_since, merge_log_and_live
from stepwell.addons.watch.interest_gossip import InterestGossip
from stepwell.addons.watch.interests import InterestTable, Subscription
from stepwell.addons.watch.log_reader import LogReader
from stepwell.addons.watch.stream_channels import StreamChannels
from stepwell.addons.watch.watcher_queue import CatchUpBuffer, Subscriber
from stepwell.background import cancel
from stepwell.errors import ServiceError
from stepwell.types import StreamKey

if TYPE_CHECKING:
    from stepwell.addons.between_workers.pubsub import StorePubSub
    from stepwell.store.state_store import StateStore

_log = logging.getLogger(__name__)
_RESUBSCRIBE_TIMEOUT_S: Final = 5.0


class WatchHub:
    """The watchers of this worker."""

    def __init__(self, interests: InterestTable, store: StateStore, pubsub: StorePubSub) -> None:
        """Create it without watchers."""
        self._pubsub = pubsub
        self._gossip = InterestGossip(interests, store.commits_under_way, pubsub, self._own_subscriptions)
        self._reader = LogReader(store, self._gossip.own_topic)
        self._channels: StreamChannels | None = None
        if store.transport.is_cluster:
            self._channels = StreamChannels(store.transport, self._reader, self._deliver, self)
        self._subscribers: set[Subscriber] = set()
        self._by_stream: dict[StreamKey, set[Subscriber]] = {}
        self._by_model: dict[tuple[str, str], dict[Subscriber, tuple[str, ...]]] = {}
        self._topics: Counter[str] = Counter()
        self._lost: dict[StreamKey, list[tuple[Subscriber, CatchUpBuffer]]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def __len__(self) -> int:
        """Return the number of watchers of this worker."""
        return len(self._subscribers)

    async def start(self) -> None:
        """Connect, and start the gossip with the other workers."""
        await self._pubsub.start(self)
        await self._gossip.start()
        if self._channels is not None:
            await self._channels.start()

    async def close(self) -> None:
        """Cancel running catch-ups and disconnect."""
        await cancel(self._tasks)
        if self._channels is not None:
            await self._channels.close()
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
        if not await self._gossip.announce(watcher.subscriptions):
            watcher.record_gap(1)  # a worker may have committed without publishing to it
        await asyncio.gather(*(self._catch_up(watcher, key, catch_up) for key, catch_up in catch_ups.items()))
        if self._channels is not None and watcher in self._subscribers:
            self._channels.add(subscription.key for subscription in watcher.subscriptions if subscription.key)
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
        if self._channels is not None:
            watched = {subscription.key for subscription in watcher.subscriptions if subscription.key}
            self._channels.discard(watched - self._by_stream.keys())

    # ---------------------------------------------------------------- called by `StorePubSub`

    def on_message(self, topic: str, message: bytes) -> None:
        """Handle a message."""
        try:
            # Marks are published on the own topic only; messages on other topics may have megabytes and are not hashed.
            if topic == self._gossip.own_topic and self._reader.on_mark(topic, message):
                return
            if not self._gossip.on_message(topic, message):
                for event in decode_events(message):
                    if self._channels is None or not self._channels.accept(event):
                        self._deliver(event)
        except ValueError as exc:
            _log.warning("Ignored a message on the store's topic %s that is not an event: %s", topic, exc)

    def on_disconnect(self) -> None:
        """Handle the loss of the connection: messages are missed, so the known interests may be incomplete."""
        self._gossip.mark_stale()
        self._reader.end_path(self._gossip.own_topic)

    def on_reconnect(self) -> None:
        """Handle a new connection: missed events are read from the event logs; without a log, a gap is recorded."""
        self._gossip.resync()
        self._reader.end_path(self._gossip.own_topic)  # marks that were published meanwhile do not arrive
        for watcher in self._subscribers:
            catch_ups = watcher.begin_catch_up()
            if len(catch_ups) < len(watcher.subscriptions):
                watcher.record_gap(1)
            for key, catch_up in catch_ups.items():
                self._spawn_catch_up(watcher, key, catch_up)

    # ---------------------------------------------------------------- called by `StreamChannels`

    def on_streams_lost(self, lost: Collection[StreamKey]) -> None:
        """Hold the live events of streams until their event logs can be read; without a known step, record a gap."""
        for key in lost:
            for watcher in self._by_stream.get(key, ()):
                if (catch_up := watcher.begin_catch_up_of(key)) is None:
                    watcher.record_gap(1)
                else:
                    self._lost.setdefault(key, []).append((watcher, catch_up))
            asyncio.get_running_loop().call_later(_RESUBSCRIBE_TIMEOUT_S, self.on_stream_back, key)

    def on_stream_back(self, key: StreamKey) -> None:
        """Read the event log of a stream whose events may have been lost."""
        for watcher, catch_up in self._lost.pop(key, ()):
            self._spawn_catch_up(watcher, key, catch_up)

    def on_step_known(self, key: StreamKey, step: int) -> None:
        """Note the step of a stream for watchers that have received none of its events yet."""
        for watcher in self._by_stream.get(key, ()):
            watcher.last_steps.setdefault(key, step)

    # ---------------------------------------------------------------- helpers

    def _deliver(self, event: CommitEvent) -> None:
        direct = self._by_stream.get(event.key, ())
        for watcher in direct:
            watcher.push(event)
        for watcher, prefixes in self._by_model.get((event.tenant, event.model), {}).items():
            if watcher not in direct and event.stream.startswith(prefixes):
                watcher.push(event)

    def _spawn_catch_up(self, watcher: Subscriber, key: StreamKey, catch_up: CatchUpBuffer) -> None:
        if not self._closed:
            task = asyncio.create_task(self._catch_up(watcher, key, catch_up))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _catch_up(self, watcher: Subscriber, key: StreamKey, catch_up: CatchUpBuffer) -> None:
        """Deliver the missed events of a stream to a watcher, then the live events that were held back."""

        def on_read() -> None:
            if self._channels is not None:
                self._channels.flush(key)
            catch_up.is_read = True

        channel = "" if self._channels is None else self._channels.subscribed_channel(key)
        try:
            step, logged = await self._reader.read(key, on_read, channel=channel)
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
