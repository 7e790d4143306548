"""Load drivers: HTTP, feeds in JSON, and feeds in msgpack columns."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import quote, urlsplit

import httptools
import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException
from websockets.typing import Subprotocol

from stepwell.addons.bench.workload import BenchStream, Workload
from stepwell_export.runtime.errors import StepwellError


class BenchError(StepwellError):
    """The service does not respond, or closed a connection."""

    code = "bench_failed"


class HttpDriver(asyncio.Protocol):
    """Sends one timestep per POST over one keep-alive connection."""

    def __init__(self, url: str, workload: Workload, key: str | None) -> None:
        parts = urlsplit(url)
        self._workload = workload
        self._head_start = f"POST {parts.path.rstrip('/')}/v1/models/{quote(workload.model, safe='')}/streams/".encode()
        lines = [f"/step HTTP/1.1\r\nHost: {parts.netloc}", "Content-Type: application/json"]
        lines += [] if key is None else [f"Authorization: Bearer {key}"]
        self._head_end = "\r\n".join([*lines, "Content-Length: "]).encode()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._pending: asyncio.Future[tuple[int, bytes]] | None = None
        self._body = b""

    @classmethod
    async def open(cls, url: str, workload: Workload, key: str | None) -> HttpDriver:
        """Connect.

        Raises:
            BenchError: The connection failed.
        """
        parts = urlsplit(url)
        context = ssl.create_default_context() if parts.scheme == "https" else None
        port = parts.port or (443 if context else 80)
        loop = asyncio.get_running_loop()
        try:
            _, driver = await loop.create_connection(
                lambda: cls(url, workload, key), parts.hostname or "", port, ssl=context
            )
        except OSError as exc:
            raise _unreachable(url, exc) from exc
        return driver

    async def step(self, streams: Sequence[BenchStream]) -> list[str | None]:
        """Step one stream and return its error code, or None for success.

        Raises:
            BenchError: The connection was closed.
        """
        [stream] = streams
        if self._transport is None or self._transport.is_closing():
            raise _ended("the service closed it")
        self._pending = asyncio.get_running_loop().create_future()
        body = self._workload.body(stream)
        head = b"%b%b%b%d\r\n\r\n" % (self._head_start, stream.name.encode(), self._head_end, len(body))
        self._transport.write(head + body)
        status, response = await self._pending
        return [None if status == 200 else _code(response, str(status))]

    async def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport of the new connection."""
        self._transport = cast(asyncio.Transport, transport)  # TCP and TLS connections have this type

    def data_received(self, data: bytes) -> None:
        """Parse received bytes."""
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the pending request."""
        if self._pending is not None and not self._pending.done():
            self._pending.set_exception(_ended(str(exc or "the service closed it")))

    def on_body(self, body: bytes) -> None:
        """Append a part of the response body."""
        self._body += body

    def on_message_complete(self) -> None:
        """Resolve the pending request with the response."""
        body, self._body = self._body, b""
        if self._pending is not None and not self._pending.done():
            self._pending.set_result((self._parser.get_status_code(), body))


class FeedDriver:
    """Steps many streams over one WebSocket, a JSON message each or all of them in one msgpack frame."""

    def __init__(self, socket: ClientConnection, workload: Workload, *, columns: bool) -> None:
        self._socket = socket
        self._workload = workload
        self._columns = columns

    @classmethod
    async def open(cls, url: str, workload: Workload, key: str | None, *, columns: bool) -> FeedDriver:
        """Connect.

        Raises:
            BenchError: The connection failed, or the service rejected the feed.
        """
        address = "ws" + url.removeprefix("http") + f"/v1/models/{quote(workload.model, safe='')}/feed"
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
        return cls(socket, workload, columns=columns)

    async def step(self, streams: Sequence[BenchStream]) -> list[str | None]:
        """Step each stream once and return its error code, or None for success; otherwise as `HttpDriver.step`."""
        try:
            if self._columns:
                await self._socket.send(self._workload.columns(streams))
                return _codes_of_columns(await self._socket.recv(), len(streams))
            for stream in streams:
                await self._socket.send(self._workload.message(stream), text=True)
            replies = [msgspec.json.decode(await self._socket.recv()) for _ in streams]
        except WebSocketException as exc:
            raise _ended(str(exc)) from exc
        codes = {reply.get("stream"): _error_code(reply) for reply in replies}
        return [codes.get(stream.name, "unanswered") for stream in streams]

    async def close(self) -> None:
        """Close the socket."""
        await self._socket.close()


LoadDriver = HttpDriver | FeedDriver
"""One connection to a service."""


def _codes_of_columns(raw: str | bytes, count: int) -> list[str | None]:
    reply = msgspec.msgpack.decode(raw if isinstance(raw, bytes) else raw.encode())
    frame_code = _error_code(reply)
    errors = reply.get("errors", {})
    return [frame_code or (errors[str(i)]["code"] if str(i) in errors else None) for i in range(count)]


def _error_code(reply: Any) -> str | None:
    error = reply.get("error")
    return None if error is None else str(error.get("code", "unknown"))


def _code(body: bytes, default: str) -> str:
    try:
        return str(msgspec.json.decode(body)["code"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return default


def _unreachable(url: str, exc: BaseException) -> BenchError:
    return BenchError(
        f"No Stepwell service responds at {url}: {exc}.",
        fix="Start it with `stepwell serve`, or give its address with --url or STEPWELL_URL.",
    )


def _ended(reason: str) -> BenchError:
    return BenchError(f"A connection ended: {reason}.", fix="Check the service's log.")
