"""`HotRequestMatcher`: what all connections of a process share: recognising hot requests, the heads of answers, the counts."""

from __future__ import annotations

import asyncio
import re
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.codec import JSON, Format
from service.errors import ServiceError
from service.protocols.header_cache import HeaderBlockCache, put_bounded
from service.protocols.http_limits import response_bytes
from service.requests.context import AppContext
from service.requests.error_formats import NATIVE, ErrorFormat
from service.requests.handlers import RequestHandler
from service.requests.hot_routes import VERSION, HotRoute, RequestHeaders, make_handler

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_HEAD_LIMIT: Final = 8 * 1024  # longer ones are unusual
_MAX_CACHED_LINES: Final = 16_384  # request lines, heads of answers
HeaderPairs = Sequence[tuple[bytes, bytes]]


@dataclass(slots=True)
class CachedRequestLine:
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
    headers: RequestHeaders | None = None
    handler: RequestHandler | None = None


class RequestHead(NamedTuple):
    """The head of a hot request: its line, what its headers say, and the length of the body in bytes."""

    request_line: CachedRequestLine
    headers: RequestHeaders
    length: int


HotRequest = tuple[RequestHead, int, int]
"""A hot request in what a connection received: its head, where its body begins, and where it ends, which may be beyond
what has come so far."""


