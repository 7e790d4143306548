"""Live feeds: WebSockets whose messages carry timesteps of one or many streams, with replies in the same order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from stepwell.asgi.query import version_of
from stepwell.asgi.websocket import AcceptedWebSocket
from stepwell.errors import ServiceError
from stepwell.ids import check_stream_id
from stepwell.requests.close_codes import FAILED, TOO_SLOW
from stepwell.requests.context import AppContext
from stepwell.requests.feed_session import FeedSession, session_type
from stepwell.requests.slow_readers import SEND_TIMEOUT_S

_log = logging.getLogger(__name__)


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the routes."""

    async def feed(websocket: WebSocket) -> None:
        async with AcceptedWebSocket.accepted(websocket, context, "step") as socket:
            model, stream = websocket.path_params["model"], websocket.path_params.get("stream")
            version = version_of(websocket)
            context.engine.models.get(model, version)
            if stream is not None:
                check_stream_id(stream)
            traceparent = websocket.headers.get("traceparent")
            await FeedConnection(socket, context, model, version, stream, traceparent=traceparent).run()

    app.router.add_websocket_route("/v1/models/{model}/streams/{stream}/feed", feed)
    app.router.add_websocket_route("/v1/models/{model}/feed", feed)


class FeedConnection:
    """One open feed under any ASGI server; `stepwell.addons.fast_path.fast_feed` behaves in the same way.

    A reader task submits messages without waiting for replies; a writer task sends the replies in the order of their
    messages. If the client does not read its replies, the reader stops, so memory is bounded.
    """

    def __init__(
        self,
        socket: AcceptedWebSocket,
        context: AppContext,
        model: str,
        version: int | None,
        stream: str | None,
        *,
        traceparent: str | None,
    ) -> None:
        """Create the session; the arguments after `socket` are those of `FeedSession`."""
        self._socket = socket
        self._limit = context.settings.max_body_bytes
        self._wake = asyncio.Event()  # the next reply is ready, or the feed is to be closed
        self._has_room = asyncio.Event()
        self._session = session_type(context, traceparent)(
            context,
            socket.message_format,
            model,
            version,
            stream=stream,
            on_ready=self._wake.set,
        )

    async def run(self) -> None:
        """Serve until either side closes the feed."""
        session = self._session
        reader = asyncio.create_task(self._read(), name="feed-reader")
        writer = asyncio.create_task(self._write(), name="feed-writer")
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if session.close_code is not None and reader.done() and reader.exception() is None:
                await asyncio.wait({writer})  # accepted messages still get their replies
            failures = [task.exception() for task in (reader, writer) if task.done()]
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        for failure in failures:
            if failure is not None:
                session.close_code = _close_code_of(failure, session)
        if session.close_code is not None:
            await self._socket.close(session.close_code)

    async def _read(self) -> None:
        session = self._session
        while session.close_code is None:
            while session.is_full:
                self._has_room.clear()
                await self._has_room.wait()
            try:
                message = await self._socket.receive()
            except ServiceError as exc:
                session.reject_and_close(exc)
                return
            if len(message) > self._limit:
                session.reject_too_large(len(message))
            else:
                session.handle_message(message, self._socket.caller.tenant)

    async def _write(self) -> None:
        loop, session = asyncio.get_running_loop(), self._session
        while not session.is_drained:
            await self._wake.wait()
            self._wake.clear()
            replies = deque(session.pop_ready())
            async with asyncio.timeout(SEND_TIMEOUT_S) as limit:
                while replies:
                    limit.reschedule(loop.time() + SEND_TIMEOUT_S)
                    await self._socket.send_bytes(replies.popleft())
                self._has_room.set()


def _close_code_of(failure: BaseException, session: FeedSession) -> int | None:
    if isinstance(failure, WebSocketDisconnect):
        return None
    if isinstance(failure, TimeoutError):
        return TOO_SLOW
    _log.error("A feed failed, and is closed: %s", session.name, exc_info=failure, extra=session.log_fields)
    return FAILED
