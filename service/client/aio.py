"""`AsyncClient`: streams for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import httpx

from service.client import http_transport
from service.client.decoding import NoReply, Reply
from service.client.feed import Feed
from service.client.handles import KEEP_STREAMS, Handles
from service.client.inputs import Inputs
from service.client.protocol import ClientRequest, Exchange, OnResend, Send, StreamCursor, busy, drive_async
from service.client.replay import timesteps_of, with_bar
from service.client.resend_buffer import KEEP_BYTES, ResendBuffer
from service.client.results import ClientError, Event, Gap, Rollout, Snapshot, State, Status, StepResult
from service.client.stream_ops import StreamOps
from service.client.watch import OpenAsyncWatches, WatchCursor, follow_async
from service.types import ReturnMode

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
        self._http = httpx.AsyncClient(**http_transport.options(url, key))
        self._turn = asyncio.Semaphore(
            http_transport.MAX_CONNECTIONS
        )  # httpx gets slow where many wait for its connections
        self._timeout = timeout
        self._keep_streams = keep_streams
        self._memory = ResendBuffer(keep_bytes) if keep_bytes else None
        self._on_resend = on_resend
        self._watches = OpenAsyncWatches()

    def model(self, name: str) -> AsyncModel:
        """Return a model, by its name.

        What is known of its streams is kept in what is returned: two of them are two writers.

        Raises:
            ClientError: `bad_request`: no model can have this name.
        """
        exchanges = StreamOps(name, self._timeout, memory=self._memory, on_resend=self._on_resend)
        return AsyncModel(self, name, exchanges, self._keep_streams)

    async def aclose(self) -> None:
        """Close the connections; watches end."""
        await self._watches.close()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _send(self, ask: ClientRequest) -> Reply | NoReply:
        if ask.wait:
            await asyncio.sleep(ask.wait)
        if self._watches.closed.is_set():
            raise http_transport.closed()
        sent = False
        try:
            async with asyncio.timeout(ask.timeout), self._turn:
                sent = True
                return http_transport.reply(await self._http.request(**http_transport.request(ask)))
        except (httpx.RequestError, TimeoutError) as exc:
            return http_transport.lost(exc, self._http.base_url, sent=sent)


class AsyncModel:
    """A model of a service, and what is known of its streams."""

    def __init__(self, client: AsyncClient, name: str, exchanges: StreamOps, keep_streams: int) -> None:
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

    async def step_many(self, inputs: Mapping[str, Inputs]) -> dict[str, StepResult | ClientError]:
        """Move many streams by one timestep each, in one request; as `Model.step_many`."""
        streams = [self.stream(name) for name in sorted(inputs)]  # in one order, so that no two calls lock each other
        exchange = self._exchanges.step_many([stream._place for stream in streams], inputs)
        async with _turns(streams, self._exchanges.timeout):
            return await drive_async(exchange, self._send)

    def feed(self) -> Feed:
        """Return a feed: many streams on one WebSocket, to be used in `async with`."""

        async def move(name: str, x: Inputs, send: Send) -> StepResult:
            stream = self.stream(name)
            exchange = self._exchanges.step(stream._place, x)
            async with _turns([stream], self._exchanges.timeout):
                return await drive_async(exchange, send)

        return Feed(http_transport.feed_address(self._client._http, f"{self._exchanges.path}/feed"), move, self._send)

    def watch(
        self, stream: str | None = None, *, prefix: str = "", since: int | None = None, inputs: bool = False
    ) -> AsyncIterator[Event | Gap]:
        """Follow predictions as they are committed; as `Model.watch`, to be read with `async for`."""
        address = http_transport.feed_address(self._client._http, "/v1/watch")
        return follow_async(
            WatchCursor(address, self.name, stream, prefix, since, inputs=inputs), self._client._watches
        )


class AsyncStream:
    """A stream's handle, as `Stream` is, to be awaited; calls that come at once are made one after the other.

    Attributes:
        name: The stream's id.
    """

    def __init__(self, model: AsyncModel, exchanges: StreamOps, place: StreamCursor, send: Send) -> None:
        """Use `AsyncModel.stream`."""
        self._model = model
        self.name = place.stream
        self._place = place
        self._lock = asyncio.Lock()
        self._exchanges = exchanges
        self._send = send

    async def step(self, x: Inputs) -> StepResult:
        """Move the stream by one timestep; as `Stream.step`."""
        return await self._run(self._exchanges.step(self._place, x))

    async def steps(self, xs: Inputs, returns: ReturnMode = "all") -> StepResult:
        """Move the stream by a chunk of timesteps; as `Stream.steps`."""
        return await self._run(self._exchanges.step(self._place, xs, returns))

    async def prime(self, xs: Inputs) -> StepResult:
        """Give the stream its history, without predictions; as `Stream.prime`."""
        return await self.steps(xs, "none")

    async def reset(self, to: str | None = None) -> StepResult:
        """Bring the stream back to its initial state, or to a snapshot; as `Stream.reset`."""
        if to is not None:
            return await self._run(self._exchanges.reset_to(self._place, to))
        return await self._run(self._exchanges.reset(self._place))

    async def replay(
        self, rows: Any, *, columns: Sequence[str] | None = None, progress: bool = False
    ) -> AsyncIterator[StepResult]:
        """Step through recorded timesteps; as `Stream.replay`, to be read with `async for`."""
        timesteps = timesteps_of(rows, columns)
        for x in with_bar(timesteps, self.name) if progress else timesteps:
            yield await self.step(x)

    async def peek(self, x: Inputs, *, chunk: bool = False) -> StepResult:
        """Return what a step would be answered; as `Stream.peek`."""
        return await drive_async(self._exchanges.peek(self._place, x, chunk=chunk), self._send)

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
        return await drive_async(self._exchanges.snapshots(self._place), self._send)

    async def take_snapshot(self, name: str) -> StepResult:
        """Copy the stream as it is now; as `Stream.take_snapshot`."""
        return await drive_async(self._exchanges.take_snapshot(self._place, name), self._send)

    async def forget_snapshot(self, name: str) -> None:
        """Forget a snapshot; as `Stream.forget_snapshot`."""
        await drive_async(self._exchanges.forget_snapshot(self._place, name), self._send)

    async def state(self) -> State:
        """Return the stream's state; as `Stream.state`."""
        return await drive_async(self._exchanges.state(self._place), self._send)

    async def put_state(self, state: State) -> StepResult:
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
        return await drive_async(self._exchanges.status(self._place), self._send)

    async def delete(self) -> None:
        """Forget the stream; as `Stream.delete`."""
        await self._run(self._exchanges.delete(self._place))

    async def _run(self, exchange: Exchange[T]) -> T:
        async with _turns([self], self._exchanges.timeout):
            return await drive_async(exchange, self._send)


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
