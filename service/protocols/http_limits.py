"""One HTTP connection: uvicorn's, with bounds on what a client may hold open."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.errors import ServiceError
from service.requests.close_codes import SEND_TIMEOUT_S
from service.requests.error_formats import RawHttpResponse, error_format_of

if TYPE_CHECKING:
    from service.metrics import Metrics
    from service.requests.context import AppContext

HEAD_LIMIT = 16 * 1024
"""Most bytes of a request's line and headers."""

_HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_NEW_GRACE_S = 1.0  # how long a connection without a request so far stays open when the process ends
_IDLE_GRACE_S = 0.1  # and one that had requests
_RESERVED_CONNECTIONS = 64  # connections beyond the most that may still ask for health


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for a head for ever and takes heads of any size.

    A request's head has to arrive within `receive_timeout_s`; its body is the routes' affair. A client that takes
    nothing of its answer for `SEND_TIMEOUT_S` is cut off. A connection beyond `max_connections` is answered 503 `overloaded`
    and closed, except where it asks for health.
    """

    receive_timeout_s: ClassVar[float]
    write_stall_s: ClassVar[float] = SEND_TIMEOUT_S  # with one that does not read
    max_connections: ClassVar[int]
    metrics: ClassVar[Metrics]
    context: ClassVar[AppContext]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._receive_by: float | None = None  # when what is waited for has to be there
        self._receive_timer: asyncio.TimerHandle | None = None
        self._slow_timer: asyncio.TimerHandle | None = None  # runs while the client does not read
        self._in_head = False
        self._between_requests = True  # the parser stands between two requests
        self._head_bytes = 0  # at least as many as the head has so far
        self._heads = 0  # begun in what has come, or before and not ended
        self._is_websocket = False
        self._over_limit = False
        self._head_too_long: ServiceError | None = None
        self._has_responded: RequestResponseCycle | None = None  # others may wait behind it
        self._shutdown_requested = False
        self._final_response: bytes | None = None  # what is said when all is answered, before the end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Count the connection, and wait for its first head."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self._may_read)
        count = len(self.connections)
        self._over_limit = count > self.max_connections
        if count > self.max_connections + _RESERVED_CONNECTIONS:
            transport.abort()
        else:
            self._arm_receive_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        for timer in (self._receive_timer, self._slow_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        if self._has_responded is not None and not self._has_responded.response_complete:
            self._has_responded.disconnected = True  # uvicorn tells the request that came last, and no other
            self._has_responded.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        if self._final_response is not None:
            return
        self._head_bytes += len(data)
        self._heads = 0 if self._between_requests else 1
        super().data_received(data)
        if self._is_websocket:
            return
        if self._in_head:
            if self._heads > 1:  # it began behind others, nobody knows where
                self._head_bytes = 0
            if self._head_bytes > HEAD_LIMIT:
                self._respond_and_close(_too_long())
            else:
                self._arm_receive_timer()
            return
        self._head_bytes = 0
        if self._is_idle() and self.timeout_keep_alive_task is None:
            self._arm_receive_timer()  # it was no request: empty lines, or the rest of one that was answered already

    def on_message_begin(self) -> None:
        """See a head begin."""
        self._in_head = True
        self._between_requests = False
        self._heads += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See a head end; uvicorn starts its request."""
        self._in_head = False
        self._disarm_receive_timer()
        if self._head_bytes > HEAD_LIMIT:  # it may be the body that was long
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            self._head_too_long = _too_long() if size > HEAD_LIMIT else None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """See a request end."""
        self._between_requests = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See an answer end."""
        super().on_response_complete()
        if self._is_idle():
            self._send_final_response()

    def pause_writing(self) -> None:
        """See that the client does not read; one that goes on with that is cut off."""
        super().pause_writing()
        self._slow_timer = self.loop.call_later(self.write_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on, with reading too."""
        super().resume_writing()
        if self._slow_timer is not None:
            self._slow_timer.cancel()
        self.flow.resume_reading()

    def shutdown(self) -> None:
        """Close once everything received is answered.

        A connection without a request in progress is closed a little later: a request may be on its way, and closing
        with bytes unread would reset the connection.
        """
        if self._shutdown_requested or not self._is_idle():
            super().shutdown()
            return
        self._shutdown_requested = True
        seconds = min(_NEW_GRACE_S if self._is_new() else _IDLE_GRACE_S, self.context.settings.drain_s)
        soon = self.loop.call_soon  # twice, since a turn of the loop runs timers before it reads sockets
        self.loop.call_later(seconds, soon, soon, self.shutdown)

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to the WebSocket protocol, unless there are too many."""
        refusal = self._problem_bytes(path="")
        if refusal is None and self._shutdown_requested:
            refusal = ServiceError(
                "draining", "This process is about to end.", fix="Open the WebSocket again; another process takes it."
            )
        if refusal is None and not self._is_idle():
            refusal = ServiceError(
                "bad_request",
                "A WebSocket was asked for before the requests before it were answered.",
                fix="Wait for their answers, or open another connection.",
            )
        if refusal is not None:
            self._respond_and_close(refusal)
        else:
            self._is_websocket = True
            super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._respond_and_close(
            ServiceError("bad_request", "What came is not an HTTP/1.1 request.", fix="Speak HTTP to this address.")
        )

    # ---------------------------------------------------------------- helpers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        refusal = self._problem_bytes(cycle.scope["path"])
        if self._over_limit or refusal is not None:
            cycle.keep_alive = False
        elif self.context.draining and cycle.keep_alive:
            cycle.keep_alive = False
            app = _with_connection_close(app)
        if refusal is not None:
            app = _asgi_app(self._respond(refusal, cycle.scope["path"]))
        self._has_responded = cycle
        super()._start_asgi_task(cycle, app)

    def _problem_bytes(self, path: str) -> ServiceError | None:
        if self._head_too_long is not None:
            return self._head_too_long
        if self._over_limit and path not in _HEALTH_PATHS:
            return ServiceError(
                "overloaded",
                f"More than {self.max_connections} connections are open.",
                fix="Send several requests over one connection, or try again after a pause.",
            )
        return None

    def _respond(self, refusal: ServiceError, path: str = "") -> RawHttpResponse:
        dialect = error_format_of(path)
        response = dialect.response(refusal)
        self.metrics.refusal(refusal.code)
        self.metrics.request(dialect.transport, response.status)
        return response

    def _respond_and_close(self, refusal: ServiceError) -> None:
        """Answer past the application."""
        response = self._respond(refusal)
        headers = [*self.server_state.default_headers, *response.headers, (b"connection", b"close")]
        self._send_and_close(response_bytes(response.status, headers, response.body))

    def _send_and_close(self, text: bytes) -> None:
        """Send what is no answer of the application, behind those to the requests before."""
        self._final_response = text
        is_in_body = not self._in_head and not self._between_requests  # that request gets no other answer
        if is_in_body or self._is_idle():
            self._send_final_response()

    def _send_final_response(self) -> None:
        if self._final_response is not None and not self.transport.is_closing():
            self.transport.write(self._final_response)
            self.transport.close()

    def _may_read(self) -> bool:
        """Whether more is taken from the client: not before what it has sent is begun, and what it is sent is read."""
        return not self.pipeline and not self.flow.write_paused

    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _is_new(self) -> bool:
        """Whether no request has come yet."""
        return self.cycle is None

    def _arm_receive_timer(self) -> None:
        """Give what is to come its time, unless something is waited for already.

        The timer is not cancelled when it came: setting one for each request would cost more than reading it. One
        that fires too early is set again.
        """
        if self._receive_by is None and not self.transport.is_closing():
            self._receive_by = self.loop.time() + self.receive_timeout_s
            if self._receive_timer is None:
                self._receive_timer = self.loop.call_later(self.receive_timeout_s, self._check_receive_deadline)

    def _disarm_receive_timer(self) -> None:
        self._receive_by = None

    def _check_receive_deadline(self) -> None:
        self._receive_timer = None
        if self._receive_by is None:
            return
        left = self._receive_by - self.loop.time()
        if left > 0:
            self._receive_timer = self.loop.call_later(left, self._check_receive_deadline)
            return
        self._receive_by = None
        self._on_receive_timeout()

    def _on_receive_timeout(self) -> None:
        if self._is_idle():
            self.transport.close()
        else:  # the next request is late, this one is to be answered first
            self._arm_receive_timer()


class _Flow(FlowControl):
    """uvicorn's, which by itself reads on with each answer, however many requests wait already."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        if self.read_paused and self._may_read():
            super().resume_reading()


