"""`HotRequestMatcher`: matches hot requests to handlers, and encodes their responses, for all connections."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from stepwell.addons.fast_path.header_cache import HeaderCache, put_bounded
from stepwell.addons.fast_path.hot_step_routes import VERSION, make_handler
from stepwell.errors import ServiceError
from stepwell.protocols.http_limits import response_bytes
from stepwell.requests.context import AppContext
from stepwell.requests.handlers import RequestHandler
from stepwell.requests.hot_routes import HotRoute, RequestHeaders
from stepwell.requests.request_ids import RESPONSE_HEADER
from stepwell_client.wire.formats import JSON, Format

if TYPE_CHECKING:
    from uvicorn.server import ServerState

_HEAD_LIMIT: Final = 8 * 1024  # bytes; requests with a longer head do not take the fast path
_MAX_CACHED_LINES: Final = 16_384  # request lines, and heads of responses
HeaderPairs = Sequence[tuple[bytes, bytes]]


@dataclass(slots=True)
class CachedRequestLine:
    """A parsed hot request line. Clients repeat it with every request of a stream.

    Attributes:
        line: Its bytes, without the line end.
        generation: That of models and keys for which `handler` was created.
        route: Its route.
        parts: The groups of the match of the route's pattern.
        version: The model version in the query, or None.
        headers: The headers for which `handler` was created.
        handler: The handler of requests with this line and these headers, if one can handle all of them; None: not
            created yet.
    """

    line: bytes
    generation: int
    route: HotRoute
    parts: Sequence[str]
    version: int | None
    headers: RequestHeaders | None = None
    handler: RequestHandler | None = None


class RequestHead(NamedTuple):
    """The head of a hot request: its line, its relevant headers, the length of the body in bytes, and its id."""

    request_line: CachedRequestLine
    headers: RequestHeaders
    length: int
    request_id: bytes = b""


HotRequest = tuple[RequestHead, int, int]
"""A hot request in the received data: its head, the offset of its body, and the offset of its end, which may be beyond
the data received so far."""


class HotRequestMatcher:
    """Matches hot requests and encodes their responses, for all connections of a process."""

    def __init__(self, context: AppContext, routes: Sequence[HotRoute]) -> None:
        """Create a matcher with empty caches.

        Args:
            context: The dependencies of every route.
            routes: The hot routes, the most frequent first.
        """
        self.context = context
        self._keys = context.api_keys if context.api_keys.has_file else None  # without a file, they stay the same
        self._routes = [(route, _request_line(route)) for route in routes]
        self._prefixes = {f"POST {route.prefix}".encode() for route in routes}
        self._request_lines: OrderedDict[bytes, CachedRequestLine] = OrderedDict()  # by the request line
        self._generation = -1  # of models and keys, that the cached handlers are valid for
        self._header_parser = HeaderCache(context.settings.max_body_bytes, context.tracer)
        self._succeeded: defaultdict[str, int] = defaultdict(int)  # responses with status 200, by the route's name
        self._failed: Counter[tuple[str, int]] = Counter()  # other responses, by the route's name and their status
        self._transports = {route.name: route.error_format.transport for route in routes}
        self._json_heads: dict[int, bytes] = {}  # of JSON responses, by the length of their bodies
        self._default_headers: HeaderPairs = []  # of `_json_heads`
        context.metrics.on_refresh(self._count_responses)

    def match_head(self, data: bytes, start: int) -> HotRequest | None:
        """Return the hot request that starts at an offset; None: there is none, or its head is not complete."""
        head_end = data.find(b"\r\n\r\n", start, start + _HEAD_LIMIT)
        if head_end < 0:
            return None
        line_end = data.find(b"\r\n", start, head_end + 2)
        line = data[start:line_end]
        request_line = self._request_lines.get(line) or self._request_line_for(line)
        parsed = None if request_line is None else self._header_parser.read(data[line_end : head_end + 4])
        if request_line is None or parsed is None:
            return None
        headers, length, request_id = parsed
        if not headers.has_valid_host:
            return None
        return RequestHead(request_line, headers, length, request_id), head_end + 4, head_end + 4 + length

    def match_whole_request(
        self, data: bytes, last: CachedRequestLine | None
    ) -> tuple[CachedRequestLine, RequestHandler, bytes, bytes] | None:
        """Return request line, handler, body and request id, if the data is exactly one complete, plain request.

        None does not exclude a hot request: the data then needs the full check of `match_head`.

        Args:
            data: The bytes that a connection received.
            last: The request line of its last request, which most clients repeat.
        """
        self._drop_outdated_handlers()
        request_line: CachedRequestLine | None
        if last is not None and last.generation == self._generation and data.startswith(last.line):
            request_line, line_end = last, len(last.line)
        else:
            request_line, line_end = None, data.find(b"\r\n")
        block = self._header_parser.recent.get(len(data) - line_end)
        if block is not None and data.startswith(block.text, line_end):
            headers, body_start, request_id = block.headers, line_end + len(block.text), block.request_id
        elif (match := self._header_parser.match(data, line_end)) is not None:
            headers, body_start, request_id = match
        else:
            return None
        if self.context.draining or not headers.has_valid_host:  # draining: responses need `Connection: close`
            return None
        if request_line is None:
            line = data[:line_end]
            request_line = self._request_lines.get(line) or self._request_line_for(line)
            if request_line is None:
                return None
        handler = request_line.handler
        if handler is None or request_line.headers is not headers:
            try:
                handler = self.handler_for(RequestHead(request_line, headers, len(data) - body_start))
            except Exception:  # noqa: BLE001 - the full check reports it
                return None
        return request_line, handler, data[body_start:], request_id

    def is_part_of_head(self, data: bytes, start: int) -> bool:
        """Return whether the data from an offset may be the start of an incomplete hot head."""
        is_prefix = any(data.startswith(prefix[: len(data) - start], start) for prefix in self._prefixes)
        return is_prefix and len(data) - start < _HEAD_LIMIT and data.find(b"\r\n\r\n", start) < 0

    def handler_for(self, head: RequestHead) -> RequestHandler:
        """Return the handler of a request, after checking that its head is allowed.

        Raises:
            ServiceError: The head is rejected.
        """
        self._drop_outdated_handlers()
        request_line, headers, *_ = head
        if (
            request_line.handler is not None
            and request_line.headers is headers
            and request_line.generation == self._generation
        ):
            return request_line.handler
        handler = make_handler(request_line.route, self.context, request_line.parts, request_line.version, headers)
        if handler.is_reusable and self.context.api_keys.is_cacheable:
            request_line.headers, request_line.handler, request_line.generation = headers, handler, self._generation
        return handler

    def write_response(
        self, body: bytes, handler: RequestHandler, route: HotRoute, server_state: ServerState, request_id: bytes = b""
    ) -> bytes:
        """Return a complete response with status 200."""
        if server_state.default_headers is not self._default_headers:  # uvicorn replaces them every second
            self._default_headers = server_state.default_headers
            self._json_heads.clear()
        self._succeeded[route.name] += 1
        if (response_format := handler.response_format) is JSON and not handler.extra_headers:  # the most frequent kind
            head = self._json_heads.get(len(body)) or self._json_head(len(body))
            if request_id:
                return b"".join((head[:-2], b"x-request-id: ", request_id, b"\r\n\r\n", body))
            return head + body
        extra_lines = [f"{name}: {value}\r\n".encode() for name, value in (handler.extra_headers or {}).items()]
        if request_id:
            extra_lines.append(b"x-request-id: %b\r\n" % request_id)
        return b"".join([self._head(response_format, len(body)), *extra_lines, b"\r\n", body])

    def write_problem(
        self, error: ServiceError, route: HotRoute, server_state: ServerState, request_id: bytes = b""
    ) -> bytes:
        """Return the complete response to a request that failed."""
        self.context.metrics.refusal(error.code)
        response = route.error_format.response(error)
        self._failed[route.name, response.status] += 1
        own = [(RESPONSE_HEADER, request_id)] if request_id else []
        return response_bytes(response.status, [*server_state.default_headers, *response.headers, *own], response.body)

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
        """Return the head of a JSON response, by the length of its body in bytes."""
        if len(self._json_heads) >= _MAX_CACHED_LINES:
            self._json_heads.clear()
        head = self._json_heads[length] = self._head(JSON, length) + b"\r\n"
        return head

    def _head(self, response_format: Format, length: int) -> bytes:
        """Return the head of a response, without the empty line that ends it."""
        return b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-content-type-options: nosniff\r\n" % (
            STATUS_LINE[200],
            b"".join([b"%b: %b\r\n" % header for header in self._default_headers]),
            response_format.value.encode(),
            length,
        )

    def _drop_outdated_handlers(self) -> None:
        """Drop the cached handlers if models or keys have changed: they hold models, and callers."""
        generation = self.context.engine.models.generation
        if self._keys is not None:
            generation += self._keys.generation()
        if generation != self._generation:
            self._generation = generation
            self._request_lines.clear()

    def _count_responses(self) -> None:
        """Count the responses since the last call."""
        for name, n in self._succeeded.items():
            self.context.metrics.request(self._transports[name], 200, name, n)
        for (name, status), n in self._failed.items():
            self.context.metrics.request(self._transports[name], status, name, n)
        self._succeeded.clear()
        self._failed.clear()


def _request_line(route: HotRoute) -> re.Pattern[bytes]:
    """Return the pattern of a route's request line, without the line end."""
    return re.compile(rf"POST {route.path}(?:\?{VERSION})? HTTP/1\.1".encode())
