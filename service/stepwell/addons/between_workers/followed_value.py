"""`FollowedValue`: reads a value of the store whenever a message announces a change, and each second."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.waiting import happens
from stepwell.background import run_forever

_EVERY_S: Final = 1.0


class FollowedValue:
    """A value that every worker reads when it changes; messages may be lost, so it is also read each second."""

    def __init__(self, pubsub: StorePubSub, topic: str, read: Callable[[], Awaitable[object]], name: str) -> None:
        """Create it; nothing is read.

        Args:
            pubsub: Receives the announcements; used for this value alone.
            topic: Where changes are announced.
            read: Reads the value, and does what follows from it.
            name: Of this work, in log lines.
        """
        self._pubsub = pubsub
        self._topic = topic
        self._read = read
        self._name = name
        self._announced = asyncio.Event()

    async def subscribe(self) -> None:
        """Receive announcements from now on."""
        await self._pubsub.start(self)
        await self._pubsub.subscribe([self._topic])

    async def run(self) -> None:
        """Read the value when it is announced, and each second, until cancelled."""
        await run_forever(self._read_when_due, every_s=0.0, name=self._name)

    async def announce(self, message: str) -> None:
        """Announce a change to all workers, this one too."""
        await self._pubsub.publish(self._topic, message.encode())
        self._announced.set()

    async def close(self) -> None:
        """Close the connection."""
        await self._pubsub.close()

    async def _read_when_due(self) -> None:
        await happens(self._announced, _EVERY_S)
        self._announced.clear()
        await self._read()

    # ---------------------------------------------------------------- called by `StorePubSub`

    def on_message(self, _topic: str, _message: bytes) -> None:
        """Read the value now."""
        self._announced.set()

    def on_disconnect(self) -> None:
        """Nothing is lost: the value is read each second."""

    def on_reconnect(self) -> None:
        """Read the value now: an announcement may have been missed."""
        self._announced.set()
