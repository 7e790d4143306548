"""Live feeds: WebSockets on which each message moves a stream, or many, and is answered in order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Final

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.asgi.http import number_of
from service.asgi.websocket import AcceptedWebSocket
from service.errors import ServiceError
from service.ids import check_stream_id
from service.requests.close_codes import FAILED, SEND_TIMEOUT_S, TOO_SLOW
from service.requests.context import AppContext
from service.requests.feed_session import FeedSession

_log = logging.getLogger(__name__)
HIGHEST_VERSION: Final = 2**31 - 1


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the routes."""

    async def feed(websocket: WebSocket) -> None:
        async with AcceptedWebSocket.accepted(websocket, context, "step") as socket:
            model, stream = websocket.path_params["model"], websocket.path_params.get("stream")
            version = number_of(websocket.query_params, "version", 1, HIGHEST_VERSION)
            context.engine.models.get(model, version)
            if stream is not None:
                check_stream_id(stream)
            await FeedConnection(socket, context, model, version, stream).run()

    app.router.add_websocket_route("/v1/models/{model}/streams/{stream}/feed", feed)
    app.router.add_websocket_route("/v1/models/{model}/feed", feed)


class FeedConnection:
    """One open feed under any ASGI server; `service.protocols.fast_feed` is the same with less between.

    A reader submits what comes without waiting for answers; a writer sends the answers in the order of their
    messages. A client that does not read its answers so stops the reading here, and nothing grows.
    """

    def __init__(
        self, socket: AcceptedWebSocket, context: AppContext, model: str, version: int | None, stream: str | None
    ) -> None:
        """Prepare; the arguments after the accepted socket are those of `FeedSession`."""
        self._socket = socket
        self._limit = context.settings.max_body_bytes
        self._wake = asyncio.Event()  # the first answer in line is known, or the end has come
        self._has_room = asyncio.Event()
        self._session = FeedSession(
            context, socket.message_format, model, version, stream=stream, on_ready=self._wake.set
        )

    async def run(self) -> None:
        """Serve until either side ends."""
        line = self._session
        reader = asyncio.create_task(self._read(), name="feed-reader")
        writer = asyncio.create_task(self._write(), name="feed-writer")
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if line.close_code is not None and reader.done() and reader.exception() is None:
                await asyncio.wait({writer})  # what was taken is still answered
            failures = [task.exception() for task in (reader, writer) if task.done()]
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        for failure in failures:
            if failure is not None:
                line.close_code = _close_for(failure)
        if line.close_code is not None:
            await self._socket.close(line.close_code)

    async def _read(self) -> None:
        line = self._session
        while line.close_code is None:
            while line.is_full:
                self._has_room.clear()
                await self._has_room.wait()
            try:
                message = await self._socket.receive()
            except ServiceError as exc:
                line.reject_and_close(exc)
                return
            if len(message) > self._limit:
                line.reject_too_large(len(message))
            else:
                line.handle_message(message, self._socket.caller.tenant)

    async def _write(self) -> None:
        loop, line = asyncio.get_running_loop(), self._session
        while not line.is_drained:
            await self._wake.wait()
            self._wake.clear()
            answers = deque(line.pop_ready())
            async with asyncio.timeout(SEND_TIMEOUT_S) as limit:
                while answers:
                    limit.reschedule(loop.time() + SEND_TIMEOUT_S)
                    await self._socket.send_bytes(answers.popleft())
                self._has_room.set()


def _close_for(failure: BaseException) -> int | None:
    if isinstance(failure, WebSocketDisconnect):
        return None
    if isinstance(failure, TimeoutError):
        return TOO_SLOW
    _log.error("A feed failed", exc_info=failure)
    return FAILED
