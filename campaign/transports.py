"""The transports, each with its own failures: HTTP, a WebSocket for one stream, a WebSocket for many."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from tests.exactly_once.http import Http, NoAnswerError

_OPEN_S = 3.0


class FeedSocket:
    """A feed of one worker, opened on first use and reopened after a failure."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._names = itertools.count()
        self._lock = asyncio.Lock()
        self._open: ClientConnection | None = None
        self._reading: asyncio.Task[None] | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    async def request(self, message: Mapping[str, Any], timeout: float) -> tuple[int, Any]:
        """Send a message and return the HTTP status and the document of its answer.

        Raises:
            NoAnswerError: Connecting failed, the connection broke, or no answer arrived in time.
        """
        name = next(self._names)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                socket = await self._socket()
                self._waiting[name] = answer
                await socket.send(msgspec.json.encode({**message, "id": name}).decode())
                document = await answer
        except (OSError, TimeoutError, WebSocketException) as exc:
            raise NoAnswerError from exc
        finally:
            self._waiting.pop(name, None)
        problem = document.get("error")
        return (200, document) if problem is None else (problem["status"], problem)

    def abort(self) -> None:
        """Abort the connection."""
        if self._open is not None:
            self._open.transport.abort()
            self._open = None

    async def close(self) -> None:
        """Abort the connection, and wait until its reader has ended."""
        self.abort()
        if self._reading is not None:
            await self._reading

    async def _socket(self) -> ClientConnection:
        async with self._lock:
            if self._open is None:
                self._open = await connect(
                    self._url, compression=None, max_size=None, open_timeout=_OPEN_S, ping_interval=None, proxy=None
                )
                self._reading = asyncio.create_task(self._read(self._open))
            return self._open

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for text in socket:
                document = msgspec.json.decode(text)
                waiting = self._waiting.get(document.get("id"))
                if waiting is not None and not waiting.done():
                    waiting.set_result(document)
        except WebSocketException:
            pass
        if self._open is socket:
            self._open = None
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(NoAnswerError())
                    waiting.exception()  # the caller may have timed out in this iteration of the loop


class Transports:
    """All transports to all workers, for the streams of one model."""

    def __init__(self, ports: list[int], model: str) -> None:
        self.ports = ports
        self.path = f"/v1/models/{model}"
        self.http = Http()
        self._many = {port: FeedSocket(self._url(port, "feed")) for port in ports}
        self._single: dict[tuple[int, str], FeedSocket] = {}

    def many(self, port: int) -> FeedSocket:
        """Return the worker's socket for many streams."""
        return self._many[port]

    def single(self, port: int, stream: str) -> FeedSocket:
        """Return the worker's socket for one stream."""
        return self._single.setdefault((port, stream), FeedSocket(self._url(port, f"streams/{stream}/feed")))

    async def close_stream(self, stream: str) -> None:
        """Close the sockets of one stream."""
        for port in self.ports:
            if socket := self._single.pop((port, stream), None):
                await socket.close()

    async def close(self) -> None:
        """Close all connections."""
        self.http.close()
        for socket in [*self._many.values(), *self._single.values()]:
            await socket.close()

    def _url(self, port: int, what: str) -> str:
        return f"ws://127.0.0.1:{port}{self.path}/{what}"
