"""The channel between workers delivers messages again after any trouble with its connection to the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from stepwell.addons.between_workers import pubsub
from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.commands.store_permissions import check_permissions
from stepwell.service_addon import addon_classes
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import NotSentError
from stepwell.store.transport.transport import RedisTransport
from tests.servers import Server

WITHIN_S = 10.0
TIMEOUT_S = 0.2


class SilentProxy:
    """A port in front of a server that discards some of what clients send, so that it is never answered.

    Attributes:
        discards: Whether a piece of data is discarded.
        discarded: Set when that happened.
        url: Of a store behind it.
    """

    def __init__(self, target: Path) -> None:
        self.discards: Callable[[bytes], bool] = lambda _: False
        self.discarded = asyncio.Event()
        self.url = ""
        self._target = target
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: list[asyncio.Task[None]] = []

    def drop_connections(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[SilentProxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
        try:
            yield self
        finally:
            server.close()
            self.drop_connections()
            await asyncio.gather(*self._tasks)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        replies, requests = await asyncio.open_unix_connection(self._target)
        self._writers += (writer, requests)
        await asyncio.gather(self._forward(reader, requests), self._forward(replies, writer, are_replies=True))

    async def _forward(
        self, source: asyncio.StreamReader, to: asyncio.StreamWriter, *, are_replies: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if not are_replies and self.discards(data):
                    self.discarded.set()
                else:
                    to.write(data)
        to.close()


class Heard:
    """What a channel has handed out."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self.is_lost = asyncio.Event()
        self.is_back = asyncio.Event()

    def on_message(self, topic: str, message: bytes) -> None:
        self.messages.put_nowait((topic, message))

    def on_disconnect(self) -> None:
        self.is_lost.set()

    def on_reconnect(self) -> None:
        self.is_back.set()


class FailingOnce:
    """A store's connections, one of which cannot be opened for a reason that nobody foresaw."""

    def __init__(self, wire: RedisTransport, fails_at: int) -> None:
        self._wire = wire
        self._fails_at = fails_at

    async def open(self) -> asyncio.StreamWriter:
        self._fails_at -= 1
        if self._fails_at == 0:
            raise RuntimeError("a transport of another kind")
        return await self._wire.open_dedicated()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)


@pytest.fixture
async def proxy(redis_server: Server) -> AsyncIterator[SilentProxy]:
    async with SilentProxy(redis_server.socket).serving() as one:
        yield one


@pytest.fixture
async def store(proxy: SilentProxy) -> AsyncIterator[StateStore]:
    one = StateStore(proxy.url, timeout=TIMEOUT_S)
    yield one
    await one.close()


def everything(_: bytes) -> bool:
    return True


def subscriptions(data: bytes) -> bool:
    return b"SUBSCRIBE" in data


@pytest.mark.parametrize("discards", [everything, subscriptions])
async def test_a_store_that_does_not_answer_does_not_hold_the_start(
    store: StateStore, proxy: SilentProxy, discards: Callable[[bytes], bool]
) -> None:
    proxy.discards = discards
    messages = StorePubSub(store.transport)
    await messages.subscribe(["t"])

    async with asyncio.timeout(WITHIN_S):
        await messages.start(Heard())
    await messages.close()

    assert proxy.discarded.is_set()


@pytest.mark.parametrize("discards", [everything, subscriptions])
async def test_a_new_connection_that_is_never_answered_is_replaced(
    store: StateStore, proxy: SilentProxy, discards: Callable[[bytes], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is lost, the next one is not answered, the store answers again: messages arrive again."""
    monkeypatch.setattr(pubsub, "_RECONNECT_S", 0.01)
    heard, messages = Heard(), StorePubSub(store.transport)
    async with asyncio.timeout(WITHIN_S):
        await messages.start(heard)
        await messages.subscribe(["t"])
        proxy.discards = discards
        proxy.drop_connections()
        await heard.is_lost.wait()
        await proxy.discarded.wait()
        proxy.discards = lambda _: False
        await heard.is_back.wait()
        await messages.publish("t", b"again")
        found = await heard.messages.get()
    await messages.close()

    assert found == ("t", b"again")


async def test_a_connection_of_ones_own_is_opened_in_time_or_not_at_all(store: StateStore, proxy: SilentProxy) -> None:
    proxy.discards = everything

    async with asyncio.timeout(WITHIN_S):
        with pytest.raises((TimeoutError, NotSentError)):
            await store.transport.open_dedicated()


async def test_the_check_of_permissions_ends_where_a_subscriber_is_not_answered(
    store: StateStore, proxy: SilentProxy
) -> None:
    """It is not judged: the store was there a moment before, and requests wait for it."""
    await store.ping(timeout=WITHIN_S)  # the connection for commands is open; the check opens one more
    proxy.discards = lambda data: b"CLIENT" in data

    async with asyncio.timeout(WITHIN_S):
        await check_permissions(store, addon_classes())

    assert proxy.discarded.is_set()


async def test_an_unforeseen_error_ends_no_listening(redis_server: Server) -> None:
    store, heard = StateStore(redis_server.url), Heard()
    channel = StorePubSub(FailingOnce(store.transport, fails_at=2))
    await channel.start(heard)
    await channel.subscribe(["t"])
    with redis_server.client() as client:
        client.client_kill_filter(_type="pubsub")
        async with asyncio.timeout(10):
            await heard.is_back.wait()
        client.publish("t", b"news")

    async with asyncio.timeout(10):
        assert await heard.messages.get() == ("t", b"news")
    await channel.close()
    await store.close()


async def test_a_store_that_cannot_write_to_its_disk_still_delivers_messages(redis_server: Server) -> None:
    """It replies to PING with an error then."""
    (redis_server.folder / "dump.rdb").mkdir()
    with redis_server.client() as client:
        client.config_set("save", "3600 1")
        client.bgsave()
        while client.info("persistence")["rdb_bgsave_in_progress"]:  # noqa: ASYNC110 - the store has no event for it
            await asyncio.sleep(0.01)
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            client.ping()
        store, heard = StateStore(redis_server.url), Heard()
        messages = StorePubSub(store.transport)
        await messages.subscribe(["t"])
        await messages.start(heard)

        for n in range(3):
            client.publish("t", str(n))
            async with asyncio.timeout(WITHIN_S):
                assert await heard.messages.get() == ("t", str(n).encode())
        await messages.close()
        await store.close()

    assert not heard.is_lost.is_set()
