"""`Channel`: short messages between the workers that share a store; lost when nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

from service.store.link import NoReplyError, NotSentError
from service.store.wire import Wire

_log = logging.getLogger(__name__)
_RECONNECT_S = 0.5

Listener = Callable[[str, bytes], Awaitable[None]]
"""Takes a topic and a message."""


class Channel:
    """Publishes on topics and listens to them, over the store's publish and subscribe."""

    def __init__(self, wire: Wire, listener: Listener, on_gap: Callable[[], None]) -> None:
        """Prepare; `start` connects.

        Args:
            wire: The store's connections.
            listener: Takes each message of the topics listened to, in order.
            on_gap: Called when the connection was lost, so that messages may have been missed.
        """
        self._wire = wire
        self._listener = listener
        self._on_gap = on_gap
        self._topics: set[str] = set()
        self._pubsub: Any = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, *topics: str) -> None:
        """Listen to topics, from now on and again after each reconnect."""
        self._topics.update(topics)
        self._pubsub = self._wire.client.pubsub()
        with contextlib.suppress(RedisError, OSError):
            await self._pubsub.subscribe(*self._topics)
        self._task = asyncio.create_task(self._listen())

    async def listen(self, topic: str) -> None:
        """Listen to one more topic."""
        self._topics.add(topic)
        with contextlib.suppress(RedisError, OSError):  # the reconnect subscribes again
            await self._pubsub.subscribe(topic)

    async def leave(self, topic: str) -> None:
        """Listen to a topic no more."""
        self._topics.discard(topic)
        with contextlib.suppress(RedisError, OSError):
            await self._pubsub.unsubscribe(topic)

    async def publish(self, topic: str, message: bytes) -> int:
        """Send a message and return how many connections took it; 0 also where the store is away."""
        try:
            [taken] = await self._wire.call(("PUBLISH", topic, message))
        except (NotSentError, NoReplyError):
            return 0
        return taken if isinstance(taken, int) else 0

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._pubsub is not None:
            with contextlib.suppress(RedisError, OSError):
                await self._pubsub.aclose()

    async def _listen(self) -> None:
        while True:
            try:
                async for message in self._pubsub.listen():
                    if message["type"] == "message":
                        await self._listener(message["channel"].decode(), message["data"])
            except (RedisError, OSError) as exc:
                _log.warning("Lost the store's messages, connecting again: %s", exc)
            self._on_gap()
            await asyncio.sleep(_RECONNECT_S)
            with contextlib.suppress(RedisError, OSError):
                await self._pubsub.aclose()
                self._pubsub = self._wire.client.pubsub()
                await self._pubsub.subscribe(*self._topics)
