"""Messages between workers are heard again after any trouble with their connection."""

from __future__ import annotations

import asyncio
from typing import Any

from service.store.channel import Channel
from service.store.redis import StateStore
from service.store.wire import Wire
from tests.servers import Server


class Heard:
    """A listener that notes what it is told."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.is_back = asyncio.Event()

    def hear(self, _topic: str, message: bytes) -> None:
        self.messages.put_nowait(message)

    def lost(self) -> None:
        pass

    def back(self) -> None:
        self.is_back.set()


class FailingOnce:
    """A store's connections, one of which cannot be opened for a reason that nobody foresaw."""

    def __init__(self, wire: Wire, fails_at: int) -> None:
        self._wire = wire
        self._fails_at = fails_at

    async def open(self) -> asyncio.StreamWriter:
        self._fails_at -= 1
        if self._fails_at == 0:
            raise RuntimeError("a transport of another kind")
        return await self._wire.open()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)


async def test_an_unforeseen_error_ends_no_listening(redis_server: Server) -> None:
    store, heard = StateStore(redis_server.url), Heard()
    channel = Channel(FailingOnce(store.wire, fails_at=2))
    await channel.start(heard)
    await channel.listen(["t"])
    with redis_server.client() as client:
        client.client_kill_filter(_type="pubsub")
        async with asyncio.timeout(10):
            await heard.is_back.wait()
        client.publish("t", b"news")

    async with asyncio.timeout(10):
        assert await heard.messages.get() == b"news"
    await channel.close()
    await store.close()
