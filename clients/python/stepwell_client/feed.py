"""`Feed`: steps of many streams over one WebSocket, one step in flight per stream."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Self

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from stepwell_client.errors import ClientError
from stepwell_client.http_transport import FeedAddress, no_reply
from stepwell_client.protocol.decoding import NoReply, RawReply
from stepwell_client.protocol.exchange import Send
from stepwell_client.protocol.inputs import Inputs, Source, encode_body
from stepwell_client.protocol.requests import ClientRequest
from stepwell_client.results import StepResult
from stepwell_client.websockets import open_async_socket, rejected_handshake
from stepwell_client.wire.formats import MSGPACK

_PROTOCOL = Subprotocol("stepwell.msgpack")
_CLOSE_WITHIN_S = 2.0
_MAX_MESSAGE_BYTES = 65536
"""Larger timesteps are sent over HTTP: the service closes a feed on a message above its limit, without an error for
the stream concerned."""

StepStream = Callable[[str, Inputs, Source | None, Send], Awaitable[StepResult]]


class Feed:
    """A live feed of one model: `async with model.feed() as feed: result = await feed.step("pump-7", x)`.

    Steps of different streams are in flight at the same time. Steps of one stream are sent one after the other, in
    the order of the calls, because the service keeps only the response to a stream's newest step for replay. If the
    connection is lost, pending steps are sent again over the next one, with the same `seq`.
    """

    def __init__(self, address: FeedAddress, step_stream: StepStream, send_over_http: Send) -> None:
        """Use `AsyncModel.feed`.

        Args:
            address: The feed's address.
            step_stream: Steps a stream with a given send function.
            send_over_http: Sends requests that a feed cannot carry.
        """
        self._address = address
        self._step_stream = step_stream
        self._send_over_http = send_over_http
        self._opening = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._connection: ClientFeedConnection | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def step(self, stream: str, x: Inputs, *, source: Source | None = None) -> StepResult:
        """Step a stream by one timestep and return the prediction.

        Args:
            stream: The stream's id.
            x: Shape `(*row)` per input; converted to the model's dtypes if that loses no value.
            source: As for `Stream.step`.

        Raises:
            ClientError: The step was rejected, or no response arrived in time; `closed`: the feed is closed.
        """
        return await self._step_stream(stream, x, source, self._send)

    async def _send(self, request: ClientRequest) -> RawReply | NoReply:
        if request.stream is None or request.document is None:
            return await self._send_over_http(request)
        number = next(self._numbers)
        message = encode_body({"id": number, "stream": request.stream, **request.document})
        if len(message) > _MAX_MESSAGE_BYTES:
            return await self._send_over_http(request)
        if request.wait:
            await asyncio.sleep(request.wait)
        sent = False
        try:
            async with asyncio.timeout(request.timeout):
                connection = await self._open()
                sent = True
                return await connection.send_and_wait(number, message)
        except InvalidStatus as exc:
            return rejected_handshake(exc)
        except (OSError, TimeoutError, WebSocketException) as exc:
            return no_reply(exc, self._address.url, sent=sent)

    async def _open(self) -> ClientFeedConnection:
        """Return the open connection, reconnecting if it was lost."""
        async with self._opening:
            if self._closed:
                raise ClientError(
                    "closed",
                    "The feed was closed before the step was sent, or while it waited for its response.",
                    fix="Open another feed and repeat the step: it is applied at most once.",
                    applied="unknown",
                    retry="same",
                )
            if self._connection is None or self._connection.ended:
                self._connection = await ClientFeedConnection.open(self._address)
            return self._connection


class _ReplyEnvelope(msgspec.Struct):
    """The fields of a feed message that assign it to a request, and its problem, if it is one."""

    id: int | None = None
    error: msgspec.Raw = msgspec.Raw()


class ClientFeedConnection:
    """One open WebSocket with its pending messages."""

    def __init__(self, socket: ClientConnection) -> None:
        """Use `open`."""
        self._socket = socket
        self._pending: dict[int, asyncio.Future[RawReply | NoReply]] = {}
        self._reader = asyncio.create_task(self._read(), name="client-feed-reader")

    @classmethod
    async def open(cls, address: FeedAddress) -> ClientFeedConnection:
        """Connect; the caller limits the time.

        Raises:
            OSError: Nothing responds.
            WebSocketException: The handshake failed; `InvalidStatus` has the response.
        """
        socket = await open_async_socket(
            address,
            subprotocols=[_PROTOCOL],
            additional_headers=dict(address.headers),
            compression=None,
            max_size=None,
            open_timeout=None,
            close_timeout=_CLOSE_WITHIN_S,
        )
        return cls(socket)

    @property
    def ended(self) -> bool:
        """Whether the connection was lost or closed."""
        return self._reader.done()

    async def send_and_wait(self, number: int, message: bytes) -> RawReply | NoReply:
        """Send a message and return the reply with its number, or a `NoReply` if the connection is lost."""
        future: asyncio.Future[RawReply | NoReply] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            await self._socket.send(message)
            return await future
        finally:
            del self._pending[number]

    async def close(self) -> None:
        """Close the connection; pending steps get a `NoReply`."""
        await self._socket.close()
        await self._reader

    async def _read(self) -> None:
        reason = "the connection was closed"
        try:
            async for message in self._socket:
                self._on_message(message if isinstance(message, bytes) else message.encode())
        except ConnectionClosed as exc:
            reason = str(exc)
        finally:
            for future in self._pending.values():
                if not future.done():
                    future.set_result(NoReply(f"The feed was lost before the response arrived: {reason}.", sent=True))

    def _on_message(self, message: bytes) -> None:
        """Resolve the step that a message replies to; a message without an `id` replies to the oldest step."""
        try:
            envelope = msgspec.msgpack.decode(message, type=_ReplyEnvelope)
        except msgspec.MsgspecError:
            envelope = _ReplyEnvelope()  # the oldest step gets the message, and fails with `unreadable_answer`
        number = next(iter(self._pending), None) if envelope.id is None else envelope.id
        future = self._pending.get(number) if number is not None else None
        if future is None or future.done():
            return  # its request timed out
        problem = bytes(envelope.error)
        future.set_result(RawReply(400, problem, MSGPACK) if problem else RawReply(200, message, MSGPACK))
