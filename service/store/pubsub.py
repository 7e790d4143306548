"""`StorePubSub`: short messages between the workers that share a store; lost when nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import Final, Protocol

from service.background import run_forever
from service.store.transport.connection import NoReplyError, NotSentError
from service.store.transport.subscriber import SubscriberConnection
from service.store.transport.transport import RedisTransport

_log = logging.getLogger(__name__)
_RECONNECT_S: Final = 0.5
_IDLE_TIMEOUT_S: Final = 5.0  # with a store that says nothing


class PubSubListener(Protocol):
    """Who hears; none of these may raise or wait."""

    def on_message(self, topic: str, message: bytes) -> None:
        """Take a message; they come in the order in which the store took them."""

    def on_disconnect(self) -> None:
        """See that messages are missed from now on."""

    def on_reconnect(self) -> None:
        """See that messages are heard again, on all topics."""


class StorePubSub:
    """Publishes on topics and listens to them, over the store's publish and subscribe."""

    def __init__(self, wire: RedisTransport) -> None:
        """Prepare; `start` connects.

        Args:
            wire: The store's connections.
        """
        self._transport = wire
        self._listener: PubSubListener
        self._topics: set[str] = set()
        self._connection: SubscriberConnection | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, listener: PubSubListener) -> None:
        """Connect; where the store is away, go on trying."""
        self._listener = listener
        first_try = asyncio.Event()
        listening = run_forever(partial(self._receive, first_try), every_s=_RECONNECT_S, name="Listening to messages")
        self._task = asyncio.create_task(listening)
        await first_try.wait()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Listen to topics; when this returns, what is published is heard, unless the store is away."""
        names = set(topics)
        self._topics |= names
        if self._connection is not None:
            await self._connection.subscribe(names)

    def unsubscribe(self, topics: Iterable[str]) -> None:
        """Listen to topics no more."""
        names = set(topics)
        self._topics -= names
        if self._connection is not None:
            self._connection.unsubscribe(names)

    async def publish(self, topic: str, message: bytes) -> int | None:
        """Send a message.

        Returns:
            How many connections took it, 0 also where the store is away; None in a Cluster, where nobody knows.
        """
        try:
            [taken] = await self._transport.call(("PUBLISH", topic, message))
        except (NotSentError, NoReplyError):
            return 0
        if self._transport.is_cluster and isinstance(taken, int):
            return None
        return taken if isinstance(taken, int) else 0

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._drop_ear("closed")

    async def _receive(self, first_try: asyncio.Event) -> None:
        if is_lost := first_try.is_set():  # run again after an error that is not handled here
            self._drop_ear("an unexpected error")
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
                why = self._connection.abort_reason or ""
            except (NotSentError, TimeoutError) as exc:
                why = str(exc) or "no answer in time"
            self._drop_ear(why)
            if not is_lost:
                _log.warning("Messages between workers are missed, connecting again: %s", why)
                self._listener.on_disconnect()
            is_lost = True
            first_try.set()
            await asyncio.sleep(_RECONNECT_S)

    def _drop_ear(self, why: str) -> None:
        if self._connection is not None:
            self._connection.abort(why)
            self._connection = None
