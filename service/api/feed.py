"""Live feeds: WebSockets on which each message moves a stream, or many, and is answered in order."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from fastapi import FastAPI
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.api.context import Context
from service.api.http import number_of
from service.api.moves import Result, columns_answer, submit_all, timestep_of, timesteps_of
from service.api.problems import problem_of, status_of
from service.api.sockets import DRAINING, FAILED, POLICY, SLOW_S, TOO_BIG, TOO_SLOW, UNREADABLE, Socket
from service.engine.models import ServedModel
from service.engine.types import StreamKey
from service.errors import ServiceError
from service.wire import BulkBody, StepBody, check_stream_id
from service.wire.answers import step_answer
from service.wire.bodies import label_for, label_of
from service.wire.formats import encode

_log = logging.getLogger(__name__)
_AHEAD: Final = 256  # messages that may wait for their answers; beyond that nothing more is read


def add_routes(app: FastAPI, context: Context) -> None:
    """Declare the routes."""

    async def feed(websocket: WebSocket) -> None:
        async with Socket.accepted(websocket, context, "step") as socket:
            model, stream = websocket.path_params["model"], websocket.path_params.get("stream")
            version = number_of(websocket.query_params, "version", 1, 2**31 - 1)
            context.engine.shelf.get(model, version)
            if stream is not None:
                check_stream_id(stream)
            await Feed(socket, context, model, version, stream).run()

    app.router.add_websocket_route("/v1/models/{model}/streams/{stream}/feed", feed)
    app.router.add_websocket_route("/v1/models/{model}/feed", feed)


class _Slot:
    """An answer's place in line; `write` makes the answer, once it is known."""

    __slots__ = ("write",)

    def __init__(self) -> None:
        self.write: Callable[[], bytes] | None = None


class Feed:
    """One open feed.

    A reader submits what comes without waiting for answers; a writer sends the answers in the order of their
    messages. A client that does not read its answers so stops the reading here, and nothing grows.
    """

    def __init__(self, socket: Socket, context: Context, model: str, version: int | None, stream: str | None) -> None:
        """Prepare.

        Args:
            socket: The accepted socket.
            context: The engine and all else.
            model: The model's name.
            version: The version that was asked for.
            stream: The stream of this feed; None: every message names its own.
        """
        self._socket = socket
        self._context = context
        self._model = model
        self._version = version
        self._stream = stream
        self._line: deque[_Slot] = deque()
        self._wake = asyncio.Event()  # the first answer in line is known, or the end has come
        self._room = asyncio.Event()
        self._end: int | None = None  # how to close, once all in line are answered

    async def run(self) -> None:
        """Serve until either side ends."""
        reader = asyncio.create_task(self._read(), name="feed-reader")
        writer = asyncio.create_task(self._write(), name="feed-writer")
        try:
            await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
            if self._end is not None and reader.done() and reader.exception() is None:
                await asyncio.wait({writer})  # what was taken is still answered
            failures = [task.exception() for task in (reader, writer) if task.done()]
        finally:
            reader.cancel()
            writer.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
        for failure in failures:
            if failure is not None:
                self._end = _close_for(failure)
        if self._end is not None:
            await self._socket.close(self._end)

    # ---------------------------------------------------------------- reading

    async def _read(self) -> None:
        while self._end is None:
            while len(self._line) >= _AHEAD:
                self._room.clear()
                await self._room.wait()
            try:
                message = await self._socket.receive()
            except ServiceError as exc:
                self._refuse(self._queue(), exc)
                self._finish(POLICY)
                return
            self._take(message)

    def _take(self, message: bytes) -> None:
        """Submit what a message asks for; the answer goes to its place in line."""
        slot, form = self._queue(), self._socket.form
        limit = self._context.settings.max_body_bytes
        if len(message) > limit:
            found = f"The message has {len(message)} bytes; at most {limit} are taken."
            self._refuse(slot, ServiceError("too_large", found, fix="Send it in parts."))
            self._finish(TOO_BIG)
            return
        engine = self._context.engine
        try:
            served = engine.shelf.get(self._model, self._version)
            asked = self._context.wire(served).feed(message, form, many=self._stream is None)
            if asked.stream is not None:
                check_stream_id(asked.stream)
        except ServiceError as exc:
            self._refuse(slot, exc, label_of(message, form))
            if exc.code == "bad_json":
                self._finish(UNREADABLE)
            return
        body, tenant, label = asked.body, self._socket.caller.tenant, label_for(asked.stream, asked.id)
        if isinstance(body, BulkBody):
            timesteps = timesteps_of(body, tenant, self._model, self._version, door="websocket")
            submit_all(engine, timesteps, self._columns_done(slot, body, served, label))
        else:
            key = StreamKey(tenant, self._model, asked.stream or self._stream or "")
            engine.submit(timestep_of(body, key, self._version, door="websocket"), self._step_done(slot, body, label))

    # ---------------------------------------------------------------- answering

    def _step_done(self, slot: _Slot, body: StepBody, label: Mapping[str, Any]) -> Callable[[Result], None]:
        def done(result: Result) -> None:
            if isinstance(result, ServiceError):
                self._refuse(slot, result, label)
                return
            form = self._socket.form
            self._answer(
                slot, lambda: encode({**label, **step_answer(result, form, chunk=body.chunk, keep=body.keep)}, form)
            )

        return done

    def _columns_done(
        self, slot: _Slot, body: BulkBody, served: ServedModel, label: Mapping[str, Any]
    ) -> Callable[[list[Result]], None]:
        def done(results: list[Result]) -> None:
            form = self._socket.form
            for result in results:
                if isinstance(result, ServiceError):
                    self._note(result)
            self._answer(slot, lambda: encode({**label, **columns_answer(body, results, served, form)}, form))

        return done

    def _refuse(self, slot: _Slot, error: ServiceError, label: Mapping[str, Any] = MappingProxyType({})) -> None:
        self._note(error)
        document = {**label, "error": problem_of(error)}
        self._answer(slot, lambda: encode(document, self._socket.form), status_of(error))

    def _note(self, error: ServiceError) -> None:
        self._context.metrics.refusal(error.code)
        if error.code == "draining":
            self._finish(DRAINING)

    def _queue(self) -> _Slot:
        slot = _Slot()
        self._line.append(slot)
        return slot

    def _answer(self, slot: _Slot, write: Callable[[], bytes], status: int = 200) -> None:
        """Fill a place in line. The answer is written where it is sent: this may be called in the midst of a batch."""
        self._context.metrics.request("websocket", status)
        slot.write = write
        if self._line and self._line[0] is slot:
            self._wake.set()

    def _finish(self, close: int) -> None:
        """Close once all in line are answered."""
        self._end = self._end or close
        self._wake.set()

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._end is None or self._line:
            await self._wake.wait()
            self._wake.clear()
            async with asyncio.timeout(SLOW_S) as limit:
                while self._line and self._line[0].write is not None:
                    limit.reschedule(loop.time() + SLOW_S)
                    await self._socket.send_bytes(self._line[0].write())
                    self._line.popleft()
                    self._room.set()


def _close_for(failure: BaseException) -> int | None:
    if isinstance(failure, WebSocketDisconnect):
        return None
    if isinstance(failure, TimeoutError):
        return TOO_SLOW
    _log.error("A feed failed", exc_info=failure)
    return FAILED
