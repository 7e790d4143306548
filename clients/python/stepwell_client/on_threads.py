"""What the client for threads does in its own way; `on_asyncio` has the same names for asyncio."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import httpx2
from websockets.sync.client import ClientConnection

from stepwell_client import http_transport
from stepwell_client.deadline import DeadlineTransport
from stepwell_client.environment_proxy import environment_proxy
from stepwell_client.protocol.decoding import NoReply, RawReply
from stepwell_client.protocol.requests import ClientRequest

Lock = threading.Lock


def acquire(lock: Lock, timeout: float) -> bool:
    """Acquire a lock and return True, or False if that takes longer than the timeout."""
    return lock.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))


def run_blocking(function: Callable[[], object]) -> None:
    """Run a function that blocks."""
    function()


class Http:
    """Sends requests over HTTP, each with a limit for its whole time. Threads may share it.

    Attributes:
        client: The client of httpx2 that sends them.
    """

    def __init__(self, url: str, key: str | None) -> None:
        """Create it; nothing is sent yet.

        Args:
            url: As for `http_transport.options`.
            key: The API key, if there is one.

        Raises:
            ClientError: As for `http_transport.options`.
        """
        self._socket = http_transport.socket_of(url)
        options = http_transport.options(url, key)
        proxy = environment_proxy(options["base_url"]) if self._socket is None else None
        transport = DeadlineTransport(http_transport.LIMITS, socket=self._socket, proxy=proxy)
        self.client = httpx2.Client(**options, transport=transport)

    def feed_address(self, path: str) -> http_transport.FeedAddress:
        """Return the WebSocket address of a path of the service."""
        return http_transport.feed_address(self.client, path, self._socket)

    def send(self, request: ClientRequest) -> RawReply | NoReply:
        """Send a request and return its reply, or a `NoReply` if none arrived within the request's timeout."""
        try:
            return http_transport.reply(self.client.request(**http_transport.request_options(request)))
        except httpx2.RequestError as exc:
            return http_transport.no_reply(exc, self.client.base_url)

    def lines(self, request: ClientRequest) -> Generator[str | RawReply | NoReply]:
        """Send a request and yield the lines of its events; a reply without events alone, and a `NoReply` at last."""
        try:
            with self.client.stream(**http_transport.event_options(request)) as response:
                if not http_transport.has_events(response):
                    response.read()
                    yield http_transport.reply(response)
                    return
                yield from response.iter_lines()
        except httpx2.RequestError as exc:
            yield http_transport.no_reply(exc, self.client.base_url)

    def close(self) -> None:
        """Close all connections."""
        self.client.close()


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

    def pause(self, seconds: float) -> None:
        """Wait for some seconds, or until the client is closed."""
        self.closed.wait(seconds)

    def close(self) -> None:
        """Close all connections, which ends the watches in all threads."""
        self.closed.set()
        with self._lock:
            sockets = list(self._sockets)
        for socket in sockets:
            socket.close()
