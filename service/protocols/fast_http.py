"""`FastHttpProtocol`: a connection whose hot requests take the lane; the answers go out in the order of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.errors import ServiceError
from service.protocols.http_limits import LimitedHttpProtocol, protocol_attributes
from service.protocols.pipeline import InFlightRequest, ResponsePipeline
from service.protocols.request_cache import HotRequestMatcher, RequestHead
from service.requests.context import AppContext
from service.requests.error_formats import error_format_of
from service.requests.hot_routes import HOT_ROUTES
from service.requests.problems import body_timeout

_MAX_PIPELINED: Final = (
    64  # requests of one connection that may wait for their answers; beyond that nothing more is begun
)
_AHEAD_BYTES: Final = 4 * 2**20  # of their bodies; one may have more, and then waits alone


class FastHttpProtocol(LimitedHttpProtocol):
    """A connection with a lane.

    Whatever the lane has begun is answered before any request that goes uvicorn's way begins; while one of those is
    answered, all that come go that way, and uvicorn keeps their order.
    """

    __slots__ = ("_pipeline",)  # beside uvicorn's attributes: found without a look into their dictionary

    matcher: ClassVar[HotRequestMatcher]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._pipeline = ResponsePipeline(self.matcher, self.server_state, self._send_in_order)
        self._in_flight = self._pipeline.in_flight  # the lane's requests without an answer, or behind such
        self._line_bytes = 0  # of their bodies
        self._partial = bytearray()  # the beginning of a request of the lane, or what has to wait
        self._partial_needs = 0  # its length, once its head is there
        self._is_write_paused = False  # more has come than is begun before some of it is answered
        self._flush_scheduled = False
        self._is_ending = False  # close when the line is answered
        self._is_late: ServiceError | None = None
        self._is_asgi_only = not self.config.access_log and self.limit_concurrency is None and not self.root_path

    # ---------------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        """Take what has come: hot requests to the engine, the rest to uvicorn."""
        if self._pipeline.submit(data):  # what nearly all are
            return
        self._pipeline.leave_single_request_mode()
        if self._partial:
            self._partial += data
            if len(self._partial) < self._partial_needs:
                return
            data = self._take_partial()
        start, end = 0, len(data)
        while start < end and not self._is_ahead() and self._is_open():
            request = self.matcher.match_head(data, start)
            if request is None:
                if self.matcher.is_part_of_head(data, start):
                    self._keep_partial(data[start:], 0)
                    start = end
                break
            head, body, its_end = request
            if its_end > end:
                self._disarm_receive_timer()
                if self._is_allowed(head):
                    self._keep_partial(data[start:], its_end - start)
                    start = end
                break
            self._start_request(head, data[body:its_end])
            start = its_end
        if start < end and self._is_ahead():
            self._partial += data[start:]
            self._is_write_paused = True
        elif start < end and not self._is_ending:
            super().data_received(data[start:] if start else data)
        if self.flow.write_paused or self._is_ahead():
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go; what was begun goes on, and nobody hears of it."""
        self._pipeline.leave_single_request_mode()
        self._in_flight.clear()
        if self._partial_needs:
            path = bytes(self._partial[5:9]).decode()  # behind POST and a space
            self.metrics.request(error_format_of(path).transport, 499)  # as the declared route counts it
        super().connection_lost(exc)

    # ---------------------------------------------------------------- answering

    def _send_in_order(self, exchange: InFlightRequest) -> None:
        """Send an answer, when all before it are sent; those that are ready together go in one write."""
        line = self._in_flight
        if self._flush_scheduled or not line or line[0] is not exchange:
            return
        if len(line) > 1:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)
            return
        self._pop()
        self._send(exchange.text)

    def on_response_complete(self) -> None:
        """See uvicorn end an answer."""
        super().on_response_complete()
        self._pipeline.idle_since = self.loop.time()

    def pause_writing(self) -> None:
        """See that the client does not read."""
        self._pipeline.leave_single_request_mode()
        super().pause_writing()

    def shutdown(self) -> None:
        """Close, when all that was taken is answered."""
        self._pipeline.leave_single_request_mode()
        if self._in_flight or self._partial_needs:
            self._is_ending = not self.pipeline
        if self._is_ending:
            return
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close when nothing came for long; the timer is not set again with each request."""
        self.timeout_keep_alive_task = None
        self._pipeline.leave_single_request_mode()
        left = self._pipeline.idle_since + self.timeout_keep_alive - self.loop.time()
        if self._in_flight or self._partial_needs or left > 0:
            self._close_when_idle(max(left, 1.0))
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # it does not read either
        else:
            super().timeout_keep_alive_handler()

    # ---------------------------------------------------------------- helpers

    def _is_open(self) -> bool:
        """Whether the lane may take the next request."""
        if not self._is_asgi_only or not self._between_requests or self._over_limit or self._final_response is not None:
            return False
        return self.cycle is None or self.cycle.response_complete

    def _start_request(self, head: RequestHead, body: bytes) -> None:
        self._receive_by = None
        exchange = InFlightRequest(self._pipeline, head.request_line.route.error_format, body_bytes=head.length)
        self._in_flight.append(exchange)
        self._line_bytes += head.length
        exchange.submit(head, body)

    def _pop(self) -> InFlightRequest:
        """Take the first of the line, which is answered."""
        exchange = self._in_flight.popleft()
        self._line_bytes -= exchange.body_bytes
        return exchange

    def _is_ahead(self) -> bool:
        """Whether so much waits for its answers that nothing more is begun."""
        return len(self._in_flight) >= _MAX_PIPELINED or self._line_bytes >= _AHEAD_BYTES

    def _is_allowed(self, head: RequestHead) -> bool:
        """Whether its body may be waited for; where the head is refused, the declared route says so at once."""
        try:
            self.matcher.handler_for(head)
        except Exception:  # noqa: BLE001 - whatever it is, the declared route says so
            return False
        return True

    def _keep_partial(self, data: bytes, needs: int) -> None:
        """Wait for the rest of a request of the lane; `needs` is its length, 0: its head is not whole yet."""
        self._partial += data
        self._partial_needs = needs
        self._arm_receive_timer()

    def _take_partial(self) -> bytes:
        data = bytes(self._partial)
        self._partial.clear()
        if self._partial_needs:  # else its head is still waited for
            self._disarm_receive_timer()
        self._partial_needs = 0
        return data

    def _on_receive_timeout(self) -> None:
        self._pipeline.leave_single_request_mode()
        if self._partial_needs and not self._in_flight:
            self._is_late = body_timeout(self.receive_timeout_s)
            super().data_received(self._take_partial())
        else:
            super()._on_receive_timeout()

    def _problem_bytes(self, path: str) -> ServiceError | None:
        return self._is_late or super()._problem_bytes(path)

    def _is_idle(self) -> bool:
        return not self._in_flight and not self._partial_needs and super()._is_idle()

    def _is_new(self) -> bool:
        return not self._pipeline.idle_since and super()._is_new()

    def _may_read(self) -> bool:
        return not self._is_ahead() and super()._may_read()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._in_flight:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _flush(self) -> None:
        """Write the answers that are ready and in order."""
        self._flush_scheduled = False
        line, ready = self._in_flight, list[bytes]()
        while line and line[0].text:
            ready.append(self._pop().text)
        if ready:
            *before, last = ready
            self._send(last, before)

    def _send(self, last: bytes, before: Sequence[bytes] = ()) -> None:
        transport = self.transport
        if transport.is_closing():
            return
        if (self._is_ending or self.context.draining) and not self._in_flight and self._may_end():
            last = last.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
            transport.write(b"".join([*before, last]))
            transport.close()
            return
        transport.write(b"".join([*before, last]) if before else last)
        if not self._in_flight:
            self._begin_waiting()

    def _may_end(self) -> bool:
        """Whether nothing waits that was promised an answer; what is not begun may be sent again elsewhere."""
        return not self._partial_needs if self._is_ending else not self._partial and not self.pipeline

    def _begin_waiting(self) -> None:
        """Begin what waited for the end of the line."""
        if self.pipeline:
            super()._start_asgi_task(*self.pipeline.pop())
            return
        self._pipeline.idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._close_when_idle(self.timeout_keep_alive)
        if self._final_response is not None:
            self._send_final_response()
        elif self._is_write_paused:
            self._is_write_paused = False
            self.loop.call_soon(self._resume)
        elif self.flow.read_paused:
            self.flow.resume_reading()
        elif self._is_open() and not self._partial and not self._is_ending and not self.context.draining:
            self._pipeline.enter_single_request_mode(self.transport)

    def _resume(self) -> None:
        if not self.transport.is_closing():
            self.data_received(b"")
            self.flow.resume_reading()

    def _close_when_idle(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


def fast_http_class(context: AppContext) -> type[FastHttpProtocol]:
    """Return the protocol of a service's connections, with the lane."""
    return type(
        "LaneConnection",
        (FastHttpProtocol,),
        {**protocol_attributes(context), "matcher": HotRequestMatcher(context, HOT_ROUTES)},
    )
