"""`AsyncClient`: streams for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import httpx

from service.client import http
from service.client.answers import Answer, ClientError, Event, Gap, Rollout, Snapshot, State, Status
from service.client.exchanges import Ask, Exchange, OnResend, Place, Returns, Send, busy, carry_async
from service.client.feed import Feed
from service.client.handles import KEEP_STREAMS, Handles
from service.client.memory import KEEP_BYTES, Memory
from service.client.operations import Operations
from service.client.replay import timesteps_of, with_bar
from service.client.replies import Lost, Reply
from service.client.tensors import Inputs
from service.client.watching import OpenAsyncWatches, Watch, follow_async

T = TypeVar("T")


class AsyncClient:
    """A service, as `Client` is, to be awaited. It belongs to one event loop."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = 60.0,
        *,
        keep_bytes: int = KEEP_BYTES,
        keep_streams: int = KEEP_STREAMS,
        on_resend: OnResend | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            url: Where the service is, `http://HOST:PORT`.
            key: API key, where the service asks for one.
            timeout: Seconds that one call may take, with all its retries and with waiting for the stream's other calls.
            keep_bytes: Memory for what was sent, which is sent again where the store loses it; 0: nothing is kept.
            keep_streams: Handles that a model keeps although nobody else holds them; as for `Client`.
            on_resend: Told of what is sent again: the stream, how many requests were, and of how many.

        Raises:
            ClientError: `bad_url`.
        """
        self._http = httpx.AsyncClient(**http.options(url, key))
        self._turn = asyncio.Semaphore(http.MOST)  # httpx gets slow where many wait for its connections
        self._timeout = timeout
        self._keep_streams = keep_streams
        self._memory = Memory(keep_bytes) if keep_bytes else None
        self._on_resend = on_resend
        self._watches = OpenAsyncWatches()

    def model(self, name: str) -> AsyncModel:
        """Return a model, by its name.

        What is known of its streams is kept in what is returned: two of them are two writers.

        Raises:
            ClientError: `bad_request`: no model can have this name.
        """
        exchanges = Operations(name, self._timeout, memory=self._memory, on_resend=self._on_resend)
        return AsyncModel(self, name, exchanges, self._keep_streams)

    async def aclose(self) -> None:
        """Close the connections; watches end."""
        await self._watches.close()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, ask: Ask) -> Reply | Lost:
        if ask.wait:
            await asyncio.sleep(ask.wait)
        if self._watches.closed.is_set():
            raise http.closed()
        sent = False
        try:
            async with asyncio.timeout(ask.timeout), self._turn:
                sent = True
                return http.reply(await self._http.request(**http.request(ask)))
        except (httpx.RequestError, TimeoutError) as exc:
            return http.lost(exc, self._http.base_url, sent=sent)


class AsyncModel:
    """A model of a service, and what is known of its streams."""

    def __init__(self, client: AsyncClient, name: str, exchanges: Operations, keep_streams: int) -> None:
        """Use `AsyncClient.model`."""
        self.name = name
        self._client = client
        self._exchanges = exchanges
        self._send = client._send
        self._handles = Handles(lambda place: AsyncStream(self, exchanges, place, client._send), keep_streams)

    def stream(self, name: str) -> AsyncStream:
        """Return a stream, by its id; asked again, the same.

        Raises:
            ClientError: `bad_request`: no stream can have this id.
        """
        return self._handles.get(name)

    async def step_many(self, inputs: Mapping[str, Inputs]) -> dict[str, Answer | ClientError]:
        """Move many streams by one timestep each, in one request; as `Model.step_many`."""
        streams = [self.stream(name) for name in sorted(inputs)]  # in one order, so that no two calls lock each other
        exchange = self._exchanges.move_many([stream._place for stream in streams], inputs)
        async with _turns(streams, self._exchanges.timeout):
            return await carry_async(exchange, self._send)

    def feed(self) -> Feed:
        """Return a feed: many streams on one WebSocket, to be used in `async with`."""

        async def move(name: str, x: Inputs, send: Send) -> Answer:
            stream = self.stream(name)
            exchange = self._exchanges.move(stream._place, x)
            async with _turns([stream], self._exchanges.timeout):
                return await carry_async(exchange, send)

        return Feed(http.feed_address(self._client._http, f"{self._exchanges.path}/feed"), move, self._send)

    def watch(
        self, stream: str | None = None, *, prefix: str = "", since: int | None = None, inputs: bool = False
    ) -> AsyncIterator[Event | Gap]:
        """Follow predictions as they are committed; as `Model.watch`, to be read with `async for`."""
        address = http.feed_address(self._client._http, "/v1/watch")
        return follow_async(Watch(address, self.name, stream, prefix, since, inputs=inputs), self._client._watches)


class AsyncStream:
    """A stream's handle, as `Stream` is, to be awaited; calls that come at once are made one after the other.

    Attributes:
        name: The stream's id.
    """

    def __init__(self, model: AsyncModel, exchanges: Operations, place: Place, send: Send) -> None:
        """Use `AsyncModel.stream`."""
        self._model = model
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

    async def reset(self, to: str | None = None) -> Answer:
        """Bring the stream back to its initial state, or to a snapshot; as `Stream.reset`."""
        if to is not None:
            return await self._run(self._exchanges.reset_to(self._place, to))
        return await self._run(self._exchanges.reset(self._place))

    async def replay(
        self, rows: Any, *, columns: Sequence[str] | None = None, progress: bool = False
    ) -> AsyncIterator[Answer]:
        """Step through recorded timesteps; as `Stream.replay`, to be read with `async for`."""
        timesteps = timesteps_of(rows, columns)
        for x in with_bar(timesteps, self.name) if progress else timesteps:
            yield await self.step(x)

    async def peek(self, x: Inputs, *, chunk: bool = False) -> Answer:
        """Return what a step would be answered; as `Stream.peek`."""
        return await carry_async(self._exchanges.peek(self._place, x, chunk=chunk), self._send)

    async def rollout(self, horizon: int, x: Inputs | None = None, *, commit: bool = False, **options: Any) -> Rollout:
        """Return where the stream goes by its own predictions; as `Stream.rollout`."""
        return await self._run(self._exchanges.rollout(self._place, horizon, x, options, commit=commit))

    async def fork(self, to: str, *, snapshot: str | None = None) -> AsyncStream:
        """Begin another stream as this one is now; as `Stream.fork`."""
        other = self._model.stream(to)
        await other._run(self._exchanges.fork(self._place, other._place, snapshot))
        return other

    async def snapshots(self) -> list[Snapshot]:
        """List the stream's snapshots; as `Stream.snapshots`."""
        return await carry_async(self._exchanges.snapshots(self._place), self._send)

    async def take_snapshot(self, name: str) -> Answer:
        """Copy the stream as it is now; as `Stream.take_snapshot`."""
        return await carry_async(self._exchanges.take_snapshot(self._place, name), self._send)

    async def forget_snapshot(self, name: str) -> None:
        """Forget a snapshot; as `Stream.forget_snapshot`."""
        await carry_async(self._exchanges.forget_snapshot(self._place, name), self._send)

    async def state(self) -> State:
        """Return the stream's state; as `Stream.state`."""
        return await carry_async(self._exchanges.state(self._place), self._send)

    async def put_state(self, state: State) -> Answer:
        """Let the stream go on from a state; as `Stream.put_state`."""
        return await self._run(self._exchanges.put_state(self._place, state))

    def watch(self, *, since: int | None = None, inputs: bool = False) -> AsyncIterator[Event | Gap]:
        """Follow the stream; as `AsyncModel.watch`."""
        return self._model.watch(self.name, since=since, inputs=inputs)

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
        async with _turns([self], self._exchanges.timeout):
            return await carry_async(exchange, self._send)


@asynccontextmanager
async def _turns(streams: Sequence[AsyncStream], timeout: float) -> AsyncIterator[None]:
    """Hold the locks of streams, as its namesake in `sync` does."""
    taken: list[AsyncStream] = []
    try:
        try:
            async with asyncio.timeout(timeout):
                for stream in streams:
                    await stream._lock.acquire()
                    taken.append(stream)
        except TimeoutError:
            raise busy(streams[len(taken)].name, timeout) from None
        yield
    finally:
        for stream in taken:
            stream._lock.release()
