"""`AsyncClient`: streams for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Self, TypeVar

import httpx

from service.client import http
from service.client.answers import Answer, ClientError, Status
from service.client.exchanges import Ask, Exchange, ModelExchanges, Place, Returns, Send, carry_async
from service.client.feed import Feed
from service.client.replies import Lost, Reply
from service.client.tensors import Inputs

T = TypeVar("T")


class AsyncClient:
    """A service, as `Client` is, to be awaited. It belongs to one event loop."""

    def __init__(self, url: str, key: str | None = None, timeout: float = 60.0) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Where the service is, `http://HOST:PORT`.
            key: API key, where the service asks for one.
            timeout: Seconds that one call may take, with all its retries.

        Raises:
            ClientError: `bad_url`.
        """
        self._http = httpx.AsyncClient(**http.options(url, key))
        self._turn = asyncio.Semaphore(http.MOST)  # httpx gets slow where many wait for its connections
        self._timeout = timeout

    def model(self, name: str) -> AsyncModel:
        """Return a model, by its name.

        What is known of its streams is kept in what is returned: two of them are two writers.

        Raises:
            ClientError: `bad_request`: no model can have this name.
        """
        exchanges = ModelExchanges(name, self._timeout)
        return AsyncModel(exchanges, self._send, http.feed_address(self._http, exchanges.path))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, ask: Ask) -> Reply | Lost:
        if ask.wait:
            await asyncio.sleep(ask.wait)
        sent = False
        try:
            async with asyncio.timeout(ask.timeout), self._turn:
                sent = True
                return http.reply(await self._http.request(**http.request(ask)))
        except (httpx.RequestError, TimeoutError) as exc:
            return http.lost(exc, self._http.base_url, sent=sent)


class AsyncModel:
    """A model of a service, and what is known of its streams."""

    def __init__(self, exchanges: ModelExchanges, send: Send, address: http.FeedAddress) -> None:
        """Use `AsyncClient.model`."""
        self._exchanges = exchanges
        self._send = send
        self._address = address
        self._streams: dict[str, AsyncStream] = {}

    def stream(self, name: str) -> AsyncStream:
        """Return a stream, by its id; asked again, the same.

        Raises:
            ClientError: `bad_request`: no stream can have this id.
        """
        if name not in self._streams:
            self._streams[name] = AsyncStream(self._exchanges, Place.of(name), self._send)
        return self._streams[name]

    async def step_many(self, inputs: Mapping[str, Inputs]) -> dict[str, Answer | ClientError]:
        """Move many streams by one timestep each, in one request; as `Model.step_many`."""
        streams = [self.stream(name) for name in sorted(inputs)]  # in one order, so that no two calls lock each other
        async with AsyncExitStack() as held:
            for stream in streams:
                await held.enter_async_context(stream._lock)
            exchange = self._exchanges.move_many([stream._place for stream in streams], inputs)
            return await carry_async(exchange, self._send)

    def feed(self) -> Feed:
        """Return a feed: many streams on one WebSocket, to be used in `async with`."""

        async def move(name: str, x: Inputs, send: Send) -> Answer:
            stream = self.stream(name)
            async with stream._lock:
                return await carry_async(self._exchanges.move(stream._place, x), send)

        return Feed(self._address, move, self._send)


class AsyncStream:
    """A stream's handle, as `Stream` is, to be awaited; calls that come at once are made one after the other.

    Attributes:
        name: The stream's id.
    """

    def __init__(self, exchanges: ModelExchanges, place: Place, send: Send) -> None:
        """Use `AsyncModel.stream`."""
        self.name = place.stream
        self._place = place
        self._lock = asyncio.Lock()
        self._exchanges = exchanges
        self._send = send

    async def step(self, x: Inputs) -> Answer:
        """Move the stream by one timestep; as `Stream.step`."""
        return await self._run(self._exchanges.move(self._place, x))

    async def steps(self, xs: Inputs, returns: Returns = "all") -> Answer:
        """Move the stream by a chunk of timesteps; as `Stream.steps`."""
        return await self._run(self._exchanges.move(self._place, xs, returns))

    async def prime(self, xs: Inputs) -> Answer:
        """Give the stream its history, without predictions; as `Stream.prime`."""
        return await self.steps(xs, "none")

    async def reset(self) -> Answer:
        """Bring the stream back to its initial state; as `Stream.reset`."""
        return await self._run(self._exchanges.reset(self._place))

    async def resume(self) -> int:
        """Read where the stream stands, and go on from there; as `Stream.resume`."""
        return await self._run(self._exchanges.resume(self._place))

    async def status(self) -> Status:
        """Return where the stream stands; as `Stream.status`."""
        return await carry_async(self._exchanges.status(self._place), self._send)

    async def delete(self) -> None:
        """Forget the stream; as `Stream.delete`."""
        await self._run(self._exchanges.delete(self._place))

    async def _run(self, exchange: Exchange[T]) -> T:
        async with self._lock:
            return await carry_async(exchange, self._send)
