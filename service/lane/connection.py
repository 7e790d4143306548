"""`LaneConnection`: a connection whose hot requests take the lane; the answers go out in the order of the requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.api.context import Context
from service.api.dialects import dialect_of
from service.api.hot import HOT_ROUTES
from service.api.http import body_came_too_late
from service.connections import Connection, bounds
from service.errors import ServiceError
from service.lane.lane import Head, Lane
from service.lane.line import Exchange, Line

_AHEAD: Final = 64  # requests of one connection that may wait for their answers; beyond that nothing more is begun
_AHEAD_BYTES: Final = 4 * 2**20  # of their bodies; one may have more, and then waits alone


class LaneConnection(Connection):
    """A connection with a lane.

    Whatever the lane has begun is answered before any request that goes uvicorn's way begins; while one of those is
    answered, all that come go that way, and uvicorn keeps their order.
    """

    __slots__ = ("_hot",)  # beside uvicorn's attributes: found without a look into their dictionary

    lane: ClassVar[Lane]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._hot = Line(self.lane, self.server_state, self._send_in_order)
        self._line = self._hot.waiting  # the lane's requests without an answer, or behind such
        self._line_bytes = 0  # of their bodies
        self._held = bytearray()  # the beginning of a request of the lane, or what has to wait
        self._held_needs = 0  # its length, once its head is there
        self._is_full = False  # more has come than is begun before some of it is answered
        self._will_flush = False
        self._ending = False  # close when the line is answered
        self._late: ServiceError | None = None
        self._is_plain = not self.config.access_log and self.limit_concurrency is None and not self.root_path

    # ---------------------------------------------------------------- receiving

    def data_received(self, data: bytes) -> None:
        """Take what has come: hot requests to the engine, the rest to uvicorn."""
        if self._hot.begin(data):  # what nearly all are
            return
        self._hot.end_rest()
        if self._held:
            self._held += data
            if len(self._held) < self._held_needs:
                return
            data = self._let_go()
        start, end = 0, len(data)
        while start < end and not self._is_ahead() and self._is_open():
            request = self.lane.find(data, start)
            if request is None:
                if self.lane.is_part_of_head(data, start):
                    self._hold(data[start:], 0)
                    start = end
                break
            head, body, its_end = request
            if its_end > end:
                self._stop_waiting()
                if self._is_allowed(head):
                    self._hold(data[start:], its_end - start)
                    start = end
                break
            self._begin(head, data[body:its_end])
            start = its_end
        if start < end and self._is_ahead():
            self._held += data[start:]
            self._is_full = True
        elif start < end and not self._ending:
            super().data_received(data[start:] if start else data)
        if self.flow.write_paused or self._is_ahead():
            self.flow.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go; what was begun goes on, and nobody hears of it."""
        self._hot.end_rest()
        self._line.clear()
        if self._held_needs:
            path = bytes(self._held[5:9]).decode()  # behind POST and a space
            self.metrics.request(dialect_of(path).door, 499)  # as the declared route counts it
        super().connection_lost(exc)

    # ---------------------------------------------------------------- answering

    def _send_in_order(self, exchange: Exchange) -> None:
        """Send an answer, when all before it are sent; those that are ready together go in one write."""
        line = self._line
        if self._will_flush or not line or line[0] is not exchange:
            return
        if len(line) > 1:
            self._will_flush = True
            self.loop.call_soon(self._flush)
            return
        self._pop()
        self._send(exchange.text)

    def on_response_complete(self) -> None:
        """See uvicorn end an answer."""
        super().on_response_complete()
        self._hot.idle_since = self.loop.time()

    def pause_writing(self) -> None:
        """See that the client does not read."""
        self._hot.end_rest()
        super().pause_writing()

    def shutdown(self) -> None:
        """Close, when all that was taken is answered."""
        self._hot.end_rest()
        if self._line or self._held_needs:
            self._ending = not self.pipeline
        if self._ending:
            return
        super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        """Close when nothing came for long; the timer is not set again with each request."""
        self.timeout_keep_alive_task = None
        self._hot.end_rest()
        left = self._hot.idle_since + self.timeout_keep_alive - self.loop.time()
        if self._line or self._held_needs or left > 0:
            self._close_when_idle(max(left, 1.0))
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # it does not read either
        else:
            super().timeout_keep_alive_handler()

    # ---------------------------------------------------------------- helpers

    def _is_open(self) -> bool:
        """Whether the lane may take the next request."""
        if not self._is_plain or not self._between or self._is_beyond or self._last_words is not None:
            return False
        return self.cycle is None or self.cycle.response_complete

    def _begin(self, head: Head, body: bytes) -> None:
        self._receive_by = None
        exchange = Exchange(self._hot, head.target.route.dialect, body_bytes=head.length)
        self._line.append(exchange)
        self._line_bytes += head.length
        exchange.begin(head, body)

    def _pop(self) -> Exchange:
        """Take the first of the line, which is answered."""
        exchange = self._line.popleft()
        self._line_bytes -= exchange.body_bytes
        return exchange

    def _is_ahead(self) -> bool:
        """Whether so much waits for its answers that nothing more is begun."""
        return len(self._line) >= _AHEAD or self._line_bytes >= _AHEAD_BYTES

    def _is_allowed(self, head: Head) -> bool:
        """Whether its body may be waited for; where the head is refused, the declared route says so at once."""
        try:
            self.lane.call(head)
        except Exception:  # noqa: BLE001 - whatever it is, the declared route says so
            return False
        return True

    def _hold(self, data: bytes, needs: int) -> None:
        """Wait for the rest of a request of the lane; `needs` is its length, 0: its head is not whole yet."""
        self._held += data
        self._held_needs = needs
        self._await_more()

    def _let_go(self) -> bytes:
        data = bytes(self._held)
        self._held.clear()
        if self._held_needs:  # else its head is still waited for
            self._stop_waiting()
        self._held_needs = 0
        return data

    def _came_too_late(self) -> None:
        self._hot.end_rest()
        if self._held_needs and not self._line:
            self._late = body_came_too_late(self.receive_timeout_s)
            super().data_received(self._let_go())
        else:
            super()._came_too_late()

    def _refusal(self, path: str) -> ServiceError | None:
        return self._late or super()._refusal(path)

    def _is_idle(self) -> bool:
        return not self._line and not self._held_needs and super()._is_idle()

    def _is_new(self) -> bool:
        return not self._hot.idle_since and super()._is_new()

    def _may_read(self) -> bool:
        return not self._is_ahead() and super()._may_read()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        if self._line:
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, app))
        else:
            super()._start_asgi_task(cycle, app)

    def _flush(self) -> None:
        """Write the answers that are ready and in order."""
        self._will_flush = False
        line, ready = self._line, list[bytes]()
        while line and line[0].text:
            ready.append(self._pop().text)
        if ready:
            *before, last = ready
            self._send(last, before)

    def _send(self, last: bytes, before: Sequence[bytes] = ()) -> None:
        transport = self.transport
        if transport.is_closing():
            return
        if (self._ending or self.context.leaving) and not self._line and self._may_end():
            last = last.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
            transport.write(b"".join([*before, last]))
            transport.close()
            return
        transport.write(b"".join([*before, last]) if before else last)
        if not self._line:
            self._begin_waiting()

    def _may_end(self) -> bool:
        """Whether nothing waits that was promised an answer; what is not begun may be sent again elsewhere."""
        return not self._held_needs if self._ending else not self._held and not self.pipeline

    def _begin_waiting(self) -> None:
        """Begin what waited for the end of the line."""
        if self.pipeline:
            super()._start_asgi_task(*self.pipeline.pop())
            return
        self._hot.idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._close_when_idle(self.timeout_keep_alive)
        if self._last_words is not None:
            self._say_last_words()
        elif self._is_full:
            self._is_full = False
            self.loop.call_soon(self._go_on)
        elif self.flow.read_paused:
            self.flow.resume_reading()
        elif self._is_open() and not self._held and not self._ending and not self.context.leaving:
            self._hot.rest(self.transport)

    def _go_on(self) -> None:
        if not self.transport.is_closing():
            self.data_received(b"")
            self.flow.resume_reading()

    def _close_when_idle(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)


def lane_class(context: Context) -> type[LaneConnection]:
    """Return the protocol of a service's connections, with the lane."""
    return type(
        "LaneConnection",
        (LaneConnection,),
        {**bounds(context), "lane": Lane(context, HOT_ROUTES)},
    )
