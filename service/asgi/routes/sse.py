"""`GET .../streams/{stream}/events`: what `/v1/watch` tells of one stream, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final

from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.asgi.http import flag_of, number_of
from service.asgi.openapi import streams as openapi
from service.asgi.routes.watching import HEARTBEAT_S, event_document, parse_subscription, wait_for_events
from service.codec import JSON
from service.codec.formats import encode
from service.engine.watch.hub import WatchHub
from service.engine.watch.subscriber import EventGap, Subscriber
from service.errors import ServiceError
from service.ids import SEQ_LIMIT
from service.requests.context import AppContext
from service.requests.problems import problem_document
from service.requests.socket_auth import SocketAuth

_RETRY_MS: Final = 1000  # a browser waits so long before it comes back
_HEADERS: Final = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would wait until there is more
    (b"x-content-type-options", b"nosniff"),
]


def add_routes(app: FastAPI, context: AppContext) -> None:
    """Declare the route."""
    routes = SseRoutes(context)
    path = "/v1/models/{model}/streams/{stream}/events"
    app.add_api_route(path, routes.events, methods=["GET"], **openapi.EVENTS)


class SseRoutes:
    """The route's function."""

    def __init__(self, context: AppContext) -> None:
        self._context = context

    async def events(self, request: Request) -> Response:
        """Follow one stream: its predictions as they are committed."""
        context, path = self._context, request.path_params
        authorization = request.headers.get("authorization")
        caller = context.authenticate_and_count(authorization, "read")
        visitor = SocketAuth(context, "read", authorization, ())
        visitor.authorize_handshake(None, None)
        want = parse_subscription(path["model"], path["stream"], "", caller, context)
        seen = number_of(request.headers, "Last-Event-ID", 0, SEQ_LIMIT - 1)  # of one that comes back by itself
        if seen is None:
            seen = number_of(request.query_params, "since", 0, SEQ_LIMIT - 1)
        since = {want.key: seen} if want.key is not None and seen is not None else {}
        watcher = Subscriber([want], inputs=flag_of(request.query_params, "inputs"), since=since)
        return SseResponse(context.engine.watch, watcher, visitor)


class SseResponse(Response):
    """An answer that goes on until the reader has gone, or this process is about to end."""

    def __init__(
        self, watchers: WatchHub, watcher: Subscriber, visitor: SocketAuth, *, beat_s: float = HEARTBEAT_S
    ) -> None:
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
        self._hub = watchers
        self._subscriber = watcher
        self._auth = visitor
        self._heartbeat_s = beat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        self._auth.register()
        work = [asyncio.create_task(self._send(send)), asyncio.create_task(_gone(receive))]
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            self._auth.unregister()
            self._hub.remove(self._subscriber)
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await self._hub.add(self._subscriber)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for text in self.texts():
            await send({"type": "http.response.body", "body": text, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def texts(self) -> AsyncIterator[bytes]:
        """Give what is sent, one event each."""
        watcher = self._subscriber
        yield b"retry: %d\n" % _RETRY_MS + _event(b'{"watching":1}', kind=b"watching")
        while not watcher.closed:
            everything = await wait_for_events(watcher, self._heartbeat_s)
            try:
                self._auth.recheck(asyncio.get_running_loop().time())
            except ServiceError as exc:
                yield _event(encode({"error": problem_document(exc)}, JSON), kind=b"problem")
                return
            if not everything:
                yield b":\n\n"
            for news in everything:
                data = encode(event_document(news, JSON, inputs=watcher.inputs), JSON)
                yield _event(data, kind=b"gap") if isinstance(news, EventGap) else _event(data, number=news.step)


def _event(data: bytes, *, kind: bytes = b"", number: int | None = None) -> bytes:
    """Return one event; JSON of ours has no line breaks."""
    head = b"event: " + kind + b"\n" if kind else b""
    return head + (b"" if number is None else b"id: %d\n" % number) + b"data: " + data + b"\n\n"


async def _gone(receive: Receive) -> None:
    """Wait until the reader has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
