"""`AsyncClient`: the client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

import httpx2

from stepwell_client import http_transport, memory
from stepwell_client.errors import ClientError
from stepwell_client.feed import Feed
from stepwell_client.handles import KEEP_STREAMS, Handles
from stepwell_client.memory import StrPath
from stepwell_client.protocol.decoding import ModelInfo, NoReply, RawReply
from stepwell_client.protocol.exchange import Exchange, Send, drive_async
from stepwell_client.protocol.inputs import Inputs, Source
from stepwell_client.protocol.requests import ClientRequest, StreamCursor
from stepwell_client.protocol.resend_buffer import KEEP_BYTES, ResendBuffer
from stepwell_client.protocol.steps import OnResend, busy
from stepwell_client.protocol.stream_ops import StreamOps
from stepwell_client.results import Event, Gap, Rollout, Snapshot, State, Status, StepResult
from stepwell_client.tables import Columns, columns_by_input, rows_of_table, table_of, with_bar
from stepwell_client.watch import OpenAsyncWatches, WatchCursor, follow_async
from stepwell_client.wire.outcomes import ReturnMode

T = TypeVar("T")


class AsyncClient:
    """A connection to a service, for use on one event loop; the asynchronous counterpart of `Client`.

    Attributes:
        url: The address; as for `Client`.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        timeout: float = 60.0,
        *,
        models: StrPath | Sequence[StrPath] | None = None,
        settings: Mapping[str, Any] | None = None,
        keep_bytes: int = KEEP_BYTES,
        keep_streams: int = KEEP_STREAMS,
        on_resend: OnResend | None = None,
    ) -> None:
        """Create the client; nothing is sent yet.

        Args:
            url: The service's address, `http://HOST:PORT`; or `:memory:`, an engine in this process with a private
                store, which starts here (in about a second) and ends when the client is closed.
            key: API key, if the service requires one.
            timeout: Seconds that one call may take, including its retries and its wait for other calls of the stream.
            models: For `:memory:`, one or more folders with models; None: `models`.
            settings: For `:memory:`, settings of the service by name, for example `{"history": "256"}`.
            keep_bytes: Memory for sent requests, which are resent if the store loses them; 0 keeps none.
            keep_streams: Unreferenced stream handles that a model keeps; as for `Client`.
            on_resend: Called while requests are resent, with the stream's id, the number of requests already
                resent and the number of requests to resend.

        Raises:
            ClientError: `bad_url`; `bad_request`: no header can have the key.
            StepwellError: The engine in this process does not start.
        """
        self._engine = memory.start(url, models, settings)
        self.url = url if self._engine is None else self._engine.url
        transport = http_transport.transport_of(self.url)
        self._http = httpx2.AsyncClient(**http_transport.options(self.url, key), transport=transport)
        # a request that times out here was certainly not sent; of one that times out in httpx2 that is not known
        self._request_slots = asyncio.Semaphore(http_transport.MAX_CONNECTIONS)
        self._timeout = timeout
        self._keep_streams = keep_streams
        self._resend_buffer = ResendBuffer(keep_bytes) if keep_bytes > 0 else None
        self._on_resend = on_resend
        self._watches = OpenAsyncWatches()

    def model(self, name: str) -> AsyncModel:
        """Return a model by name.

        The returned object holds the positions of its streams, so two objects of one model are two independent writers.

        Raises:
            ClientError: `bad_request`: the name is not a valid model name.
        """
        operations = StreamOps(name, self._timeout, resend_buffer=self._resend_buffer, on_resend=self._on_resend)
        return AsyncModel(self, name, operations, self._keep_streams)

    async def aclose(self) -> None:
        """Close all connections, including those of active watches, and end the engine in this process."""
        await self._watches.close()
        await self._http.aclose()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def feed_address(self, path: str) -> http_transport.FeedAddress:
        """Return the WebSocket address of a path of the service."""
        return http_transport.feed_address(self._http, path, http_transport.socket_of(self.url))

    async def _send(self, request: ClientRequest) -> RawReply | NoReply:
        if request.wait:
            await asyncio.sleep(request.wait)
        if self._watches.closed.is_set():
            raise http_transport.client_closed()
        sent = False
        try:
            async with asyncio.timeout(request.timeout), self._request_slots:
                sent = True
                return http_transport.reply(await self._http.request(**http_transport.request_options(request)))
        except (httpx2.RequestError, TimeoutError) as exc:
            return http_transport.no_reply(exc, self._http.base_url, sent=sent)


