"""`ResponsePipeline`: the requests of one connection that the lane has taken, and the answers' order.

On most connections a client waits for each answer before it sends the next request. Such a connection is at rest, and
its one request needs no place in a queue: nothing is made for it, and little is looked at. Whatever else happens to a
connection ends its rest, until all is answered.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from service.errors import ServiceError
from service.protocols.request_cache import CachedRequestLine, HotRequestMatcher, RequestHead
from service.requests.error_formats import NATIVE, ErrorFormat
from service.requests.handlers import RequestHandler
from service.requests.problems import internal_error

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_log = logging.getLogger(__name__)


class InFlightRequest:
    """A request of the lane and its answer's place in line."""

    __slots__ = ("_error_format", "_pipeline", "body_bytes", "handler", "text")

    def __init__(
        self, line: ResponsePipeline, dialect: ErrorFormat, call: RequestHandler | None = None, *, body_bytes: int = 0
    ) -> None:
        """Begin without an answer."""
        self.text = b""  # none yet
        self.handler = call
        self.body_bytes = body_bytes
        self._error_format = dialect
        self._pipeline = line

    def submit(self, head: RequestHead, body: bytes) -> None:
        """Hand a request over to the engine, or answer what is wrong with it."""
        try:
            call = self.handler = self._pipeline.matcher.handler_for(head)
            call.submit(body, self.on_result)
        except Exception as exc:  # noqa: BLE001 - one request's fault must not end its connection; it is logged
            self.fail(exc)

    def on_result(self, result: Any) -> None:
        """Take the result, in the midst of a batch: nothing is raised."""
        assert self.handler is not None
        if isinstance(result, ServiceError):
            self.fail(result)
            return
        try:
            body = self.handler.encode_response(result)
        except Exception as exc:  # noqa: BLE001 - nor the batch that it came in
            self.fail(exc)
            return
        line = self._pipeline
        self.text = line.matcher.write_response(body, self.handler, self._error_format, line.server_state)
        line.on_response(self)

    def fail(self, why: Exception) -> None:
        """Answer with a problem; what nobody foresaw is logged."""
        if not isinstance(why, ServiceError):
            _log.error("A request failed", exc_info=why)
        if not self.text:
            line = self._pipeline
            problem = why if isinstance(why, ServiceError) else internal_error()
            self.text = line.matcher.write_problem(problem, self._error_format, line.server_state)
            line.on_response(self)


class ResponsePipeline:
    """The lane's requests of one connection, and what is looked at for each of them.

    The connection itself has so many attributes that each look at one of them is slow.

    Attributes:
        lane: What all connections share.
        server_state: uvicorn's, which has the headers that every answer gets.
        on_answer: Told of each exchange in `in_flight` that has got its answer.
        waiting: Exchanges without an answer, or behind such; none on a connection at rest.
        is_at_rest: One request at a time comes, and nothing else is going on.
        idle_since: When the last answer went out, on the loop's clock.
    """

    __slots__ = (
        "_error_format",
        "_handler",
        "_is_closing",
        "_is_done",
        "_request_line",
        "_slot",
        "_write",
        "idle_since",
        "in_flight",
        "is_single_request",
        "matcher",
        "on_response",
        "server_state",
    )

    def __init__(
        self, lane: HotRequestMatcher, server_state: ServerState, on_answer: Callable[[InFlightRequest], None]
    ) -> None:
        """Begin with nothing in line, and not at rest."""
        self.matcher = lane
        self.server_state = server_state
        self.on_response = on_answer
        self.in_flight: deque[InFlightRequest] = deque()
        self.is_single_request = False
        self.idle_since = 0.0
        self._handler: RequestHandler | None = None  # of the request that is being answered at rest
        self._request_line: CachedRequestLine | None = None  # of the last request at rest, and its dialect
        self._error_format = NATIVE
        self._slot: InFlightRequest | None = None  # of that request, since the rest ended
        self._is_done = self._on_result  # a bound method is an object too, made once
        self._write: Callable[[bytes], None]
        self._is_closing: Callable[[], bool]

    def enter_single_request_mode(self, transport: asyncio.Transport) -> None:
        """Be at rest from now on; nothing is in line."""
        self._write, self._is_closing = transport.write, transport.is_closing
        self.is_single_request = self._handler is None

    def submit(self, data: bytes) -> bool:
        """Begin what has come, if that is one whole request of a known head on a connection at rest.

        Returns:
            False: It was not begun; it may be such a request all the same, whose head is to be looked at first.
        """
        if not self.is_single_request or self._handler is not None:
            return False
        known = self.matcher.match_whole_request(data, self._request_line)
        if known is None:
            return False
        target, call, body = known
        if target is not self._request_line:
            self._request_line, self._error_format = target, target.route.error_format
        self._handler = call
        try:
            call.submit(body, self._is_done)
        except Exception as exc:  # noqa: BLE001 - one request's fault must not end its connection; it is logged
            self._fail(exc)
        return True

    def leave_single_request_mode(self) -> None:
        """Be at rest no more; a request that is being answered gets its place in line."""
        self.is_single_request = False
        if self._handler is not None and self._slot is None:
            self._slot = InFlightRequest(self, self._error_format, self._handler)
            self.in_flight.append(self._slot)

    def _on_result(self, result: Any) -> None:
        """Take the result of the request that was begun at rest, in the midst of a batch: nothing is raised."""
        call, place = self._handler, self._slot
        assert call is not None
        if place is not None:
            self._handler = self._slot = None
            place.on_result(result)
            return
        if isinstance(result, ServiceError):
            self._fail(result)
            return
        try:
            body = call.encode_response(result)
        except Exception as exc:  # noqa: BLE001 - nor the batch that it came in
            self._fail(exc)
            return
        self._handler = None
        lane = self.matcher
        text = lane.write_response(body, call, self._error_format, self.server_state)
        self.idle_since = lane.now
        if not self._is_closing():
            self._write(text)

    def _fail(self, why: Exception) -> None:
        """Answer with a problem, unless the answer was given before."""
        self.leave_single_request_mode()
        place, self._handler, self._slot = self._slot, None, None
        if place is not None:
            place.fail(why)
        else:
            _log.error("A request failed behind its answer", exc_info=why)
