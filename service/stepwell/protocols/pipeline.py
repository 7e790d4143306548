"""`ResponsePipeline`: the fast path's requests of one connection, and the order of their responses.

On most connections the client waits for each response before it sends the next request. Such a connection is in
single-request mode: its one request needs no queue, so no object is created for it and few attributes are read. Any
other event on the connection ends this mode until all requests are answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from stepwell.errors import ServiceError
from stepwell.protocols.hot_requests import CachedRequestLine, HotRequestMatcher, RequestHead
from stepwell.requests.handlers import RequestHandler
from stepwell.requests.hot_routes import HOT_ROUTES, HotRoute
from stepwell.requests.problems import internal_error
from stepwell.requests.request_ids import TracedId, log_fields

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_log = logging.getLogger(__name__)


class InFlightRequest:
    """A request of the fast path whose response has a place in the connection's order."""

    __slots__ = ("_pipeline", "_request_id", "_route", "body_bytes", "handler", "text")

    def __init__(
        self,
        pipeline: ResponsePipeline,
        route: HotRoute,
        handler: RequestHandler | None = None,
        *,
        request_id: bytes = b"",
        body_bytes: int = 0,
    ) -> None:
        self.text = b""  # the response, once there is one
        self.handler = handler
        self.body_bytes = body_bytes
        self._route = route
        self._request_id = request_id
        self._pipeline = pipeline

    def submit(self, head: RequestHead, body: bytes) -> None:
        """Submit a request to the engine, or respond with what is wrong with it."""
        try:
            matcher = self._pipeline.matcher
            handler = self.handler = matcher.handler_for(head)
            tracer = matcher.context.tracer
            if tracer is None or type(request_id := tracer.sample(self._request_id)) is not TracedId:
                handler.submit(body, self.on_result)
            else:
                self._request_id = request_id
                route = self._route
                tracer.submit(
                    handler, body, self.on_result,
                    request_id=request_id, route=route.name, status_of=route.error_format.status,
                )  # fmt: skip
        except Exception as exc:  # noqa: BLE001 - a failed request must not end its connection; it is logged
            self.fail(exc)

    def on_result(self, result: Any) -> None:
        """Encode the result. Raises nothing, because it is called while a batch is completed."""
        assert self.handler is not None
        if isinstance(result, ServiceError):
            self.fail(result)
            return
        try:
            body = self.handler.encode_response(result)
        except Exception as exc:  # noqa: BLE001 - nor must it end the batch that calls this
            self.fail(exc)
            return
        pipeline = self._pipeline
        self.text = pipeline.matcher.write_response(
            body, self.handler, self._route, pipeline.server_state, self._request_id
        )
        pipeline.on_response(self)

    def fail(self, error: Exception) -> None:
        """Respond with a problem; an unexpected exception is logged."""
        if not isinstance(error, ServiceError):
            fields = log_fields(self._request_id)
            _log.error("A request failed: %s", _name_of(self.handler), exc_info=error, extra=fields)
        if not self.text:
            pipeline = self._pipeline
            problem = error if isinstance(error, ServiceError) else internal_error()
            state = pipeline.server_state
            self.text = pipeline.matcher.write_problem(problem, self._route, state, self._request_id)
            pipeline.on_response(self)


