"""Following committed predictions: what is asked for, and where to go on after the connection was lost."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection as AsyncClientConnection
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from service.client import decoding
from service.client.http_transport import FeedAddress
from service.client.results import Event, Gap
from service.codec.formats import MSGPACK, encode, format_of_body

_PROTOCOL: Final = [Subprotocol("stepwell.msgpack")]
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_OPEN_S: Final = 10.0
_CLOSE_S: Final = 1.0


class WatchCursor:
    """Where one who watches stands: what it asks for, and how long it waits before it comes back."""

    def __init__(
        self, address: FeedAddress, model: str, stream: str | None, prefix: str, since: int | None, *, inputs: bool
    ) -> None:
        """Use `Model.watch`."""
        self.address = address
        self._follow: dict[str, Any] = {"model": model} | ({"prefix": prefix} if prefix else {})
        self._stream = stream
        self._since = since
        self._inputs = inputs
        self._turn = 0

    @property
    def options(self) -> dict[str, Any]:
        """How to connect."""
        return {
            "subprotocols": _PROTOCOL,
            "additional_headers": dict(self.address.headers),
            "compression": None,
            "max_size": None,
            "open_timeout": _OPEN_S,
            "close_timeout": _CLOSE_S,
        }

    def subscribe_message(self) -> bytes:
        """Return the first message: what to follow, and where to go on."""
        follow = dict(self._follow)
        if self._stream is not None:
            follow["stream"] = self._stream
            if self._since is not None:
                follow["since"] = self._since
        return encode({"watch": [follow], "inputs": self._inputs}, MSGPACK)

    def on_message(self, message: bytes | str) -> Event | Gap | None:
        """Return what a message tells; None: that all is heard from now on.

        Raises:
            ClientError: The service refuses.
        """
        self._turn = 0
        raw = message if isinstance(message, bytes) else message.encode()
        told = msgspec.msgpack.decode(raw, type=decoding.WatchMessage)
        if told.error is not None:
            raise told.error.error()
        if not told.stream and not told.gap:
            return None
        news = told.news()
        if isinstance(news, Event) and self._stream is not None:
            self._since = news.step
        return news

    def pause(self, error: Exception | None = None) -> float:
        """Return the seconds to wait before another try.

        Raises:
            ClientError: The service refused the handshake.
        """
        if isinstance(error, InvalidStatus):
            response = error.response
            form = format_of_body(response.headers.get("content-type"))
            refusal = decoding.error_in(
                decoding.Reply(response.status_code, bytes(response.body or b""), form), moves=False
            )
            if refusal is not None and refusal.retry != "same":
                raise refusal
        self._turn += 1
        longest = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(self._turn, 10))
        return longest * (0.5 + random.random() / 2)  # noqa: S311 - so that many do not come back at once

    def gap(self) -> list[Gap]:
        """Return what is told when a connection was lost, of which it cannot be known what was missed meanwhile."""
        return [] if self._stream is not None and self._since is not None else [Gap(1)]


class OpenWatches:
    """The connections of a client's watches, which end with the client. Threads may share it.

    Attributes:
        closed: The client was closed.
    """

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._sockets: set[ClientConnection] = set()
        self._lock = threading.Lock()

    @contextmanager
    def holding(self, socket: ClientConnection) -> Iterator[None]:
        """Count an open connection among those that `close` closes."""
        with self._lock:
            self._sockets.add(socket)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(socket)

    def close(self) -> None:
        """Close them; watches end, in whatever threads they wait."""
        self.closed.set()
        with self._lock:
            sockets = list(self._sockets)
        for socket in sockets:
            socket.close()


class OpenAsyncWatches:
    """What `OpenWatches` is, for one event loop."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._sockets: set[AsyncClientConnection] = set()

    @contextmanager
    def holding(self, socket: AsyncClientConnection) -> Iterator[None]:
        """Count an open connection among those that `close` closes."""
        self._sockets.add(socket)
        try:
            yield
        finally:
            self._sockets.discard(socket)

    async def close(self) -> None:
        """Close them; watches end."""
        self.closed.set()
        await asyncio.gather(*(socket.close() for socket in self._sockets))

    async def pause(self, seconds: float) -> None:
        """Wait; no longer than until the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.closed.wait()


def follow(watch: WatchCursor, open_watches: OpenWatches) -> Iterator[Event | Gap]:
    """Give what a watch is told, over as many connections as it takes, until the client is closed."""
    is_back = False
    closed = open_watches.closed
    while not closed.is_set():
        try:
            with connect(watch.address.url, **watch.options) as socket, open_watches.holding(socket):
                if closed.is_set():  # while it was opened
                    return
                socket.send(watch.subscribe_message())
                for message in socket:
                    news = watch.on_message(message)
                    if news is not None:
                        yield news
                    elif is_back:
                        yield from watch.gap()
            closed.wait(watch.pause())
        except (OSError, TimeoutError, WebSocketException) as exc:
            closed.wait(watch.pause(exc))
        is_back = True


async def follow_async(watch: WatchCursor, open_watches: OpenAsyncWatches) -> AsyncIterator[Event | Gap]:
    """Do what `follow` does, to be awaited."""
    is_back = False
    closed = open_watches.closed
    while not closed.is_set():
        try:
            async with connect_async(watch.address.url, **watch.options) as socket:
                with open_watches.holding(socket):
                    if closed.is_set():  # while it was opened
                        return
                    await socket.send(watch.subscribe_message())
                    async for message in socket:
                        news = watch.on_message(message)
                        if news is not None:
                            yield news
                        elif is_back:
                            for one in watch.gap():
                                yield one
            await open_watches.pause(watch.pause())
        except (OSError, TimeoutError, WebSocketException) as exc:
            await open_watches.pause(watch.pause(exc))
        is_back = True
