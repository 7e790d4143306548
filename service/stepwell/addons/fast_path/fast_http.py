"""`FastHttpProtocol`: a connection whose hot requests take the fast path; responses keep the order of the requests.

On most connections the client waits for each response before it sends the next request. Such a connection is in
single-request mode: its one request needs no queue, so no object is created for it and few attributes are read. Any
other event on the connection ends this mode until all requests are answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from stepwell.addons.fast_path.hot_requests import CachedRequestLine, HotRequestMatcher, RequestHead
from stepwell.addons.fast_path.hot_step_routes import STEP_ROUTES
from stepwell.errors import ServiceError
from stepwell.protocols.http_limits import LimitedHttpProtocol, protocol_attributes
from stepwell.requests.context import AppContext
from stepwell.requests.handlers import RequestHandler
from stepwell.requests.hot_routes import HotRoute
from stepwell.requests.problems import body_timeout, internal_error
from stepwell.requests.request_ids import TracedId, log_fields

if TYPE_CHECKING:
    from uvicorn.server import ServerState

    from stepwell.requests.tracer import RequestTracer

_log = logging.getLogger(__name__)

_MAX_PIPELINED: Final = 64  # requests of one connection that may wait for their responses; no more are started
_MAX_PIPELINED_BYTES: Final = 4 * 2**20  # of their bodies; a single larger one is accepted if no other waits


class FastHttpProtocol(LimitedHttpProtocol):
    """A connection with a fast path.

    A request that uvicorn handles starts only after all requests of the fast path have been answered. While uvicorn
    handles one, it also gets all requests that arrive, and keeps their order.
    """

    __slots__ = ("_pipeline",)  # a slot: faster than a lookup in the attribute dictionary of uvicorn's class

    matcher: ClassVar[HotRequestMatcher]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._pipeline = ResponsePipeline(self.matcher, self.server_state, self._send_in_order)
        self._in_flight = (
            self._pipeline.in_flight
        )  # requests of the fast path that are not answered, or wait for an earlier response
        self._in_flight_bytes = 0  # total size of their bodies
        self._partial = bytearray()  # the start of an incomplete hot request, or input that is held back
        self._partial_needs = 0  # length of that request in bytes, once its head is complete; else 0
        self._has_held_input = False  # input is held back until some requests are answered
        self._flush_scheduled = False
        self._is_closing = False  # close once all requests in flight are answered
        self._timeout_error: ServiceError | None = None
        self._allows_fast_path = not self.config.access_log and self.limit_concurrency is None and not self.root_path

    # ---------------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        """Submit hot requests to the engine, and pass all other bytes to uvicorn."""
        if self._pipeline.submit(data):  # the most frequent case
            return
        self._pipeline.leave_single_request_mode()
        if self._partial:
            self._partial += data
            if len(self._partial) < self._partial_needs:
                return
            data = self._pop_partial()
        start, end = 0, len(data)
        while start < end and not self._is_full() and self._can_start():
            match = self.matcher.match_head(data, start)
            if match is None:
                if self.matcher.is_part_of_head(data, start):
                    self._keep_partial(data[start:], 0)
                    start = end
                break
            head, body, request_end = match
            if request_end > end:
                self._disarm_receive_timer()
                if self._is_head_allowed(head):
                    self._keep_partial(data[start:], request_end - start)
                    start = end
                break
            self._start_request(head, data[body:request_end])
            start = request_end
        if start < end and self._is_full():
            self._partial += data[start:]
            self._has_held_input = True
        elif start < end and not self._is_closing:
            super().data_received(data[start:] if start else data)
        if self.flow.write_paused or self._is_full():
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Release everything; the engine completes submitted requests, and their responses are dropped."""
        self._pipeline.leave_single_request_mode()
        self._in_flight.clear()
        if self._partial_needs:
            match = self.matcher.match_head(bytes(self._partial), 0)
            assert match is not None  # it was matched when its head was complete
            route = match[0].request_line.route
            self.metrics.request(route.error_format.transport, 499, route.name)  # as the declared route counts it
        super().connection_lost(exc)

    # ---------------------------------------------------------------- responses

    def _send_in_order(self, request: InFlightRequest) -> None:
        """Send a response once all earlier ones are sent; responses that are ready together are sent in one write."""
        in_flight = self._in_flight
        if self._flush_scheduled or not in_flight or in_flight[0] is not request:
            return
        if len(in_flight) > 1:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)
            return
        self._pop()
        self._send(request.text)

    def on_response_complete(self) -> None:
        """Note the time at which uvicorn completed a response."""
        super().on_response_complete()
        self._pipeline.idle_since = self.loop.time()

    def pause_writing(self) -> None:
        """Pause writing, because the client does not read."""
        self._pipeline.leave_single_request_mode()
        super().pause_writing()

    def shutdown(self) -> None:
        """Close the connection once all accepted requests are answered."""
        self._pipeline.leave_single_request_mode()
        if self._in_flight or self._partial_needs:
            self._is_closing = not self.pipeline
        if self._is_closing:
            return
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection. The timer is not restarted with each request, but compared with `idle_since`."""
        self.timeout_keep_alive_task = None
        self._pipeline.leave_single_request_mode()
        left = self._pipeline.idle_since + self.timeout_keep_alive - self.loop.time()
        if self._in_flight or self._partial_needs or left > 0:
            self._close_when_idle(max(left, 1.0))
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not read either
        else:
            super().timeout_keep_alive_handler()

    # ---------------------------------------------------------------- helpers

    def _can_start(self) -> bool:
        """Whether the next request may take the fast path."""
        if (
            not self._allows_fast_path
            or not self._between_requests
            or self._over_limit
            or self._final_response is not None
        ):
            return False
        return self.cycle is None or self.cycle.response_complete

    def _start_request(self, head: RequestHead, body: bytes) -> None:
        self._receive_deadline = None
        route = head.request_line.route
        request = InFlightRequest(self._pipeline, route, request_id=head.request_id, body_bytes=head.length)
        self._in_flight.append(request)
        self._in_flight_bytes += head.length
        request.submit(head, body)

    def _pop(self) -> InFlightRequest:
        """Remove and return the first request in flight, which is answered."""
        request = self._in_flight.popleft()
        self._in_flight_bytes -= request.body_bytes
        return request

    def _is_full(self) -> bool:
        """Whether so many requests are in flight that no more are started."""
        return len(self._in_flight) >= _MAX_PIPELINED or self._in_flight_bytes >= _MAX_PIPELINED_BYTES

    def _is_head_allowed(self, head: RequestHead) -> bool:
        """Whether to wait for the body. The declared route responds at once to a request with a rejected head."""
        try:
            self.matcher.handler_for(head)
        except Exception:  # noqa: BLE001 - whatever it is, the declared route reports it
            return False
        return True

    def _keep_partial(self, data: bytes, needs: int) -> None:
        """Keep the start of a hot request; `needs` is its length in bytes, 0: its head is not complete yet."""
        self._partial += data
        self._partial_needs = needs
        self._arm_receive_timer()

    def _pop_partial(self) -> bytes:
        data = bytes(self._partial)
        self._partial.clear()
        if self._partial_needs:  # or the timer of the head keeps running
            self._disarm_receive_timer()
        self._partial_needs = 0
        return data

    def _on_receive_timeout(self) -> None:
        self._pipeline.leave_single_request_mode()
        if self._partial_needs and not self._in_flight:
            self._timeout_error = body_timeout(self.receive_timeout_s)
            super().data_received(self._pop_partial())
        else:
            super()._on_receive_timeout()

    def _rejection(self, path: str, host_fault: str) -> ServiceError | None:
        return self._timeout_error or super()._rejection(path, host_fault)

    def _is_idle(self) -> bool:
        return not self._in_flight and not self._partial_needs and super()._is_idle()

    def _is_new(self) -> bool:
        return not self._pipeline.idle_since and super()._is_new()

    def _may_read(self) -> bool:
        return not self._is_full() and super()._may_read()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._in_flight:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _flush(self) -> None:
        """Write the responses that are ready, up to the first that is not."""
        self._flush_scheduled = False
        in_flight, ready = self._in_flight, list[bytes]()
        while in_flight and in_flight[0].text:
            ready.append(self._pop().text)
        if ready:
            *earlier, last = ready
            self._send(last, earlier)

    def _send(self, last: bytes, earlier: Sequence[bytes] = ()) -> None:
        transport = self.transport
        if transport.is_closing():
            return
        if (self._is_closing or self.context.draining) and not self._in_flight and self._may_close():
            last = last.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
            transport.write(b"".join([*earlier, last]))
            transport.close()
            return
        transport.write(b"".join([*earlier, last]) if earlier else last)
        if not self._in_flight:
            self._start_waiting()

    def _may_close(self) -> bool:
        """Whether no accepted request is left; clients may retry elsewhere what was not started."""
        return not self._partial_needs if self._is_closing else not self._partial and not self.pipeline

    def _start_waiting(self) -> None:
        """Start what had to wait until all requests in flight were answered."""
        if self.pipeline:
            super()._start_asgi_task(*self.pipeline.pop())
            return
        self._pipeline.idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._close_when_idle(self.timeout_keep_alive)
        if self._final_response is not None:
            self._send_final_response()
        elif self._has_held_input:
            self._has_held_input = False
            self.loop.call_soon(self._handle_held_input)
        elif self.flow.read_paused:
            self.flow.resume_reading()
        elif self._can_start() and not self._partial and not self._is_closing and not self.context.draining:
            self._pipeline.enter_single_request_mode(self.transport)

    def _handle_held_input(self) -> None:
        if not self.transport.is_closing():
            self.data_received(b"")
            self.flow.resume_reading()

    def _close_when_idle(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


class _Submitting:
    """What submits a request of the fast path, of a route and with an id."""

    __slots__ = ("_request_id", "_route", "_tracer")

    _request_id: bytes
    _route: HotRoute
    _tracer: RequestTracer | None

    def _submit(self, handler: RequestHandler, body: bytes, done: Callable[[Any], None]) -> None:
        """Submit it to the engine, and trace it if its id is sampled.

        Raises:
            ServiceError: What is wrong with it.
        """
        tracer = self._tracer
        if tracer is None or type(request_id := tracer.sample(self._request_id)) is not TracedId:
            handler.submit(body, done)
            return
        self._request_id = request_id
        route = self._route
        tracer.submit(handler, body, done, request_id=request_id, route=route.name, status_of=route.error_format.status)


class InFlightRequest(_Submitting):
    """A request of the fast path whose response has a place in the connection's order."""

    __slots__ = ("_pipeline", "body_bytes", "handler", "text")

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
        self._tracer = pipeline.matcher.context.tracer

    def submit(self, head: RequestHead, body: bytes) -> None:
        """Submit a request to the engine, or respond with what is wrong with it."""
        try:
            handler = self.handler = self._pipeline.matcher.handler_for(head)
            self._submit(handler, body, self.on_result)
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


class ResponsePipeline(_Submitting):
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
        "_request_line",
        "_slot",
        "_time",
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
        self._route = STEP_ROUTES[0]
        self._request_id = b""  # of the current request, in single-request mode
        self._slot: InFlightRequest | None = None  # of the current request, if the mode ended before its response
        self._is_done = self._on_result  # a bound method is an object too, so it is created once
        self._write: Callable[[bytes], None]
        self._is_closing: Callable[[], bool]
        self._time = asyncio.get_running_loop().time

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
        try:
            self._submit(handler, body, self._is_done)
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
        self.idle_since = self._time()
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


def fast_http_class(context: AppContext, routes: Iterable[HotRoute]) -> type[FastHttpProtocol]:
    """Return the HTTP protocol of a service, with the fast path for steps and for the routes of add-ons."""
    return type(
        "FastHttpProtocol",
        (FastHttpProtocol,),
        {**protocol_attributes(context), "matcher": HotRequestMatcher(context, [*STEP_ROUTES, *routes])},
    )
