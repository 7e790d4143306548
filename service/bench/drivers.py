"""How a load reaches a service: HTTP, live feeds in JSON, live feeds in msgpack columns."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, Protocol, cast
from urllib.parse import quote, urlsplit

import httptools
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from model_export.errors import StepwellError
from service.bench.workload import BenchStream, Workload


class BenchError(StepwellError):
    """The service is not there, or a connection to it ended."""

    code = "bench_failed"


class LoadDriver(Protocol):
    """One connection to a service."""

    async def step(self, streams: Sequence[BenchStream]) -> list[str | None]:
        """Step each stream once, and return for each the code of its error, or None.

        Raises:
            BenchError: The connection ended.
        """
        ...

    async def close(self) -> None:
        """End the connection."""
        ...


class HttpDriver(asyncio.Protocol):
    """POSTs one timestep after the other over one keep-alive connection."""

    def __init__(self, url: str, plan: Workload, key: str | None) -> None:
        parts = urlsplit(url)
        self._plan = plan
        self._before = f"POST {parts.path.rstrip('/')}/v1/models/{quote(plan.model, safe='')}/streams/".encode()
        head = [f"/step HTTP/1.1\r\nHost: {parts.netloc}", "Content-Type: application/json"]
        head += [] if key is None else [f"Authorization: Bearer {key}"]
        self._behind = "\r\n".join([*head, "Content-Length: "]).encode()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None
        self._body = b""

    @classmethod
    async def open(cls, url: str, plan: Workload, key: str | None) -> HttpDriver:
        """Connect.

        Raises:
            BenchError: Nobody listens there.
        """
        parts = urlsplit(url)
        secure = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if secure else 80)
        loop = asyncio.get_running_loop()
        try:
            _, door = await loop.create_connection(lambda: cls(url, plan, key), parts.hostname or "", port, ssl=secure)
        except OSError as exc:
            raise _unreachable(url, exc) from exc
        return door

    async def step(self, streams: Sequence[BenchStream]) -> list[str | None]:
        """Step one stream."""
        [stream] = streams
        if self._transport is None or self._transport.is_closing():
            raise _ended("the service closed it")
        self._waiting = asyncio.get_running_loop().create_future()
        body = self._plan.body(stream)
        head = b"%b%b%b%d\r\n\r\n" % (self._before, stream.name.encode(), self._behind, len(body))
        self._transport.write(head + body)
        status, answer = await self._waiting
        return [None if status == 200 else _code(answer, str(status))]

    async def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = cast(asyncio.Transport, transport)  # what TCP and TLS connections have

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(_ended(str(exc or "the service closed it")))

    def on_body(self, body: bytes) -> None:
        """Collect an answer."""
        self._body += body

    def on_message_complete(self) -> None:
        """Hand an answer over."""
        body, self._body = self._body, b""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((self._parser.get_status_code(), body))


class FeedDriver:
    """Steps many streams over one WebSocket, a JSON message each or all of them in one msgpack frame."""

    def __init__(self, socket: ClientConnection, plan: Workload, *, columns: bool) -> None:
        self._socket = socket
        self._plan = plan
        self._columns = columns

    @classmethod
    async def open(cls, url: str, plan: Workload, key: str | None, *, columns: bool) -> FeedDriver:
        """Connect.

        Raises:
            BenchError: Nobody listens there, or the feed is refused.
        """
        address = "ws" + url.removeprefix("http") + f"/v1/models/{quote(plan.model, safe='')}/feed"
        protocol = Subprotocol("stepwell.msgpack" if columns else "stepwell.json")
        headers = None if key is None else {"Authorization": f"Bearer {key}"}
        try:
            socket = await connect(
                address,
                subprotocols=[protocol],
                additional_headers=headers,
                compression=None,
                max_size=None,
                proxy=None,
            )
        except (OSError, TimeoutError, WebSocketException) as exc:
            raise _unreachable(url, exc) from exc
        return cls(socket, plan, columns=columns)

    async def step(self, streams: Sequence[BenchStream]) -> list[str | None]:
        """Step each stream once."""
        try:
            if self._columns:
                await self._socket.send(self._plan.columns(streams))
                return _codes_of_columns(await self._socket.recv(), len(streams))
            for stream in streams:
                await self._socket.send(self._plan.message(stream), text=True)
            answers = [msgspec.json.decode(await self._socket.recv()) for _ in streams]
        except WebSocketException as exc:
            raise _ended(str(exc)) from exc
        codes = {answer.get("stream"): _error_code(answer) for answer in answers}
        return [codes.get(stream.name, "unanswered") for stream in streams]

    async def close(self) -> None:
        """Close the socket."""
        await self._socket.close()


def _codes_of_columns(raw: str | bytes, count: int) -> list[str | None]:
    answer = msgspec.msgpack.decode(raw if isinstance(raw, bytes) else raw.encode())
    whole = _error_code(answer)
    errors = answer.get("errors", {})
    return [whole or (errors[str(i)]["code"] if str(i) in errors else None) for i in range(count)]


def _error_code(answer: Any) -> str | None:
    error = answer.get("error")
    return None if error is None else str(error.get("code", "unknown"))


def _code(answer: bytes, otherwise: str) -> str:
    try:
        return str(msgspec.json.decode(answer)["code"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return otherwise


def _unreachable(url: str, exc: BaseException) -> BenchError:
    return BenchError(
        f"No Stepwell answers at {url}: {exc}.",
        fix="Start it with `stepwell serve`, or name where it is with --url or STEPWELL_URL.",
    )


def _ended(why: str) -> BenchError:
    return BenchError(f"A connection ended: {why}.", fix="Look at the service's log.")
