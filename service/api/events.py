"""`GET .../streams/{stream}/events`: what `/v1/watch` tells of one stream, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.api import openapi
from service.api.context import Context
from service.api.http import flag_of, number_of
from service.api.problems import problem_of
from service.api.visitors import Visitor
from service.api.watching import BEAT_S, document_of, news_of, want_of
from service.engine.watcher import Gap, Watcher
from service.engine.watchers import Watchers
from service.errors import ServiceError
from service.wire import JSON
from service.wire.formats import encode
from service.wire.names import SEQ_LIMIT

_RETRY_MS: Final = 1000  # a browser waits so long before it comes back
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would wait until there is more
    (b"x-content-type-options", b"nosniff"),
]


def add_routes(app: FastAPI, context: Context) -> None:
    """Declare the route."""
    routes = EventRoutes(context)
    path = "/v1/models/{model}/streams/{stream}/events"
    app.add_api_route(path, routes.events, methods=["GET"], **openapi.EVENTS)


class EventRoutes:
    """The route's function."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def events(self, request: Request) -> Response:
        """Follow one stream: its predictions as they are committed."""
        context, path = self._context, request.path_params
        authorization = request.headers.get("authorization")
        caller = context.caller(authorization, "read")
        visitor = Visitor(context, "read", authorization, ())
        visitor.demand_entry(None, None)
        want = want_of(path["model"], path["stream"], "", caller, context)
        seen = number_of(request.headers, "Last-Event-ID", 0, SEQ_LIMIT - 1)  # of one that comes back by itself
        if seen is None:
            seen = number_of(request.query_params, "since", 0, SEQ_LIMIT - 1)
        since = {want.key: seen} if want.key is not None and seen is not None else {}
        watcher = Watcher([want], inputs=flag_of(request.query_params, "inputs"), since=since)
        return EventStream(context.engine.watchers, watcher, visitor)


class EventStream(Response):
    """An answer that goes on until the reader has gone, or this process is about to end."""

    def __init__(self, watchers: Watchers, watcher: Watcher, visitor: Visitor, *, beat_s: float = BEAT_S) -> None:
        """Make an answer.

        Args:
            watchers: All who watch.
            watcher: The one who is answered.
            visitor: Who it is; counted while it is there, and sent away when its key is no longer in force.
            beat_s: Seconds without news after which a sign of life is sent.
        """
        self.status_code = 200
        self.raw_headers = _HEADERS
        self.body = b""
        self.background = None
        self._watchers = watchers
        self._watcher = watcher
        self._visitor = visitor
        self._beat_s = beat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        self._visitor.enter()
        work = [asyncio.create_task(self._send(send)), asyncio.create_task(_gone(receive))]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._visitor.leave()
            self._watchers.remove(self._watcher)
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await self._watchers.add(self._watcher)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for text in self.texts():
            await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def texts(self) -> AsyncIterator[bytes]:
        """Give what is sent, one event each."""
        watcher = self._watcher
        yield b"retry: %d\n" % _RETRY_MS + _event(b'{"watching":1}', kind=b"watching")
        while not watcher.over:
            everything = await news_of(watcher, self._beat_s)
            try:
                self._visitor.check(asyncio.get_running_loop().time())
            except ServiceError as exc:
                yield _event(encode({"error": problem_of(exc)}, JSON), kind=b"problem")
                return
            if not everything:
                yield b":\n\n"
            for news in everything:
                data = encode(document_of(news, JSON, inputs=watcher.inputs), JSON)
                yield _event(data, kind=b"gap") if isinstance(news, Gap) else _event(data, number=news.step)


def _event(data: bytes, *, kind: bytes = b"", number: int | None = None) -> bytes:
    """Return one event; JSON of ours has no line breaks."""
    head = b"event: " + kind + b"\n" if kind else b""
    return head + (b"" if number is None else b"id: %d\n" % number) + b"data: " + data + b"\n\n"


async def _gone(receive: Receive) -> None:
    """Wait until the reader has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
