"""Live feeds: WebSockets on which each message moves a stream, or many, and is answered in order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.api.context import Context
from service.api.feed_line import FeedLine
from service.api.http import number_of
from service.api.sockets import FAILED, SLOW_S, TOO_SLOW, Socket
from service.errors import ServiceError
from service.wire import check_stream_id

_log = logging.getLogger(__name__)
HIGHEST_VERSION: Final = 2**31 - 1


def add_routes(app: FastAPI, context: Context) -> None:
    """Declare the routes."""

    async def feed(websocket: WebSocket) -> None:
        async with Socket.accepted(websocket, context, "step") as socket:
            model, stream = websocket.path_params["model"], websocket.path_params.get("stream")
            version = number_of(websocket.query_params, "version", 1, HIGHEST_VERSION)
            context.engine.shelf.get(model, version)
            if stream is not None:
                check_stream_id(stream)
            await Feed(socket, context, model, version, stream).run()

    app.router.add_websocket_route("/v1/models/{model}/streams/{stream}/feed", feed)
    app.router.add_websocket_route("/v1/models/{model}/feed", feed)


class Feed:
    """One open feed under any ASGI server; `service.lane.feed` is the same with less between.

    A reader submits what comes without waiting for answers; a writer sends the answers in the order of their
    messages. A client that does not read its answers so stops the reading here, and nothing grows.
    """

    def __init__(self, socket: Socket, context: Context, model: str, version: int | None, stream: str | None) -> None:
        """Prepare; the arguments after the accepted socket are those of `FeedLine`."""
        self._socket = socket
        self._limit = context.settings.max_body_bytes
        self._wake = asyncio.Event()  # the first answer in line is known, or the end has come
        self._room = asyncio.Event()
        self._line = FeedLine(context, socket.form, model, version, stream=stream, on_ready=self._wake.set)

    async def run(self) -> None:
        """Serve until either side ends."""
        line = self._line
        reader = asyncio.create_task(self._read(), name="feed-reader")
        writer = asyncio.create_task(self._write(), name="feed-writer")
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if line.end is not None and reader.done() and reader.exception() is None:
                await asyncio.wait({writer})  # what was taken is still answered
            failures = [task.exception() for task in (reader, writer) if task.done()]
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        for failure in failures:
            if failure is not None:
                line.end = _close_for(failure)
        if line.end is not None:
            await self._socket.close(line.end)

    async def _read(self) -> None:
        line = self._line
        while line.end is None:
            while line.is_full:
                self._room.clear()
                await self._room.wait()
            try:
                message = await self._socket.receive()
            except ServiceError as exc:
                line.forbid(exc)
                return
            if len(message) > self._limit:
                line.refuse_large(len(message))
            else:
                line.take(message, self._socket.caller.tenant)

    async def _write(self) -> None:
        loop, line = asyncio.get_running_loop(), self._line
        while not line.is_over:
            await self._wake.wait()
            self._wake.clear()
            answers = deque(line.ready())
            async with asyncio.timeout(SLOW_S) as limit:
                while answers:
                    limit.reschedule(loop.time() + SLOW_S)
                    await self._socket.send_bytes(answers.popleft())
                self._room.set()


def _close_for(failure: BaseException) -> int | None:
    if isinstance(failure, WebSocketDisconnect):
        return None
    if isinstance(failure, TimeoutError):
        return TOO_SLOW
    _log.error("A feed failed", exc_info=failure)
    return FAILED
