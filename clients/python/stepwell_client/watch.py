"""Watches of committed predictions, with reconnection."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import msgspec
from websockets.asyncio.client import ClientConnection as AsyncClientConnection
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection
from websockets.typing import Subprotocol

from stepwell_client.http_transport import FeedAddress
from stepwell_client.protocol import decoding
from stepwell_client.protocol.inputs import encode_body
from stepwell_client.results import Event, Gap
from stepwell_client.websockets import open_async_socket, open_socket, rejected_handshake
from stepwell_client.wire.backoff import Backoff

_PROTOCOL: Final = [Subprotocol("stepwell.msgpack")]
_BACKOFF: Final = Backoff(0.2, 5.0, jitter=0.5)
_OPEN_S: Final = 10.0
_CLOSE_S: Final = 1.0


class WatchCursor:
    """One watch's subscription, its position in the stream, and its pauses between connection attempts."""

    def __init__(
        self, address: FeedAddress, model: str, stream: str | None, prefix: str, since: int | None, *, inputs: bool
    ) -> None:
        """Use `Model.watch`."""
        self.address = address
        self._filter: dict[str, Any] = {"model": model} | ({"prefix": prefix} if prefix else {})
        self._stream = stream
        self._since = since
        self._inputs = inputs
        self._failures = 0

    @property
    def options(self) -> dict[str, Any]:
        """Options of `websockets.connect`."""
        return {
            "subprotocols": _PROTOCOL,
            "additional_headers": dict(self.address.headers),
            "compression": None,
            "max_size": None,
            "open_timeout": _OPEN_S,
            "close_timeout": _CLOSE_S,
        }

    def subscribe_message(self) -> bytes:
        """Return the first message of a connection: the subscription and the step to continue after."""
        subscription = dict(self._filter)
        if self._stream is not None:
            subscription["stream"] = self._stream
            if self._since is not None:
                subscription["since"] = self._since
        return encode_body({"watch": [subscription], "inputs": self._inputs})

    def on_message(self, message: bytes | str) -> Event | Gap | None:
        """Return a message's event or gap; None for the confirmation of the subscription.

        Raises:
            ClientError: The service rejected the watch.
        """
        self._failures = 0
        raw = message if isinstance(message, bytes) else message.encode()
        decoded = msgspec.msgpack.decode(raw, type=decoding.WatchMessage)
        if decoded.error is not None:
            raise decoded.error.error()
        if not decoded.stream and not decoded.gap:
            return None
        event = decoded.event()
        if isinstance(event, Event) and self._stream is not None:
            self._since = event.step
        return event

    def pause(self, error: Exception | None = None) -> float:
        """Return the seconds to wait before the next connection attempt.

        Raises:
            ClientError: The service rejected the handshake.
        """
        if isinstance(error, InvalidStatus):
            rejection = decoding.error_in(rejected_handshake(error), mutates=False)
            if rejection is not None and rejection.retry != "same":
                raise rejection
        self._failures += 1
        return _BACKOFF.after(self._failures)

    def gap(self) -> list[Gap]:
        """Return the gap to report after a reconnection that may have missed events; empty if none was missed."""
        return [] if self._stream is not None and self._since is not None else [Gap(1)]


class OpenWatches:
    """The open watch connections of a client, closed with the client. Threads may share it.

    Attributes:
        closed: Set once the client is closed.
    """

    def __init__(self) -> None:
        self.closed = threading.Event()
        self._sockets: set[ClientConnection] = set()
        self._lock = threading.Lock()

    @contextmanager
    def register(self, socket: ClientConnection) -> Iterator[None]:
        """Include a connection in those that `close` closes, for the duration of the block."""
        with self._lock:
            self._sockets.add(socket)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(socket)

    def close(self) -> None:
        """Close all connections, which ends the watches in all threads."""
        self.closed.set()
        with self._lock:
            sockets = list(self._sockets)
        for socket in sockets:
            socket.close()


class OpenAsyncWatches:
    """The asynchronous counterpart of `OpenWatches`, for one event loop."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._sockets: set[AsyncClientConnection] = set()

    @contextmanager
    def register(self, socket: AsyncClientConnection) -> Iterator[None]:
        """Include a connection in those that `close` closes, for the duration of the block."""
        self._sockets.add(socket)
        try:
            yield
        finally:
            self._sockets.discard(socket)

    async def close(self) -> None:
        """Close all connections, which ends the watches."""
        self.closed.set()
        await asyncio.gather(*(socket.close() for socket in self._sockets))

    async def pause(self, seconds: float) -> None:
        """Wait for some seconds, or until the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.closed.wait()


def follow(watch: WatchCursor, open_watches: OpenWatches) -> Iterator[Event | Gap]:
    """Yield a watch's events and gaps, reconnecting as needed, until the client is closed."""
    is_back = False
    closed = open_watches.closed
    while not closed.is_set():
        try:
            with open_socket(watch.address, **watch.options) as socket, open_watches.register(socket):
                if closed.is_set():  # during the handshake
                    return
                socket.send(watch.subscribe_message())
                for message in socket:
                    event = watch.on_message(message)
                    if event is not None:
                        yield event
                    elif is_back:
                        yield from watch.gap()
            closed.wait(watch.pause())
        except (OSError, TimeoutError, WebSocketException) as exc:
            closed.wait(watch.pause(exc))
        is_back = True


async def follow_async(watch: WatchCursor, open_watches: OpenAsyncWatches) -> AsyncIterator[Event | Gap]:
    """Do what `follow` does, asynchronously."""
    is_back = False
    closed = open_watches.closed
    while not closed.is_set():
        try:
            async with open_async_socket(watch.address, **watch.options) as socket:
                with open_watches.register(socket):
                    if closed.is_set():  # during the handshake
                        return
                    await socket.send(watch.subscribe_message())
                    async for message in socket:
                        event = watch.on_message(message)
                        if event is not None:
                            yield event
                        elif is_back:
                            for gap in watch.gap():
                                yield gap
            await open_watches.pause(watch.pause())
        except (OSError, TimeoutError, WebSocketException) as exc:
            await open_watches.pause(watch.pause(exc))
        is_back = True
