"""`StorePubSub`: publish and subscribe between the workers that share a store; messages are not stored."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import Final, Protocol

from stepwell.addons.between_workers.subscriber import SubscriberConnection
from stepwell.background import run_forever
from stepwell.store.transport.connection import NoReplyError, NotSentError
from stepwell.store.transport.transport import RedisTransport

_log = logging.getLogger(__name__)
_RECONNECT_S: Final = 0.5
_IDLE_TIMEOUT_S: Final = 5.0  # a connection on which nothing arrives for so long, not even a PONG, is closed


class PubSubListener(Protocol):
    """Receives messages. No method may raise or block."""

    def on_message(self, topic: str, message: bytes) -> None:
        """Handle a message; messages arrive in the order in which the store received them."""

    def on_disconnect(self) -> None:
        """Handle the loss of the connection: messages are missed from now on."""

    def on_reconnect(self) -> None:
        """Handle a new connection: it is subscribed to all topics again."""


class StorePubSub:
    """Publishes on topics and subscribes to them, with the store's PUBLISH and SUBSCRIBE."""

    def __init__(self, transport: RedisTransport) -> None:
        """Create it unconnected; `start` connects."""
        self._transport = transport
        self._listener: PubSubListener
        self._topics: set[str] = set()
        self._connection: SubscriberConnection | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, listener: PubSubListener) -> None:
        """Connect; returns after the first attempt. While the store is unavailable, connecting is retried."""
        self._listener = listener
        first_try = asyncio.Event()
        receiving = run_forever(partial(self._receive, first_try), every_s=_RECONNECT_S, name="Receiving messages")
        self._task = asyncio.create_task(receiving)
        await first_try.wait()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Subscribe to topics; once this returns, messages on them are received, unless the store is unavailable."""
        names = set(topics)
        self._topics |= names
        if self._connection is not None:
            await self._connection.subscribe(names)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Unsubscribe from topics."""
        names = set(topics)
        self._topics -= names
        if self._connection is not None:
            self._connection.unsubscribe(names)

    async def publish(self, topic: str, message: bytes) -> int | None:
        """Publish a message.

        Returns:
            The number of connections that received it, 0 also if the store is unavailable; None in a Cluster, which
            does not return that number.
        """
        try:
            [receivers] = await self._transport.call(("PUBLISH", topic, message))
        except (NotSentError, NoReplyError):
            return 0
        if self._transport.is_cluster and isinstance(receivers, int):
            return None
        return receivers if isinstance(receivers, int) else 0

    async def close(self) -> None:
        """Close the connection and stop receiving."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop_connection("closed")

    async def _receive(self, first_try: asyncio.Event) -> None:
        if is_lost := first_try.is_set():  # run again after an error that is not handled here
            self._drop_connection("an unexpected error")
            self._listener.on_disconnect()
        while True:
            try:
                self._connection = SubscriberConnection(
                    await self._transport.open_dedicated(), self._listener.on_message
                )
                async with asyncio.timeout(self._transport.timeout):
                    await self._connection.subscribe(self._topics)
                if not self._connection.closed.is_set():
                    if is_lost:
                        self._listener.on_reconnect()
                    is_lost = False
                    first_try.set()
                    await self._connection.wait_closed(_IDLE_TIMEOUT_S)
                reason = self._connection.abort_reason or ""
            except (NotSentError, TimeoutError) as exc:
                reason = str(exc) or "no reply in time"
            self._drop_connection(reason)
            if not is_lost:
                _log.warning("Lost the connection for messages between workers, reconnecting: %s", reason)
                self._listener.on_disconnect()
            is_lost = True
            first_try.set()
            await asyncio.sleep(_RECONNECT_S)

    def _drop_connection(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.abort(reason)
            self._connection = None
