"""`LimitedHttpProtocol`: uvicorn's HTTP protocol, with limits on the resources that a client can hold."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from stepwell.errors import ServiceError
from stepwell.protocols.http_upgrades import UpgradingHttpProtocol
from stepwell.requests.error_formats import RawHttpResponse
from stepwell.requests.request_ids import RESPONSE_HEADER, request_id_of
from stepwell.requests.slow_readers import SEND_TIMEOUT_S

if TYPE_CHECKING:
    from stepwell.metrics import Metrics
    from stepwell.requests.context import AppContext

HEAD_LIMIT = 16 * 1024
"""Maximum bytes of a request's line and headers."""

HOST: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")
"""The value of `Host`: a name or an address, and a port (RFC 9110, 7.2). It may be empty, but not missing."""

_HEALTH_PATHS = frozenset({"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"})
_NEW_GRACE_S = 1.0  # how long a connection without a request so far stays open when the process ends
_IDLE_GRACE_S = 0.1  # and one that had requests
_RESERVED_CONNECTIONS = 64  # connections beyond the most that may still ask for health


class LimitedHttpProtocol(UpgradingHttpProtocol):
    """uvicorn's protocol, which by itself has no timeout and no size limit for request heads.

    A request's head has to arrive within `receive_timeout_s`; the routes limit the body. A connection is aborted if its
    client reads nothing of a response for `SEND_TIMEOUT_S`. A connection beyond `max_connections` gets the response 503
    `overloaded` and is closed, except if it requests a health check.
    """

    receive_timeout_s: ClassVar[float]
    write_stall_s: ClassVar[float] = SEND_TIMEOUT_S  # until a client that does not read is disconnected
    max_connections: ClassVar[int]
    metrics: ClassVar[Metrics]
    context: ClassVar[AppContext]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._receive_deadline: float | None = None  # deadline of the next head or body
        self._receive_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None  # runs while the client does not read
        self._in_head = False
        self._between_requests = True  # the parser is between two requests
        self._head_bytes = 0  # upper bound of the bytes that the current head has so far
        self._n_heads = 0  # heads that began in the current data, or before and have not ended
        self._is_websocket = False
        self._over_limit = False
        self._head_too_long: ServiceError | None = None
        self._current_cycle: RequestResponseCycle | None = None  # later requests may wait behind it
        self._shutdown_requested = False
        self._final_response: bytes | None = None  # what is sent when all is answered, before the end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Count the connection, and start the timeout of its first head."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self._may_read)
        self.context.connections = self.connections  # one set for all, with those of WebSockets
        count = len(self.connections)
        self._over_limit = count > self.max_connections
        if count > self.max_connections + _RESERVED_CONNECTIONS:
            transport.abort()
        else:
            self._arm_receive_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel timers, and notify the request that is being answered."""
        for timer in (self._receive_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()
        if self._current_cycle is not None and not self._current_cycle.response_complete:
            self._current_cycle.disconnected = True  # uvicorn notifies the newest request only
            self._current_cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the data, and check the size of the head."""
        if self._final_response is not None:
            return
        self._head_bytes += len(data)
        self._n_heads = 0 if self._between_requests else 1
        super().data_received(data)
        if self._is_websocket:
            return
        if self._in_head:
            if self._n_heads > 1:  # it began after other requests in this data, at an unknown offset
                self._head_bytes = 0
            if self._head_bytes > HEAD_LIMIT:
                self._respond_and_close(_too_long())
            else:
                self._arm_receive_timer()
            return
        self._head_bytes = 0
        if self._is_idle() and self.timeout_keep_alive_task is None:
            self._arm_receive_timer()  # no request: empty lines, or the rest of one that was answered early

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._in_head = True
        self._between_requests = False
        self._n_heads += 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Check the size of the head; then uvicorn starts its request."""
        self._in_head = False
        self._disarm_receive_timer()
        if self._head_bytes > HEAD_LIMIT:  # this may include a part of the body
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            self._head_too_long = _too_long() if size > HEAD_LIMIT else None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Note that a request is complete."""
        self._between_requests = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Send the final response, if there is one and this was the last other response."""
        super().on_response_complete()
        if self._is_idle():
            self._send_final_response()

    def pause_writing(self) -> None:
        """Pause writing, because the client does not read; the connection is aborted if it does not read in time."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self.write_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """Resume writing, and reading too."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
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
        error = self._rejection("", _host_fault(self.headers, self.parser.get_http_version()))
        if error is None and self._shutdown_requested:
            error = ServiceError(
                "draining", "This process is about to end.", fix="Open the WebSocket again; another process accepts it."
            )
        if error is None and not self._is_idle():
            error = ServiceError(
                "bad_request",
                "A WebSocket was requested before the earlier requests of this connection were answered.",
                fix="Wait for their responses, or open another connection.",
            )
        if error is not None:
            self._respond_and_close(error)
            return
        self._is_websocket = True
        super().handle_websocket_upgrade()
        if (fault := self.handshake_fault()) is not None:
            problem = f"The WebSocket's handshake cannot be read: {fault}."
            self._respond_and_close(ServiceError("bad_request", problem, fix="Send fewer and shorter headers."))

    def send_400_response(self, msg: str) -> None:
        """Respond to bytes that are not an HTTP request."""
        self._respond_and_close(
            ServiceError(
                "bad_request", "The received bytes are not an HTTP/1.1 request.", fix="Send HTTP to this address."
            )
        )

    # ---------------------------------------------------------------- helpers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope = cycle.scope
        error = self._rejection(scope["path"], _host_fault(scope["headers"], scope["http_version"]))
        if self._over_limit or error is not None:
            cycle.keep_alive = False
        elif self.context.draining and cycle.keep_alive:
            cycle.keep_alive = False
            app = _with_connection_close(app)
        if error is not None:
            response = self._respond(error, cycle.scope["path"])
            if request_id := request_id_of(cycle.scope["headers"]):
                response.headers.append((RESPONSE_HEADER, request_id))
            app = _asgi_app(response)
        self._current_cycle = cycle
        super()._start_asgi_task(cycle, app)

    def _rejection(self, path: str, host_fault: str) -> ServiceError | None:
        if host_fault:
            return ServiceError("bad_request", host_fault, fix="Send one `Host` header with the name of the service.")
        if self._head_too_long is not None:
            return self._head_too_long
        if self._over_limit and path not in _HEALTH_PATHS:
            return ServiceError(
                "overloaded",
                f"More than {self.max_connections} connections are open.",
                fix="Send several requests over one connection, or try again after a pause.",
            )
        return None

    def _respond(self, error: ServiceError, path: str = "") -> RawHttpResponse:
        error_format = self.context.error_format_of(path)
        response = error_format.response(error)
        self.metrics.refusal(error.code)
        self.metrics.request(error_format.transport, response.status)
        return response

    def _respond_and_close(self, error: ServiceError) -> None:
        """Respond without the application, then close the connection."""
        response = self._respond(error)
        headers = [*self.server_state.default_headers, *response.headers, (b"connection", b"close")]
        self._send_and_close(response_bytes(response.status, headers, response.body))

    def _send_and_close(self, text: bytes) -> None:
        """Send a final response after those to earlier requests, then close the connection."""
        self._final_response = text
        is_in_body = not self._in_head and not self._between_requests  # that request gets no other response
        if is_in_body or self._is_idle():
            self._send_final_response()

    def _send_final_response(self) -> None:
        if self._final_response is not None and not self.transport.is_closing():
            self.transport.write(self._final_response)
            self.transport.close()

    def _may_read(self) -> bool:
        """Whether to read from the client: not while a request waits to be started, or responses are unread."""
        return not self.pipeline and not self.flow.write_paused

    def _is_idle(self) -> bool:
        """Whether no request is being handled."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _is_new(self) -> bool:
        """Whether no request has come yet."""
        return self.cycle is None

    def _arm_receive_timer(self) -> None:
        """Set the deadline for the next head or body, unless one is set.

        The timer is not cancelled when the data arrives: a new timer for each request would cost more than reading the
        request. A timer that fires before the current deadline is started again.
        """
        if self._receive_deadline is None and not self.transport.is_closing():
            self._receive_deadline = self.loop.time() + self.receive_timeout_s
            if self._receive_timer is None:
                self._receive_timer = self.loop.call_later(self.receive_timeout_s, self._check_receive_deadline)

    def _disarm_receive_timer(self) -> None:
        self._receive_deadline = None

    def _check_receive_deadline(self) -> None:
        self._receive_timer = None
        if self._receive_deadline is None:
            return
        left = self._receive_deadline - self.loop.time()
        if left > 0:
            self._receive_timer = self.loop.call_later(left, self._check_receive_deadline)
            return
        self._receive_deadline = None
        self._on_receive_timeout()

    def _on_receive_timeout(self) -> None:
        if self._is_idle():
            self.transport.close()
        else:  # the next request is late, but the current one is answered first
            self._arm_receive_timer()


class _Flow(FlowControl):
    """uvicorn's flow control, which by itself resumes reading after each response, however many requests wait."""

    def __init__(self, transport: asyncio.Transport, may_read: Callable[[], bool]) -> None:
        super().__init__(transport)
        self._may_read = may_read

    def resume_reading(self) -> None:
        if self.read_paused and self._may_read():
            super().resume_reading()