class AsyncModel:
    """A model of a service, with the positions of its streams."""

    def __init__(self, client: AsyncClient, name: str, operations: StreamOps, keep_streams: int) -> None:
        """Use `AsyncClient.model`."""
        self.name = name
        self._client = client
        self._operations = operations
        self._send = client._send
        self._handles = Handles(lambda cursor: AsyncStream(self, operations, cursor, client._send), keep_streams)

    def stream(self, name: str) -> AsyncStream:
        """Return the handle of a stream; the same id returns the same handle.

        Raises:
            ClientError: `bad_request`: the id is not a valid stream id.
        """
        return self._handles.get(name)

    async def describe(self) -> ModelInfo:
        """Return the model's inputs and outputs; as `Model.describe`."""
        return await drive_async(self._operations.describe(), self._send)

    async def step_many(
        self, inputs: Mapping[str, Inputs], *, sources: Mapping[str, Source] | None = None
    ) -> dict[str, StepResult | ClientError]:
        """Step many streams by one timestep each; as `Model.step_many`."""
        streams, invalid = self._handles.all_of(inputs)  # one lock order for all calls, so no deadlock
        exchange = self._operations.step_many([stream._cursor for stream in streams], inputs, sources)
        async with _locked(streams, self._operations.timeout):
            results = await drive_async(exchange, self._send)
        return {name: (invalid | results)[name] for name in inputs}

    def feed(self) -> Feed:
        """Return a feed, which steps many streams over one WebSocket; use it in `async with`."""

        async def step_stream(name: str, x: Inputs, source: Source | None, send: Send) -> StepResult:
            stream = self.stream(name)
            exchange = self._operations.step(stream._cursor, x, source=source)
            async with _locked([stream], self._operations.timeout):
                return await drive_async(exchange, send)

        return Feed(self._client.feed_address(f"{self._operations.path}/feed"), step_stream, self._send)

    def watch(
        self, stream: str | None = None, *, prefix: str = "", since: int | None = None, inputs: bool = False
    ) -> AsyncIterator[Event | Gap]:
        """Yield predictions as they are committed; as `Model.watch`, for `async for`."""
        address = self._client.feed_address("/v1/watch")
        return follow_async(
            WatchCursor(address, self.name, stream, prefix, since, inputs=inputs), self._client._watches
        )


