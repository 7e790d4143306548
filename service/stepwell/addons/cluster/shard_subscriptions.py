"""`ShardSubscriptions`: keeps subscriptions to shard channels of a Cluster on the nodes that own their slots.

A message on a shard channel stays on the node that owns the channel's slot, and on the node's replicas. redis-py's own
subscriptions poll the nodes in turn, and do not report when messages may have been lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING, Any, Final

from stepwell.addons.between_workers.subscriber import SubscriberConnection
from stepwell.background import cancel, run_forever
from stepwell.store.transport.connection import CommandError, NotSentError
from stepwell.store.transport.server import ServerTransport
from stepwell.store.transport.shard_channels import ShardListener

if TYPE_CHECKING:
    from stepwell.addons.cluster.transport import ClusterTransport

_log = logging.getLogger(__name__)
_RETRY_S: Final = 0.2
_IDLE_TIMEOUT_S: Final = 5.0  # as for topics
_MAY_PASS: Final = frozenset(("MOVED", "CLUSTERDOWN", "TRYAGAIN", "LOADING", "MASTERDOWN"))


class ShardSubscriptions:
    """Subscribes to channels, and again wherever their slots are moved to.

    While a channel is not subscribed to, `commit.lua` publishes its events on the topic of the model.
    """

    def __init__(self, transport: ClusterTransport, listener: ShardListener) -> None:
        """Create it without subscriptions; `start` has to be called first."""
        self._transport = transport
        self._listener = listener
        self._wanted: set[str] = set()
        self._subscribed: dict[str, ShardConnection] = {}
        self._connections: dict[ServerTransport, ShardConnection] = {}
        self._changed = asyncio.Event()
        self._refused = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start to keep the subscriptions; no connection is opened before there is one."""
        self._spawn(run_forever(self._keep_subscribed, every_s=_RETRY_S, name="Subscribing to shard channels"))

    async def close(self) -> None:
        """Close every connection."""
        await cancel(self._tasks)
        for connection in self._connections.values():
            connection.abort("closed")

    def subscribe(self, channels: Iterable[str]) -> None:
        """Subscribe to channels, as soon as their nodes reply; `on_shard_subscribed` is called for each."""
        if not self._refused:
            self._wanted.update(channels)
            self._changed.set()

    def unsubscribe(self, channels: Iterable[str]) -> None:
        """Unsubscribe from channels."""
        for channel in channels:
            self._wanted.discard(channel)
            if (connection := self._subscribed.pop(channel, None)) is not None:
                connection.shard_unsubscribe(channel)

    def is_subscribed(self, channel: str) -> bool:
        """Whether messages on a channel arrive here."""
        return channel in self._subscribed

    # ---------------------------------------------------------------- called by `ShardConnection`

    def on_message(self, channel: str, message: bytes) -> None:
        """Hand a message on."""
        self._listener.on_shard_message(channel, message)

    def on_confirmed(self, channel: str, connection: ShardConnection) -> None:
        """Note that a channel is subscribed to."""
        if channel not in self._wanted:
            connection.shard_unsubscribe(channel)
        elif self._subscribed.get(channel) is not connection:
            self._subscribed[channel] = connection
            self._listener.on_shard_subscribed(channel)

    def on_ended(self, channel: str, connection: ShardConnection) -> None:
        """Note that a node has ended a subscription, because the slot has moved to another node."""
        if self._subscribed.get(channel) is connection:
            del self._subscribed[channel]
            self._listener.on_shard_moved(channel)
            self._transport.refresh()
            self._changed.set()

    # ---------------------------------------------------------------- helpers

    async def _keep_subscribed(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while missing := self._wanted - self._subscribed.keys():
                errors = await self._subscribe_missing(missing)
                refused = [error for error in errors if isinstance(error, CommandError) and error.code not in _MAY_PASS]
                if refused:
                    _log.warning(
                        "The store refuses sharded publish and subscribe, so the events of watched streams are sent to "
                        "every node of the Cluster: %s",
                        refused[0],
                    )
                    self._refused = True
                    self._wanted.clear()
                elif errors:
                    await asyncio.sleep(_RETRY_S)

    async def _subscribe_missing(self, channels: Collection[str]) -> list[Exception]:
        """Subscribe to channels; returns the errors of those that have to be tried again."""
        by_owner: dict[ServerTransport, list[str]] = {}
        try:
            for channel in channels:
                by_owner.setdefault(await self._transport.owner(channel), []).append(channel)
        except NotSentError as exc:
            return [exc]
        results = await asyncio.gather(*(self._subscribe_at(owner, names) for owner, names in by_owner.items()))
        return [error for errors in results for error in errors]

    async def _subscribe_at(self, owner: ServerTransport, channels: Iterable[str]) -> list[Exception]:
        try:
            async with asyncio.timeout(self._transport.timeout):
                connection = self._connections.get(owner)
                if connection is None or connection.closed.is_set():
                    connection = self._connections[owner] = ShardConnection(await owner.open_dedicated(), self)
                    self._spawn(self._watch_connection(owner, connection))
                replies = await connection.shard_subscribe(channels)
        except (NotSentError, TimeoutError) as exc:
            self._transport.refresh()
            return [exc]
        errors: list[Exception] = [reply for reply in replies if reply is not None]
        for reply in errors:
            if isinstance(reply, CommandError) and reply.code == "MOVED":
                self._transport.note_moved(reply, owner)
        return errors

    async def _watch_connection(self, owner: ServerTransport, connection: ShardConnection) -> None:
        await connection.wait_closed(_IDLE_TIMEOUT_S)
        if self._connections.get(owner) is connection:
            del self._connections[owner]
        lost = [channel for channel, used in self._subscribed.items() if used is connection]
        for channel in lost:
            del self._subscribed[channel]
        if lost:
            _log.warning(
                "Lost the connection for events of %d streams, reconnecting: %s", len(lost), connection.abort_reason
            )
            self._transport.refresh()
            self._listener.on_shard_lost(lost)
            self._changed.set()

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class ShardConnection(SubscriberConnection):
    """One connection to a node that is subscribed to shard channels of its slots."""

    def __init__(self, writer: asyncio.StreamWriter, owner: ShardSubscriptions) -> None:
        """Use an open connection.

        Args:
            writer: The writer of an authenticated connection on which no command is pending.
            owner: Is called for each message and each change of a subscription.
        """
        super().__init__(writer, owner.on_message)
        self._owner = owner
        self._pending: deque[asyncio.Future[CommandError | None]] = deque()

    async def shard_subscribe(self, channels: Iterable[str]) -> list[CommandError | NotSentError | None]:
        """Subscribe to channels; returns for each the node's error, or None."""
        loop = asyncio.get_running_loop()
        futures = []
        for channel in channels:  # a command each: those of different slots may not share one
            futures.append(loop.create_future())
            self._send("SSUBSCRIBE", channel)
        self._pending += futures
        closing = asyncio.create_task(self.closed.wait())
        replying = asyncio.gather(*futures)
        try:
            await asyncio.wait((closing, replying), return_when=asyncio.FIRST_COMPLETED)
        finally:
            closing.cancel()
            if not replying.done():
                replying.cancel()
        lost = NotSentError(self.abort_reason or "the connection was lost")
        return [lost if future.cancelled() or not future.done() else future.result() for future in futures]

    def shard_unsubscribe(self, channel: str) -> None:
        """Unsubscribe from a channel."""
        if not self.closed.is_set():
            self._send("SUNSUBSCRIBE", channel)

    def _handle_push(self, reply: Any) -> None:
        if isinstance(reply, CommandError):
            if not self._pending:
                self.abort(str(reply))
            else:
                self._confirm(reply)
        elif reply[0] == b"smessage":
            self._on_message(reply[1].decode(), reply[2])
        elif reply[0] == b"ssubscribe":
            self._owner.on_confirmed(reply[1].decode(), self)
            self._confirm(None)
        elif reply[0] == b"sunsubscribe" and reply[1] is not None:
            self._owner.on_ended(reply[1].decode(), self)

    def _confirm(self, reply: CommandError | None) -> None:
        if self._pending and not (future := self._pending.popleft()).done():
            future.set_result(reply)