class ResponsePipeline:
    """The fast path's requests of one connection, and the attributes that are read for each of them.

    They are not attributes of the connection, which has so many that reading one is slow.

    Attributes:
        matcher: Matches hot requests; shared by all connections.
        server_state: uvicorn's state, with the default headers of responses.
        on_response: Called with each request in `in_flight` that has got its response.
        in_flight: Requests without a response, or that wait for an earlier response; empty in single-request mode.
        is_single_request: Whether the connection is in single-request mode.
        idle_since: Event loop time in seconds at which the last response was sent.
    """

    __slots__ = (
        "_handler",
        "_is_closing",
        "_is_done",
        "_request_id",
        "_request_line",
        "_route",
        "_slot",
        "_tracer",
        "_write",
        "idle_since",
        "in_flight",
        "is_single_request",
        "matcher",
        "on_response",
        "server_state",
    )

    def __init__(
        self, matcher: HotRequestMatcher, server_state: ServerState, on_response: Callable[[InFlightRequest], None]
    ) -> None:
        self.matcher = matcher
        self.server_state = server_state
        self.on_response = on_response
        self.in_flight: deque[InFlightRequest] = deque()
        self._tracer = matcher.context.tracer
        self.is_single_request = False
        self.idle_since = 0.0
        self._handler: RequestHandler | None = None  # of the current request, in single-request mode
        self._request_line: CachedRequestLine | None = None  # of the last such request; its route is below
        self._route = HOT_ROUTES[0]
        self._request_id = b""  # of the current request, in single-request mode
        self._slot: InFlightRequest | None = None  # of the current request, if the mode ended before its response
        self._is_done = self._on_result  # a bound method is an object too, so it is created once
        self._write: Callable[[bytes], None]
        self._is_closing: Callable[[], bool]

    def enter_single_request_mode(self, transport: asyncio.Transport) -> None:
        """Enter single-request mode; no request is in flight."""
        self._write, self._is_closing = transport.write, transport.is_closing
        self.is_single_request = self._handler is None

    def submit(self, data: bytes) -> bool:
        """Submit the data if it is one complete hot request and the connection is in single-request mode.

        Returns:
            False: Nothing was submitted; the data may still contain a hot request, and needs the full check.
        """
        if not self.is_single_request or self._handler is not None:
            return False
        match = self.matcher.match_whole_request(data, self._request_line)
        if match is None:
            return False
        request_line, handler, body, self._request_id = match
        if request_line is not self._request_line:
            self._request_line, self._route = request_line, request_line.route
        self._handler = handler
        tracer = self._tracer
        try:
            if tracer is None or type(request_id := tracer.sample(self._request_id)) is not TracedId:
                handler.submit(body, self._is_done)
            else:
                self._request_id = request_id
                route = self._route
                tracer.submit(
                    handler, body, self._is_done,
                    request_id=request_id, route=route.name, status_of=route.error_format.status,
                )  # fmt: skip
        except Exception as exc:  # noqa: BLE001 - a failed request must not end its connection; it is logged
            self._fail(exc, handler)
        return True

    def leave_single_request_mode(self) -> None:
        """Leave single-request mode; the current request is added to `in_flight`."""
        self.is_single_request = False
        if self._handler is not None and self._slot is None:
            self._slot = InFlightRequest(self, self._route, self._handler, request_id=self._request_id)
            self.in_flight.append(self._slot)

    def _on_result(self, result: Any) -> None:
        """Respond to the request of single-request mode. Raises nothing: it is called while a batch is completed."""
        handler, slot = self._handler, self._slot
        assert handler is not None
        if slot is not None:
            self._handler = self._slot = None
            slot.on_result(result)
            return
        if isinstance(result, ServiceError):
            self._fail(result, handler)
            return
        try:
            body = handler.encode_response(result)
        except Exception as exc:  # noqa: BLE001 - nor must it end the batch that calls this
            self._fail(exc, handler)
            return
        self._handler = None
        matcher = self.matcher
        text = matcher.write_response(body, handler, self._route, self.server_state, self._request_id)
        self.idle_since = matcher.now
        if not self._is_closing():
            self._write(text)

    def _fail(self, error: Exception, handler: RequestHandler) -> None:
        """Respond with a problem, unless the response was sent before."""
        self.leave_single_request_mode()
        slot, self._handler, self._slot = self._slot, None, None
        if slot is not None:
            slot.fail(error)
        else:
            fields = log_fields(self._request_id)
            _log.error(
                "A request failed after its response was sent: %s", _name_of(handler), exc_info=error, extra=fields
            )


def _name_of(handler: RequestHandler | None) -> str:
    """Return model and stream of a request, for log lines."""
    served, key = getattr(handler, "served", None), getattr(handler, "key", None)
    return f"model={getattr(served, 'name', None)} stream={getattr(key, 'stream', None)}"