class HotRequestMatcher:
    """What all connections of a process share.

    Attributes:
        now: The time of this turn of the loop, if anything was answered in it; on the loop's clock.
    """

    def __init__(self, context: AppContext, routes: Sequence[HotRoute]) -> None:
        """Prepare.

        Args:
            context: What every route needs.
            routes: The hot ones, those asked for most first.
        """
        self.context = context
        self._routes = [(route, _request_line(route)) for route in routes]
        self._prefixes = {f"POST {route.prefix}".encode() for route in routes}
        self._request_lines: OrderedDict[bytes, CachedRequestLine] = OrderedDict()  # by the request line
        self._generation = -1  # of what their calls were made of
        self._version_checked = False  # that this is still the generation, in this turn of the loop
        self._keep_alive = False  # likewise, and nothing more is to be said in answers
        self._flush_scheduled = False
        self._tick_end_scheduled = False  # this turn of the loop
        self._header_parser = HeaderBlockCache(context.settings.max_body_bytes)
        self._counted_requests: Counter[tuple[str, int]] = Counter()
        self._steps = 0  # answers of the kind that nearly all are, which are not in `_counted_requests`
        self._json_heads: dict[int, bytes] = {}  # of answers, by the length of their bodies
        self.now = 0.0
        self._default_headers: HeaderPairs = []

    def match_head(self, data: bytes, start: int) -> HotRequest | None:
        """Return the hot request whose head stands at a place, None where none does, or not all of its head."""
        end = data.find(b"\r\n\r\n", start, start + _HEAD_LIMIT)
        if end < 0:
            return None
        at = data.find(b"\r\n", start, end + 2)
        line = data[start:at]
        target = self._request_lines.get(line) or self._request_line_for(line)
        read = None if target is None else self._header_parser.read(data[at : end + 4])
        if target is None or read is None:
            return None
        fields, length = read
        return RequestHead(target, fields, length), end + 4, end + 4 + length

    def match_whole_request(
        self, data: bytes, last: CachedRequestLine | None
    ) -> tuple[CachedRequestLine, RequestHandler, bytes] | None:
        """Return what is asked for, the call, and its body, where this is one whole request with plain header lines.

        None says nothing: it may still be a hot request, which is to be looked at with more care.

        Args:
            data: What a connection received.
            last: What it asked for before; most clients then ask for the same again.
        """
        if not self._version_checked:
            self._check_config_version()
        target: CachedRequestLine | None
        if last is not None and last.generation == self._generation and data.startswith(last.line):
            target, at = last, len(last.line)
        else:
            target, at = None, data.find(b"\r\n")
        block = self._header_parser.by_length.get(len(data) - at)
        if block is not None and data.startswith(block.text, at):
            fields, begins = block.fields, at + len(block.text)
        elif (found := self._header_parser.match(data, at)) is not None:
            fields, begins = found
        else:
            return None
        if not self._keep_alive:
            return None
        if target is None:
            line = data[:at]
            target = self._request_lines.get(line) or self._request_line_for(line)
            if target is None:
                return None
        call = target.handler
        if call is None or target.headers is not fields:
            try:
                call = self.handler_for(RequestHead(target, fields, len(data) - begins))
            except Exception:  # noqa: BLE001 - it is refused by whoever looks at it with more care
                return None
        return target, call, data[begins:]

    def is_part_of_head(self, data: bytes, start: int) -> bool:
        """Say whether the beginning of a head stands there that may become a hot one."""
        begins = any(data.startswith(prefix[: len(data) - start], start) for prefix in self._prefixes)
        return begins and len(data) - start < _HEAD_LIMIT and data.find(b"\r\n\r\n", start) < 0

    def handler_for(self, head: RequestHead) -> RequestHandler:
        """Return what a request asks for, once it is sure that its head is allowed.

        Raises:
            ServiceError: It is refused.
        """
        if not self._version_checked:
            self._check_config_version()
        target, fields, _ = head
        if target.handler is not None and target.headers is fields and target.generation == self._generation:
            return target.handler
        call = make_handler(target.route, self.context, target.parts, target.version, fields)
        if call.is_reusable and self.context.api_keys.is_cacheable:
            target.headers, target.handler, target.generation = fields, call, self._generation
        return call

    def write_response(
        self, body: bytes, call: RequestHandler, dialect: ErrorFormat, server_state: ServerState
    ) -> bytes:
        """Return an answer with status 200, whole."""
        if not self._flush_scheduled:
            self._flush_metrics_later(server_state)
        if dialect is NATIVE:
            self._steps += 1
        else:
            self._counted_requests[dialect.transport, 200] += 1
        if (form := call.response_format) is JSON and not call.extra_headers:  # what nearly all are
            return (self._json_heads.get(len(body)) or self._json_head(len(body))) + body
        more = [f"{name}: {value}\r\n".encode() for name, value in (call.extra_headers or {}).items()]
        return b"".join([self._head(form, len(body)), *more, b"\r\n", body])

    def write_problem(self, error: ServiceError, dialect: ErrorFormat, server_state: ServerState) -> bytes:
        """Return the answer to a request that failed, whole."""
        self.context.metrics.refusal(error.code)
        response = dialect.response(error)
        if not self._flush_scheduled:
            self._flush_metrics_later(server_state)
        self._counted_requests[dialect.transport, response.status] += 1
        return response_bytes(response.status, [*self._default_headers, *response.headers], response.body)

    # ---------------------------------------------------------------- helpers

    def _request_line_for(self, line: bytes) -> CachedRequestLine | None:
        for route, pattern in self._routes:
            match = pattern.fullmatch(line)
            if match is not None:
                *parts, number = match.groups()
                version = None if number is None else int(number)
                target = CachedRequestLine(line, self._generation, route, [part.decode() for part in parts], version)
                return put_bounded(self._request_lines, line, target, _MAX_CACHED_LINES)
        return None

    def _json_head(self, length: int) -> bytes:
        """Return the whole head of an answer of some length in JSON."""
        if len(self._json_heads) >= _MAX_CACHED_LINES:
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

    def _check_config_version(self) -> None:
        """See whether models or keys have changed, once for all requests that came in the same turn of the loop.

        Never when one is answered: what its client does next may come in the same turn.
        """
        generation = self.context.config_version
        if generation != self._generation:
            # Calls hold models that may have been replaced, and callers who may have been revoked.
            self._generation = generation
            self._request_lines.clear()
        self._version_checked, self._keep_alive = True, not self.context.draining
        self._schedule_tick_end()

    def _flush_metrics_later(self, server_state: ServerState) -> None:
        """Tell the counters once for all answers of this turn of the loop, which all have the same date."""
        self._flush_scheduled = True
        if server_state.default_headers is not self._default_headers:  # uvicorn replaces them each second
            self._default_headers = server_state.default_headers
            self._json_heads.clear()
        self.now = asyncio.get_running_loop().time()
        self._schedule_tick_end()

    def _schedule_tick_end(self) -> None:
        if not self._tick_end_scheduled:
            self._tick_end_scheduled = True
            asyncio.get_running_loop().call_soon(self._on_tick_end)

    def _on_tick_end(self) -> None:
        """Forget what was sure in this turn of the loop, and tell what was answered."""
        self._tick_end_scheduled = self._version_checked = self._keep_alive = False
        if self._flush_scheduled:
            self._flush_scheduled = False
            self._flush_metrics()

    def _flush_metrics(self) -> None:
        if self._steps:
            self.context.metrics.request(NATIVE.transport, 200, self._steps)
            self._steps = 0
        if self._counted_requests:
            for (door, status), n in self._counted_requests.items():
                self.context.metrics.request(door, status, n)
            self._counted_requests.clear()


def _request_line(route: HotRoute) -> re.Pattern[bytes]:
    """Return the pattern of a route's whole request line, without its end."""
    return re.compile(rf"POST {route.path}(?:\?{VERSION})? HTTP/1\.1".encode())