class AsyncStream:
    """A stream's handle, the asynchronous counterpart of `Stream`; concurrent calls run one after the other.

    Attributes:
        name: The stream's id.
    """

    def __init__(self, model: AsyncModel, operations: StreamOps, cursor: StreamCursor, send: Send) -> None:
        """Use `AsyncModel.stream`."""
        self._model = model
        self.name = cursor.stream
        self._cursor = cursor
        self._lock = asyncio.Lock()
        self._forked: AsyncStream | None = None  # as in `Stream`
        self._operations = operations
        self._send = send

    async def step(self, x: Inputs, *, source: Source | None = None) -> StepResult:
        """Step the stream by one timestep; as `Stream.step`."""
        return await self._run(self._operations.step(self._cursor, x, source=source))

    async def steps(self, xs: Inputs, returns: ReturnMode = "all", *, source: Source | None = None) -> StepResult:
        """Step the stream by a chunk of timesteps; as `Stream.steps`."""
        return await self._run(self._operations.step(self._cursor, xs, returns, source=source))

    async def prime(self, xs: Inputs) -> StepResult:
        """Feed the stream past timesteps without returning predictions; as `Stream.prime`."""
        return await self.steps(xs, "none")

    async def reset(self, to: str | None = None) -> StepResult:
        """Reset the stream to its initial state or to a snapshot; as `Stream.reset`."""
        return await self._run(self._operations.reset(self._cursor, to))

    async def replay(
        self, rows: Any, *, columns: Columns | None = None, progress: bool = False
    ) -> AsyncIterator[StepResult]:
        """Step through recorded timesteps; as `Stream.replay`, for `async for`."""
        timesteps, table = rows, table_of(rows)
        if table is not None:
            inputs = (await self._model.describe()).inputs
            timesteps = rows_of_table(table, columns_by_input(inputs, list(table.columns), columns), inputs)
        for n, x in enumerate(with_bar(timesteps, self.name) if progress else timesteps):
            try:
                result = await self.step(x)
            except ClientError as exc:
                exc.add_note(f"This is row {n} of the recording, counted from 0.")
                raise
            yield result

    async def peek(self, x: Inputs, *, chunk: bool = False) -> StepResult:
        """Return the result that a step would have, without committing it; as `Stream.peek`."""
        return await drive_async(self._operations.peek(self._cursor, x, chunk=chunk), self._send)

    async def rollout(self, horizon: int, x: Inputs | None = None, *, commit: bool = False, **options: Any) -> Rollout:
        """Run the stream by its own predictions; as `Stream.rollout`."""
        return await self._run(self._operations.rollout(self._cursor, horizon, x, options, commit=commit))

    async def fork(self, to: str, *, snapshot: str | None = None) -> AsyncStream:
        """Create another stream as a copy of this one; as `Stream.fork`."""
        other = self._model.stream(to)
        other._forked = self
        await other._run(self._operations.fork(self._cursor, other._cursor, snapshot))
        other._forked = None
        return other

    async def snapshots(self) -> list[Snapshot]:
        """List the stream's snapshots; as `Stream.snapshots`."""
        return await drive_async(self._operations.snapshots(self._cursor), self._send)

    async def take_snapshot(self, name: str) -> StepResult:
        """Save a named copy of the stream; as `Stream.take_snapshot`."""
        return await self._run(self._operations.take_snapshot(self._cursor, name))

    async def forget_snapshot(self, name: str) -> None:
        """Delete a snapshot; as `Stream.forget_snapshot`."""
        await self._run(self._operations.forget_snapshot(self._cursor, name))

    async def state(self) -> State:
        """Return the stream's state; as `Stream.state`."""
        return await drive_async(self._operations.state(self._cursor), self._send)

    async def put_state(self, state: State) -> StepResult:
        """Replace the stream's state; as `Stream.put_state`."""
        return await self._run(self._operations.put_state(self._cursor, state))

    def watch(self, *, since: int | None = None, inputs: bool = False) -> AsyncIterator[Event | Gap]:
        """Follow the stream; as `AsyncModel.watch`."""
        return self._model.watch(self.name, since=since, inputs=inputs)

    async def resume(self) -> int:
        """Read the stream's position from the service and continue from it; as `Stream.resume`."""
        return await self._run(self._operations.resume(self._cursor))

    async def status(self) -> Status:
        """Return the stream's status; as `Stream.status`."""
        return await drive_async(self._operations.status(self._cursor), self._send)

    async def delete(self) -> None:
        """Delete the stream; as `Stream.delete`."""
        await self._run(self._operations.delete(self._cursor))

    async def _run(self, exchange: Exchange[T]) -> T:
        async with _locked([self], self._operations.timeout):
            return await drive_async(exchange, self._send)


@asynccontextmanager
async def _locked(streams: Sequence[AsyncStream], timeout: float) -> AsyncIterator[None]:
    """Hold the locks of streams, as `sync._locked` does."""
    acquired: list[AsyncStream] = []
    try:
        try:
            async with asyncio.timeout(timeout):
                for stream in streams:
                    await stream._lock.acquire()
                    acquired.append(stream)
        except TimeoutError:
            raise busy(streams[len(acquired)].name, timeout) from None
        yield
    finally:
        for stream in acquired:
            stream._lock.release()
            if stream._cursor.in_doubt:
                stream._model.stream(stream.name)  # is kept, also if it was evicted before
