"""`Line`: the requests of one connection that the lane has taken, and the answers' order.

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

from service.api.calls import Call
from service.api.dialects import NATIVE, Dialect
from service.api.problems import unforeseen
from service.errors import ServiceError
from service.lane.lane import Head, Lane, Target

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_log = logging.getLogger(__name__)


class Exchange:
    """A request of the lane and its answer's place in line."""

    __slots__ = ("_dialect", "_line", "body_bytes", "call", "text")

    def __init__(self, line: Line, dialect: Dialect, call: Call | None = None, *, body_bytes: int = 0) -> None:
        """Begin without an answer."""
        self.text = b""  # none yet
        self.call = call
        self.body_bytes = body_bytes
        self._dialect = dialect
        self._line = line

    def begin(self, head: Head, body: bytes) -> None:
        """Hand a request over to the engine, or answer what is wrong with it."""
        try:
            call = self.call = self._line.lane.call(head)
            call.begin(body, self.done)
        except Exception as exc:  # noqa: BLE001 - one request's fault must not end its connection; it is logged
            self.fail(exc)

    def done(self, result: Any) -> None:
        """Take the result, in the midst of a batch: nothing is raised."""
        assert self.call is not None
        if isinstance(result, ServiceError):
            self.fail(result)
            return
        try:
            body = self.call.encode(result)
        except Exception as exc:  # noqa: BLE001 - nor the batch that it came in
            self.fail(exc)
            return
        line = self._line
        self.text = line.lane.answer(body, self.call, self._dialect, line.server_state)
        line.on_answer(self)

    def fail(self, why: Exception) -> None:
        """Answer with a problem; what nobody foresaw is logged."""
        if not isinstance(why, ServiceError):
            _log.error("A request failed", exc_info=why)
        if not self.text:
            line = self._line
            problem = why if isinstance(why, ServiceError) else unforeseen()
            self.text = line.lane.refusal(problem, self._dialect, line.server_state)
            line.on_answer(self)


class Line:
    """The lane's requests of one connection, and what is looked at for each of them.

    The connection itself has so many attributes that each look at one of them is slow.

    Attributes:
        lane: What all connections share.
        server_state: uvicorn's, which has the headers that every answer gets.
        on_answer: Told of each exchange in `waiting` that has got its answer.
        waiting: Exchanges without an answer, or behind such; none on a connection at rest.
        is_at_rest: One request at a time comes, and nothing else is going on.
        idle_since: When the last answer went out, on the loop's clock.
    """

    __slots__ = (
        "_call",
        "_dialect",
        "_done",
        "_is_closing",
        "_place",
        "_target",
        "_write",
        "idle_since",
        "is_at_rest",
        "lane",
        "on_answer",
        "server_state",
        "waiting",
    )

    def __init__(self, lane: Lane, server_state: ServerState, on_answer: Callable[[Exchange], None]) -> None:
        """Begin with nothing in line, and not at rest."""
        self.lane = lane
        self.server_state = server_state
        self.on_answer = on_answer
        self.waiting: deque[Exchange] = deque()
        self.is_at_rest = False
        self.idle_since = 0.0
        self._call: Call | None = None  # of the request that is being answered at rest
        self._target: Target | None = None  # of the last request at rest, and its dialect
        self._dialect = NATIVE
        self._place: Exchange | None = None  # of that request, since the rest ended
        self._done = self._take  # a bound method is an object too, made once
        self._write: Callable[[bytes], None]
        self._is_closing: Callable[[], bool]

    def rest(self, transport: asyncio.Transport) -> None:
        """Be at rest from now on; nothing is in line."""
        self._write, self._is_closing = transport.write, transport.is_closing
        self.is_at_rest = self._call is None

    def begin(self, data: bytes) -> bool:
        """Begin what has come, if that is one whole request of a known head on a connection at rest.

        Returns:
            False: It was not begun; it may be such a request all the same, whose head is to be looked at first.
        """
        if not self.is_at_rest or self._call is not None:
            return False
        known = self.lane.whole(data, self._target)
        if known is None:
            return False
        target, call, body = known
        if target is not self._target:
            self._target, self._dialect = target, target.route.dialect
        self._call = call
        try:
            call.begin(body, self._done)
        except Exception as exc:  # noqa: BLE001 - one request's fault must not end its connection; it is logged
            self._fail(exc)
        return True

    def end_rest(self) -> None:
        """Be at rest no more; a request that is being answered gets its place in line."""
        self.is_at_rest = False
        if self._call is not None and self._place is None:
            self._place = Exchange(self, self._dialect, self._call)
            self.waiting.append(self._place)

    def _take(self, result: Any) -> None:
        """Take the result of the request that was begun at rest, in the midst of a batch: nothing is raised."""
        call, place = self._call, self._place
        assert call is not None
        if place is not None:
            self._call = self._place = None
            place.done(result)
            return
        if isinstance(result, ServiceError):
            self._fail(result)
            return
        try:
            body = call.encode(result)
        except Exception as exc:  # noqa: BLE001 - nor the batch that it came in
            self._fail(exc)
            return
        self._call = None
        lane = self.lane
        text = lane.answer(body, call, self._dialect, self.server_state)
        self.idle_since = lane.now
        if not self._is_closing():
            self._write(text)

    def _fail(self, why: Exception) -> None:
        """Answer with a problem, unless the answer was given before."""
        self.end_rest()
        place, self._call, self._place = self._place, None, None
        if place is not None:
            place.fail(why)
        else:
            _log.error("A request failed behind its answer", exc_info=why)
