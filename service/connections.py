"""One HTTP connection: uvicorn's, with bounds on what a client may hold open."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from service.api.http import problem_response
from service.errors import ServiceError

if TYPE_CHECKING:
    from service.metrics import Metrics
    from service.settings import Settings

HEAD_LIMIT = 16 * 1024
"""Most bytes of a request's line and headers."""

_HEALTH = frozenset({"/healthz", "/readyz"})
_RESERVE = 64  # connections beyond the most that may still ask for health


class Connection(HttpToolsProtocol):
    """uvicorn's protocol, which by itself waits for a head for ever and takes heads of any size.

    A request's head has to arrive within `receive_timeout_s`; its body is the routes' affair. A connection beyond
    `max_connections` is answered 503 `overloaded` and closed, except where it asks for health.
    """

    receive_timeout_s: ClassVar[float]
    max_connections: ClassVar[int]
    metrics: ClassVar[Metrics]

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = False
        self._head_bytes = 0  # at least as many as the head has so far
        self._is_websocket = False
        self._is_beyond = False
        self._too_long: ServiceError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Count the connection, and wait for its first head."""
        super().connection_made(transport)
        count = len(self.connections)
        self._is_beyond = count > self.max_connections
        if count > self.max_connections + _RESERVE:
            transport.abort()
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self._head_bytes += len(data)
        super().data_received(data)
        if self._is_websocket:
            return
        if self._in_head:
            if self._head_bytes > HEAD_LIMIT:
                self._answer_and_close(_too_long())
            else:
                self._await_head()
            return
        self._head_bytes = 0
        if self._is_idle() and self.timeout_keep_alive_task is None:
            self._await_head()  # it was no request: empty lines, or the rest of one that was answered already

    def on_message_begin(self) -> None:
        """See a head begin."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See a head end; uvicorn starts its request."""
        self._in_head = False
        self._stop_waiting()
        if self._head_bytes > HEAD_LIMIT:  # it may be the body that was long
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            self._too_long = _too_long() if size > HEAD_LIMIT else None
        super().on_headers_complete()

    def handle_websocket_upgrade(self) -> None:
        """Hand the connection to the WebSocket protocol, unless there are too many."""
        refusal = self._refusal(path="")
        if refusal is not None:
            self._answer_and_close(refusal)
        else:
            self._is_websocket = True
            super().handle_websocket_upgrade()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._answer_and_close(
            ServiceError("bad_request", "What came is not an HTTP/1.1 request.", fix="Speak HTTP to this address.")
        )

    # ---------------------------------------------------------------- helpers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        refusal = self._refusal(cycle.scope["path"])
        if self._is_beyond or refusal is not None:
            cycle.keep_alive = False
        if refusal is not None:
            app = self._answer(refusal)
        super()._start_asgi_task(cycle, app)

    def _refusal(self, path: str) -> ServiceError | None:
        if self._too_long is not None:
            return self._too_long
        if self._is_beyond and path not in _HEALTH:
            return ServiceError(
                "overloaded",
                f"More than {self.max_connections} connections are open.",
                fix="Send several requests over one connection, or try again after a pause.",
            )
        return None

    def _answer(self, refusal: ServiceError) -> Response:
        response = problem_response(refusal)
        self.metrics.refusal(refusal.code)
        self.metrics.request("http", response.status_code)
        return response

    def _answer_and_close(self, refusal: ServiceError) -> None:
        """Answer past the application."""
        response = self._answer(refusal)
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = [STATUS_LINE[response.status_code], *(b"%b: %b\r\n" % header for header in headers), b"\r\n"]
        self.transport.write(b"".join(lines) + bytes(response.body))
        self.transport.close()

    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or (self.cycle.response_complete and not self.pipeline)

    def _await_head(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(self.receive_timeout_s, self._came_too_late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _came_too_late(self) -> None:
        self._head_timer = None
        if self._is_idle():
            self.transport.close()
        else:  # the next request is late, this one is to be answered first
            self._await_head()


def connection_class(settings: Settings, metrics: Metrics) -> type[Connection]:
    """Return the protocol of a service's connections."""
    return type(
        "Connection",
        (Connection,),
        {
            "receive_timeout_s": settings.receive_timeout_s,
            "max_connections": settings.max_connections,
            "metrics": metrics,
        },
    )


def _too_long() -> ServiceError:
    return ServiceError(
        "too_large",
        f"The request's line and headers have more than {HEAD_LIMIT} bytes.",
        fix="Send inputs in the body, and no cookies.",
    )
