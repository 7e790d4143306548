"""`Feed`: many streams on one WebSocket, with as many steps in flight as there are streams."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Self

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from service.client.decoding import NoReply, Reply, seconds
from service.client.http_transport import FeedAddress, lost
from service.client.inputs import Inputs
from service.client.protocol import ClientRequest, Send
from service.client.results import ClientError, StepResult
from service.codec.formats import MSGPACK, encode, format_of_body

_PROTOCOL = Subprotocol("stepwell.msgpack")
_CLOSE_WITHIN_S = 2.0
_LARGEST = 65536
"""Bytes of a message. A larger timestep goes over HTTP: were it too large for the service, the feed would be closed
without a word to whom it concerns."""

Move = Callable[[str, Inputs, Send], Awaitable[StepResult]]


class Feed:
    """A live feed of one model: `async with model.feed() as feed: answer = await feed.step("pump-7", x)`.

    Steps of different streams are in flight together; those of one stream go one after the other, in the order of
    the calls, because a service keeps the answer of a stream's newest step alone. When the connection is lost, the
    steps that wait are sent again over the next one, by the same `seq`.
    """

    def __init__(self, address: FeedAddress, move: Move, aside: Send) -> None:
        """Use `AsyncModel.feed`.

        Args:
            address: Where the feed is.
            move: Moves a stream, by a way to send.
            aside: Sends what does not go over a feed.
        """
        self._address = address
        self._move = move
        self._aside = aside
        self._opening = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._connection: _FeedConnection | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def step(self, stream: str, x: Inputs) -> StepResult:
        """Move a stream by one timestep and return the prediction.

        Args:
            stream: The stream's id.
            x: Shape `(*row)` per input; types are converted to the model's where no value is lost.

        Raises:
            ClientError: It was refused, or got no answer in time; `closed`: the feed was left.
        """
        return await self._move(stream, x, self._send)

    async def _send(self, ask: ClientRequest) -> Reply | NoReply:
        if ask.stream is None or ask.document is None:
            return await self._aside(ask)
        number = next(self._numbers)
        message = encode({"id": number, "stream": ask.stream, **ask.document}, MSGPACK)
        if len(message) > _LARGEST:
            return await self._aside(ask)
        if ask.wait:
            await asyncio.sleep(ask.wait)
        sent = False
        try:
            async with asyncio.timeout(ask.timeout):
                line = await self._open()
                sent = True
                return await line.ask(number, message)
        except InvalidStatus as exc:  # the handshake was refused, by a problem
            response = exc.response
            form = format_of_body(response.headers.get("content-type"))
            return Reply(response.status_code, bytes(response.body), form, seconds(response.headers.get("retry-after")))
        except (OSError, TimeoutError, WebSocketException) as exc:
            return lost(exc, self._address.url, sent=sent)

    async def _open(self) -> _FeedConnection:
        """Return the open connection; made anew where it was lost."""
        async with self._opening:
            if self._closed:
                raise ClientError(
                    "closed",
                    "The feed was left while a step waited for its answer, or before it was sent.",
                    fix="Open another feed and send the step again: it is applied at most once.",
                    applied="unknown",
                    retry="same",
                )
            if self._connection is None or self._connection.ended:
                socket = await connect(
                    self._address.url,
                    subprotocols=[_PROTOCOL],
                    additional_headers=dict(self._address.headers),
                    compression=None,
                    max_size=None,
                    open_timeout=None,  # the ask's own timeout holds here
                    close_timeout=_CLOSE_WITHIN_S,
                )
                self._connection = _FeedConnection(socket)
            return self._connection


class _ReplyEnvelope(msgspec.Struct):
    """What tells whose answer a message is, and whether it is a problem."""

    id: int | None = None
    error: msgspec.Raw = msgspec.Raw()


class _FeedConnection:
    """One connection, and the steps that wait for their answers on it."""

    def __init__(self, socket: ClientConnection) -> None:
        """Take over an open connection."""
        self._socket = socket
        self._waiting: dict[int, asyncio.Future[Reply | NoReply]] = {}
        self._reader = asyncio.create_task(self._read(), name="client-feed-reader")

    @property
    def ended(self) -> bool:
        """The connection was lost or closed."""
        return self._reader.done()

    async def ask(self, number: int, message: bytes) -> Reply | NoReply:
        """Send a message and return what answers its number, or that the connection was lost."""
        answered: asyncio.Future[Reply | NoReply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answered
        try:
            await self._socket.send(message)
            return await answered
        finally:
            del self._waiting[number]

    async def close(self) -> None:
        """Close the connection; what waits is told that it was lost."""
        await self._socket.close()
        await self._reader

    async def _read(self) -> None:
        why = "the connection was closed"
        try:
            async for message in self._socket:
                self._take(message if isinstance(message, bytes) else message.encode())
        except ConnectionClosed as exc:
            why = str(exc)
        finally:
            for answered in self._waiting.values():
                if not answered.done():
                    answered.set_result(NoReply(f"The feed was lost before the answer came: {why}.", sent=True))

    def _take(self, message: bytes) -> None:
        """Hand a message to the step that waits for it; one without an `id` answers the oldest."""
        try:
            label = msgspec.msgpack.decode(message, type=_ReplyEnvelope)
        except msgspec.MsgspecError:
            label = _ReplyEnvelope()  # not understood, and told so to the oldest
        number = next(iter(self._waiting), None) if label.id is None else label.id
        answered = self._waiting.get(number) if number is not None else None
        if answered is None or answered.done():
            return  # it was given up
        problem = bytes(label.error)
        answered.set_result(Reply(400, problem, MSGPACK) if problem else Reply(200, message, MSGPACK))