def response_bytes(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return a response as it goes out."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    return b"%b%b\r\n%b" % (STATUS_LINE[status], lines, body)


def limited_http_class(context: AppContext) -> type[LimitedHttpProtocol]:
    """Return the protocol of a service's connections."""
    return type("LimitedHttpProtocol", (LimitedHttpProtocol,), protocol_attributes(context))


def protocol_attributes(context: AppContext) -> dict[str, Any]:
    """Return what a service's connections have in common, as attributes of their class."""
    return {
        "receive_timeout_s": context.settings.receive_timeout_s,
        "max_connections": context.settings.max_connections,
        "metrics": context.metrics,
        "context": context,
    }


def _asgi_app(response: RawHttpResponse) -> Any:
    """Return an ASGI application that sends one response."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        await send({"type": "http.response.body", "body": response.body})

    return app


def _with_connection_close(app: Any) -> Any:
    """Return an application whose answers say that the connection ends with them."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        async def send_and_say(event: Any) -> None:
            if event["type"] == "http.response.start":
                event = {**event, "headers": [*event.get("headers", ()), (b"connection", b"close")]}
            await send(event)

        await app(scope, receive, send_and_say)

    return answer


def _too_long() -> ServiceError:
    return ServiceError(
        "too_large",
        f"The request's line and headers have more than {HEAD_LIMIT} bytes.",
        fix="Send inputs in the body, and no cookies.",
    )