def response_bytes(status: int, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """Return the bytes of a response."""
    lines = b"".join([b"%b: %b\r\n" % header for header in headers])
    return b"%b%b\r\n%b" % (STATUS_LINE[status], lines, body)


def limited_http_class(context: AppContext) -> type[LimitedHttpProtocol]:
    """Return the HTTP protocol of a service, without the fast path."""
    return type("LimitedHttpProtocol", (LimitedHttpProtocol,), protocol_attributes(context))


def protocol_attributes(context: AppContext) -> dict[str, Any]:
    """Return the class attributes that all connections of a service share."""
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
    """Return an ASGI application that adds `Connection: close` to the responses of another one."""

    async def close_after(scope: Any, receive: Any, send: Any) -> None:
        async def send_with_close(event: Any) -> None:
            if event["type"] == "http.response.start":
                event = {**event, "headers": [*event.get("headers", ()), (b"connection", b"close")]}
            await send(event)

        await app(scope, receive, send_with_close)

    return close_after


def _host_fault(headers: Iterable[tuple[bytes, bytes]], http_version: str) -> str:
    """Return what is wrong with the `Host` of a request (RFC 9112, 3.2), empty if nothing is.

    Args:
        headers: The request's headers; names in lower case.
        http_version: HTTP/1.0 needs no `Host`.
    """
    hosts = [value for name, value in headers if name == b"host"]
    if len(hosts) > 1:
        return f"The request has {len(hosts)} `Host` headers; expected one."
    if not hosts:
        return "" if http_version == "1.0" else "The request has no `Host` header; HTTP/1.1 demands one."
    if HOST.fullmatch(hosts[0].decode("latin-1").strip()) is None:
        return f"The `Host` header is {hosts[0][:100].decode('latin-1')!a}; expected a name and a port."
    return ""


def _too_long() -> ServiceError:
    return ServiceError(
        "too_large",
        f"The request's line and headers have more than {HEAD_LIMIT} bytes.",
        fix="Send inputs in the body, and no cookies.",
    )
