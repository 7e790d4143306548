"""`GET .../streams/{stream}/events`: the events of one stream, as in `/v1/watch`, as server-sent events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Final

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from stepwell.addons.api_schemas.routes import COMMON_PROBLEMS, STREAM_PATH, query, route
from stepwell.addons.server_sent_events import COMMENT, EventStreamResponse, encode_event
from stepwell.addons.watch.events import event_document, parse_subscription, queued_events
from stepwell.addons.watch.hub import WatchHub
from stepwell.addons.watch.messages import HEARTBEAT_S
from stepwell.addons.watch.watcher_queue import EventGap, Subscriber
from stepwell.asgi.query import flag_of, number_of
from stepwell.errors import ServiceError
from stepwell.requests.auth.socket_auth import SocketAuth
from stepwell.requests.context import AppContext
from stepwell.requests.problems import problem_document
from stepwell_client.wire.formats import JSON, encode
from stepwell_client.wire.ids import SEQ_LIMIT

_RETRY_MS: Final = 1000  # a browser waits this long before it reconnects


DOCUMENTATION: Final = route(
    "streams",
    path=STREAM_PATH,
    parameters=[
        query(
            "since",
            {"type": "integer", "minimum": 0},
            "The last step that you have received: later events in the event log are sent first.",
        ),
        query("inputs", {"type": "boolean", "default": False}),
        query("candidate", {"type": "boolean", "default": False}),
        {
            "name": "Last-Event-ID",
            "in": "header",
            "schema": {"type": "integer", "minimum": 0},
            "description": "Like `since`, and overrides it: browsers send it when they reconnect.",
        },
    ],
    problems=(*COMMON_PROBLEMS, "bad_request", "model_not_found"),
)
DOCUMENTATION["responses"][200] = {
    "description": "Server-sent events without end: predictions as they are committed, `id` is the step; `gap` is the "
    "number of timesteps that were missed.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


class EventRoute:
    """The endpoint of the route."""

    def __init__(self, context: AppContext, hub: Callable[[], WatchHub]) -> None:
        """Create it.

        Args:
            context: Settings, API keys and the engine.
            hub: Returns all watchers of this worker, once the engine is there.
        """
        self._context = context
        self._hub = hub

    async def events(self, request: Request) -> Response:
        """Watch one stream: its predictions as they are committed."""
        context, path = self._context, request.path_params
        authorization = request.headers.get("authorization")
        caller = context.authenticate_and_count(authorization, "read")
        auth = SocketAuth(context, "read", authorization, ())
        auth.authorize_handshake(None, None)
        subscription = parse_subscription(path["model"], path["stream"], "", caller, context)
        last_step = number_of(request.headers, "Last-Event-ID", 0, SEQ_LIMIT - 1)  # sent by a browser that reconnects
        if last_step is None:
            last_step = number_of(request.query_params, "since", 0, SEQ_LIMIT - 1)
        since = {subscription.key: last_step} if subscription.key is not None and last_step is not None else {}
        query = request.query_params
        watcher = Subscriber(
            [subscription], inputs=flag_of(query, "inputs"), candidate=flag_of(query, "candidate"), since=since
        )
        return SseResponse(self._hub(), watcher, auth)


class SseResponse(EventStreamResponse):
    """A response that ends when the client disconnects or this process drains."""

    def __init__(
        self, hub: WatchHub, watcher: Subscriber, auth: SocketAuth, *, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        """Create a response; the watcher is added to the hub when it starts.

        Args:
            hub: All watchers of this worker.
            watcher: The watcher whose events are sent.
            auth: The client; counted while the response lasts, which ends when the client's key is no longer valid.
            heartbeat_s: Seconds without events after which a heartbeat is sent.
        """
        super().__init__()
        self._hub = hub
        self._subscriber = watcher
        self._auth = auth
        self._heartbeat_s = heartbeat_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the client disconnects or the watcher is closed."""
        self._auth.register()
        try:
            await self.send_until_disconnect(receive, send)
        finally:
            self._auth.unregister()
            self._hub.remove(self._subscriber)

    async def _send(self, send: Send) -> None:
        await self._hub.add(self._subscriber)
        await super()._send(send)

    async def texts(self) -> AsyncIterator[bytes]:
        """Yield the bytes to send, one event each."""
        watcher = self._subscriber
        yield b"retry: %d\n" % _RETRY_MS + encode_event(b'{"watching":1}', event_type=b"watching")
        async for events in queued_events(watcher, self._heartbeat_s):
            try:
                self._auth.recheck(asyncio.get_running_loop().time())
            except ServiceError as exc:
                yield encode_event(encode({"error": problem_document(exc)}, JSON), event_type=b"problem")
                return
            if not events:
                yield COMMENT
            for event in events:
                data = encode(event_document(event, JSON, watcher), JSON)
                yield (
                    encode_event(data, event_type=b"gap")
                    if isinstance(event, EventGap)
                    else encode_event(data, event_id=event.step)
                )
