"""What the client for asyncio does in its own way; `on_threads` has the same names for threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import httpx2
from websockets.asyncio.client import ClientConnection

from stepwell_client import http_transport
from stepwell_client.protocol.decoding import NoReply, RawReply
from stepwell_client.protocol.requests import ClientRequest

Lock = asyncio.Lock


async def acquire(lock: Lock, timeout: float) -> bool:
    """Acquire a lock and return True, or False if that takes longer than the timeout."""
    try:
        async with asyncio.timeout(timeout):
            return await lock.acquire()
    except TimeoutError:
        return False


async def run_blocking(function: Callable[[], object]) -> None:
    """Run a function that blocks."""
    await asyncio.to_thread(function)


class Http:
    """Sends requests over HTTP, each with a limit for its whole time; for one event loop.

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
        transport = None  # the default one of httpx2, which uses the proxies of the environment
        if self._socket is not None:
            transport = httpx2.AsyncHTTPTransport(uds=self._socket, limits=http_transport.LIMITS)
        self.client = httpx2.AsyncClient(**options, transport=transport)
        # a request that times out here was certainly not sent; of one that times out in httpx2 that is not known
        self._slots = asyncio.Semaphore(http_transport.MAX_CONNECTIONS)

    def feed_address(self, path: str) -> http_transport.FeedAddress:
        """Return the WebSocket address of a path of the service."""
        return http_transport.feed_address(self.client, path, self._socket)

    async def send(self, request: ClientRequest) -> RawReply | NoReply:
        """Send a request and return its reply, or a `NoReply` if none arrived within the request's timeout."""
        sent = False
        try:
            async with asyncio.timeout(request.timeout), self._slots:
                sent = True
                return http_transport.reply(await self.client.request(**http_transport.request_options(request)))
        except (httpx2.RequestError, TimeoutError) as exc:
            return http_transport.no_reply(exc, self.client.base_url, sent=sent)

    async def lines(self, request: ClientRequest) -> AsyncGenerator[str | RawReply | NoReply]:
        """Send a request and yield the lines of its events; a reply without events alone, and a `NoReply` at last."""
        options = http_transport.event_options(request)
        try:
            async with self._slots, self.client.stream(**options) as response:
                if not http_transport.has_events(response):
                    await response.aread()
                    yield http_transport.reply(response)
                    return
                async for line in response.aiter_lines():
                    yield line
        except httpx2.RequestError as exc:
            yield http_transport.no_reply(exc, self.client.base_url)

    async def aclose(self) -> None:
        """Close all connections."""
        await self.client.aclose()


class OpenWatches:
    """The open watch connections of a client, closed with the client; for one event loop.

    Attributes:
        closed: Set once the client is closed.
    """

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._sockets: set[ClientConnection] = set()

    @asynccontextmanager
    async def register(self, socket: ClientConnection) -> AsyncIterator[None]:
        """Include a connection in those that `aclose` closes, for the duration of the block."""
        self._sockets.add(socket)
        try:
            yield
        finally:
            self._sockets.discard(socket)

    async def pause(self, seconds: float) -> None:
        """Wait for some seconds, or until the client is closed."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.closed.wait()

    async def aclose(self) -> None:
        """Close all connections, which ends the watches."""
        self.closed.set()
        await asyncio.gather(*(socket.close() for socket in self._sockets))
