"""`StreamChannels`: receives the events of single streams on their shard channels in a Cluster.

An event on the topic of a model is sent to every node of the Cluster, one on a shard channel to one node only. The
commit script uses the channel once every worker that watches the stream is subscribed to it, and the topic until then,
so no event is lost while a slot moves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable
from typing import Protocol

from stepwell.addons.watch.commit_events import CommitEvent, decode_events
from stepwell.addons.watch.event_order import EventOrder
from stepwell.addons.watch.log_reader import MARK_BYTES, LogReader
from stepwell.background import cancel
from stepwell.errors import ServiceError
from stepwell.store import keys
from stepwell.store.transport.transport import RedisTransport
from stepwell.types import StreamKey

_log = logging.getLogger(__name__)


class LossListener(Protocol):
    """Is called when events of streams may have been lost."""

    def on_streams_lost(self, lost: Collection[StreamKey]) -> None:
        """Handle the loss of the connection for the events of streams."""

    def on_stream_back(self, key: StreamKey) -> None:
        """Handle that the events of a stream arrive; called whether they were lost before or not."""

    def on_step_known(self, key: StreamKey, step: int) -> None:
        """Handle that all events of a stream up to a step have arrived."""


class StreamChannels:
    """The shard channels of the streams that this worker watches."""

    def __init__(
        self,
        transport: RedisTransport,
        reader: LogReader,
        deliver: Callable[[CommitEvent], None],
        listener: LossListener,
    ) -> None:
        """Create it without streams.

        Args:
            transport: The store transport.
            reader: Reads event logs.
            deliver: Called with each event in order.
            listener: Is called when events may have been lost.
        """
        shards = transport.shard_channels(self)
        assert shards is not None, "there is one server"
        self._shards = shards
        self._order = EventOrder(deliver)
        self._reader = reader
        self._listener = listener
        self._keys: dict[str, StreamKey] = {}  # by channel
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start to keep the subscriptions."""
        await self._shards.start()

    async def close(self) -> None:
        """Unsubscribe from everything."""
        await cancel(self._tasks)
        await self._shards.close()
        self._order.close()

    def add(self, streams: Iterable[StreamKey]) -> None:
        """Receive the events of streams; every worker has to have the interest in them already."""
        channels = {channel_of(key): key for key in streams}
        self._keys.update(channels)
        for key in channels.values():
            self._order.add(key)
        self._shards.subscribe(channels)

    def discard(self, streams: Iterable[StreamKey]) -> None:
        """Receive the events of streams no longer."""
        for key in streams:
            self._keys.pop(channel_of(key), None)
            self._shards.unsubscribe([channel_of(key)])
            self._order.discard(key)

    def subscribed_channel(self, key: StreamKey) -> str:
        """Return the channel of a stream if it is subscribed to, else an empty string."""
        channel = channel_of(key)
        return channel if self._shards.is_subscribed(channel) else ""

    def accept(self, event: CommitEvent) -> bool:
        """Deliver an event of a topic, in the order of the commits; returns False if it is of no stream here."""
        if event.key not in self._order:
            return False
        self._order.accept(event, on_shard=False)
        return True

    def flush(self, key: StreamKey) -> None:
        """Deliver all events of a stream that have arrived."""
        self._order.settle(key)
        self._order.flush(key)

    # ---------------------------------------------------------------- called by `ShardChannels`

    def on_shard_message(self, channel: str, message: bytes) -> None:
        """Handle an event, or a mark of this or another worker."""
        if self._reader.on_mark(channel, message) or len(message) == MARK_BYTES:
            return
        try:
            for event in decode_events(message):
                if event.key in self._order:
                    self._order.accept(event, on_shard=True)
        except ValueError as exc:
            _log.warning("Ignored a message on the store's channel %s that is not an event: %s", channel, exc)

    def on_shard_subscribed(self, channel: str) -> None:
        """Hold the events of the channel until those that were published on the topic before have arrived."""
        if (key := self._keys.get(channel)) is not None:
            self._order.unsettle(key)
            self._listener.on_stream_back(key)
            task = asyncio.create_task(self._settle(key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def on_shard_moved(self, channel: str) -> None:
        """Wait for no mark on this channel any more; its events come on the topic until it is subscribed to again."""
        self._reader.end_path(channel)

    def on_shard_lost(self, channels: Collection[str]) -> None:
        """Report the streams whose events may have been lost."""
        for channel in channels:
            self._reader.end_path(channel)
        self._listener.on_streams_lost([self._keys[channel] for channel in channels if channel in self._keys])

    async def _settle(self, key: StreamKey) -> None:
        step: int | None = None
        try:
            step, _ = await self._reader.read(key, lambda: None)
        except (TimeoutError, ServiceError, ValueError) as exc:
            _log.warning("The events of a stream may be delivered in another order for a moment: %s", exc)
        if step is not None:
            self._listener.on_step_known(key, step)
        self._order.settle(key, step)


def channel_of(key: StreamKey) -> str:
    """Return the shard channel of a stream's events."""
    return keys.shard_channel(keys.record_key(*key))
