"""`Lane`: what all connections of a process share: recognising hot requests, the heads of answers, the counts."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.api.calls import Call
from service.api.context import Context
from service.api.dialects import NATIVE, Dialect
from service.api.hot import VERSION, Fields, HotRoute, call_of
from service.api.http import problem_response
from service.connections import message
from service.errors import ServiceError
from service.lane.heads import Heads, put_bounded
from service.wire import JSON, Format

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_HEAD_LIMIT: Final = 8 * 1024  # longer ones are unusual
_REMEMBERED: Final = 16_384  # request lines, heads of answers
Headers = Sequence[tuple[bytes, bytes]]


@dataclass(slots=True)
class Target:
    """What a hot request line asks for. Clients repeat it with every request of a stream.

    Attributes:
        line: Its bytes, without the line end.
        generation: Of the models and keys of which `call` was made.
        route: Its route.
        parts: What the groups of the route's pattern matched.
        version: The model version that it names, or None.
        fields: Headers that came with it.
        call: What it asks for with these very headers, where that serves every such request; None: not found out yet.
    """

    line: bytes
    generation: int
    route: HotRoute
    parts: Sequence[str]
    version: int | None
    fields: Fields | None = None
    call: Call | None = None


class Head(NamedTuple):
    """The head of a hot request: its line, what its headers say, and the length of the body in bytes."""

    target: Target
    fields: Fields
    length: int


Request = tuple[Head, int, int]
"""A hot request in what a connection received: its head, where its body begins, and where it ends, which may be beyond
what has come so far."""


class Lane:
    """What all connections of a process share.

    Attributes:
        now: The time of this turn of the loop, if anything was answered in it; on the loop's clock.
    """

    def __init__(self, context: Context, routes: Sequence[HotRoute]) -> None:
        """Prepare.

        Args:
            context: What every route needs.
            routes: The hot ones, those asked for most first.
        """
        self.context = context
        self._routes = [(route, _request_line(route)) for route in routes]
        self._prefixes = {f"POST {route.prefix}".encode() for route in routes}
        self._targets: OrderedDict[bytes, Target] = OrderedDict()  # by the request line
        self._generation = -1  # of what their calls were made of
        self._is_sure = False  # that this is still the generation, in this turn of the loop
        self._is_quick = False  # likewise, and nothing more is to be said in answers
        self._will_tell = False
        self._ends_soon = False  # this turn of the loop
        self._heads = Heads(context.settings.max_body_bytes)
        self._counts: Counter[tuple[str, int]] = Counter()
        self._steps = 0  # answers of the kind that nearly all are, which are not in `_counts`
        self._json_heads: dict[int, bytes] = {}  # of answers, by the length of their bodies
        self.now = 0.0
        self._default_headers: Headers = []

    def find(self, data: bytes, start: int) -> Request | None:
        """Return the hot request whose head stands at a place, None where none does, or not all of its head."""
        end = data.find(b"\r\n\r\n", start, start + _HEAD_LIMIT)
        if end < 0:
            return None
        at = data.find(b"\r\n", start, end + 2)
        line = data[start:at]
        target = self._targets.get(line) or self._target(line)
        read = None if target is None else self._heads.read(data[at : end + 4])
        if target is None or read is None:
            return None
        fields, length = read
        return Head(target, fields, length), end + 4, end + 4 + length

    def whole(self, data: bytes, last: Target | None) -> tuple[Target, Call, bytes] | None:
        """Return what is asked for, the call, and its body, where this is one whole request with plain header lines.

        None says nothing: it may still be a hot request, which is to be looked at with more care.

        Args:
            data: What a connection received.
            last: What it asked for before; most clients then ask for the same again.
        """
        if not self._is_sure:
            self._look()
        target: Target | None
        if last is not None and last.generation == self._generation and data.startswith(last.line):
            target, at = last, len(last.line)
        else:
            target, at = None, data.find(b"\r\n")
        block = self._heads.likely.get(len(data) - at)
        if block is not None and data.startswith(block.text, at):
            fields, begins = block.fields, at + len(block.text)
        elif (found := self._heads.find(data, at)) is not None:
            fields, begins = found
        else:
            return None
        if not self._is_quick:
            return None
        if target is None:
            line = data[:at]
            target = self._targets.get(line) or self._target(line)
            if target is None:
                return None
        call = target.call
        if call is None or target.fields is not fields:
            try:
                call = self.call(Head(target, fields, len(data) - begins))
            except Exception:  # noqa: BLE001 - it is refused by whoever looks at it with more care
                return None
        return target, call, data[begins:]

    def is_part_of_head(self, data: bytes, start: int) -> bool:
        """Say whether the beginning of a head stands there that may become a hot one."""
        begins = any(data.startswith(prefix[: len(data) - start], start) for prefix in self._prefixes)
        return begins and len(data) - start < _HEAD_LIMIT and data.find(b"\r\n\r\n", start) < 0

    def call(self, head: Head) -> Call:
        """Return what a request asks for, once it is sure that its head is allowed.

        Raises:
            ServiceError: It is refused.
        """
        if not self._is_sure:
            self._look()
        target, fields, _ = head
        if target.call is not None and target.fields is fields and target.generation == self._generation:
            return target.call
        call = call_of(target.route, self.context, target.parts, target.version, fields)
        if call.serves_many and self.context.keys.last:
            target.fields, target.call, target.generation = fields, call, self._generation
        return call

    def answer(self, body: bytes, call: Call, dialect: Dialect, server_state: ServerState) -> bytes:
        """Return an answer with status 200, whole."""
        if not self._will_tell:
            self._tell_later(server_state)
        if dialect is NATIVE:
            self._steps += 1
        else:
            self._counts[dialect.door, 200] += 1
        if (form := call.answer_form) is JSON and not call.more_headers:  # what nearly all are
            return (self._json_heads.get(len(body)) or self._json_head(len(body))) + body
        more = [f"{name}: {value}\r\n".encode() for name, value in (call.more_headers or {}).items()]
        return b"".join([self._head(form, len(body)), *more, b"\r\n", body])

    def refusal(self, error: ServiceError, dialect: Dialect, server_state: ServerState) -> bytes:
        """Return the answer to a request that failed, whole."""
        self.context.metrics.refusal(error.code)
        response = problem_response(error, dialect)
        if not self._will_tell:
            self._tell_later(server_state)
        self._counts[dialect.door, response.status_code] += 1
        return message(response.status_code, [*self._default_headers, *response.raw_headers], bytes(response.body))

    # ---------------------------------------------------------------- helpers

    def _target(self, line: bytes) -> Target | None:
        for route, pattern in self._routes:
            match = pattern.fullmatch(line)
            if match is not None:
                *parts, number = match.groups()
                version = None if number is None else int(number)
                target = Target(line, self._generation, route, [part.decode() for part in parts], version)
                return put_bounded(self._targets, line, target, _REMEMBERED)
        return None

    def _json_head(self, length: int) -> bytes:
        """Return the whole head of an answer of some length in JSON."""
        if len(self._json_heads) >= _REMEMBERED:
            self._json_heads.clear()
        made = self._json_heads[length] = self._head(JSON, length) + b"\r\n"
        return made

    def _head(self, form: Format, length: int) -> bytes:
        """Return the head of an answer of some length, without the empty line behind it."""
        return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-content-type-options: nosniff\r\n" % (
            STATUS_LINE[200],
            b"".join([b"%b: %b\r\n" % header for header in self._default_headers]),
            form.value.encode(),
            length,
        )

    def _look(self) -> None:
        """See whether models or keys have changed, once for all requests that came in the same turn of the loop.

        Never when one is answered: what its client does next may come in the same turn.
        """
        generation = self.context.generation
        if generation != self._generation:
            # Calls hold models that may have been replaced, and callers who may have been revoked.
            self._generation = generation
            self._targets.clear()
        self._is_sure, self._is_quick = True, not self.context.leaving
        self._end_soon()

    def _tell_later(self, server_state: ServerState) -> None:
        """Tell the counters once for all answers of this turn of the loop, which all have the same date."""
        self._will_tell = True
        if server_state.default_headers is not self._default_headers:  # uvicorn replaces them each second
            self._default_headers = server_state.default_headers
            self._json_heads.clear()
        self.now = asyncio.get_running_loop().time()
        self._end_soon()

    def _end_soon(self) -> None:
        if not self._ends_soon:
            self._ends_soon = True
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        """Forget what was sure in this turn of the loop, and tell what was answered."""
        self._ends_soon = self._is_sure = self._is_quick = False
        if self._will_tell:
            self._will_tell = False
            self._tell()

    def _tell(self) -> None:
        if self._steps:
            self.context.metrics.request(NATIVE.door, 200, self._steps)
            self._steps = 0
        if self._counts:
            for (door, status), n in self._counts.items():
                self.context.metrics.request(door, status, n)
            self._counts.clear()


def _request_line(route: HotRoute) -> re.Pattern[bytes]:
    """Return the pattern of a route's whole request line, without its end."""
    return re.compile(rf"POST {route.path}(?:\?{VERSION})? HTTP/1\.1".encode())
