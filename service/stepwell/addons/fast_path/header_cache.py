"""`HeaderCache`: parses the header lines of plain requests, at about the same cost whether or not they are new.

Clients differ in the values of their headers and rarely in the names and their order. For each frequent order of names
there is a `HeaderLayout`: one regular expression that matches all header lines at once and extracts the values that
matter. A client's address that a proxy adds matches like any other value and is ignored. The request's id is extracted,
but is no part of what is cached. All other requests are parsed line by line. The grammar is strict: a request with an
unusual header line is left to httptools (ADR 0006).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Final, NamedTuple, TypeVar

from stepwell.addons.fast_path.hot_step_routes import RELEVANT_HEADERS, parse_headers
from stepwell.requests.hot_routes import RequestHeaders
from stepwell.requests.request_ids import REQUEST_ID_VALUES, RESPONSE_HEADER, TRACEPARENT, identify, request_id_of
from stepwell.requests.tracer import RequestTracer

_K = TypeVar("_K")
_V = TypeVar("_V")

_MAX_LAYOUTS: Final = 8
_REQUESTS_PER_LAYOUT: Final = 64  # compiling a layout takes as long as parsing some 30 requests line by line
_MAX_CANDIDATES: Final = 64  # orders of names that are counted
_MAX_LINES: Final = 64
_MAX_CACHED: Final = 4096  # combinations of relevant values, per layout
_MAX_CACHED_BYTES: Final = 1024  # of one combination
_MAX_HEAD_BYTES: Final = 8 * 1024
_MAX_RECENT_BYTES: Final = 4096  # of a request after its request line
_RECENT_EVERY: Final = 16  # requests
_LENGTH_DIGITS: Final = 8
# These change how a request is parsed or what happens to its connection.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})
_CONNECTION: Final = b"connection"
_EXTRACTED: Final = RELEVANT_HEADERS | _UNUSUAL | {_CONNECTION}
# As httptools parses it: no space before the colon, leading spaces of the value dropped, trailing ones kept. The
# quantifiers are possessive: without backtracking the time is linear in the length.
_NAME: Final = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]++"
_COLON: Final = rb":[ \t]*+"
_VALUE: Final = rb"[^\x00-\x08\x0a-\x1f\x7f]*+"
_LINE: Final = re.compile(rb"(" + _NAME + rb")" + _COLON + rb"(" + _VALUE + rb")")


ParsedHeaders = tuple[RequestHeaders, int, bytes]
"""The relevant headers, the length of the body in bytes, and the request's id, empty if it has none."""


class HeaderBlock(NamedTuple):
    """The parsed header lines of a plain request.

    Attributes:
        text: Their bytes, from the end of the request line to the end of the empty line.
        headers: The relevant headers.
        length: Length of the body in bytes.
        request_id: The request's id, or empty.
    """

    text: bytes
    headers: RequestHeaders
    length: int
    request_id: bytes


class HeaderLayout:
    """Header lines with certain names in a certain order.

    Attributes:
        match: Matches such lines and the empty line after them; it has one group per extracted value.
        names: The names of the groups that matter, in lower case.
        cache: What was parsed, by the values of these groups.
        has_ids: Whether one of the headers is `X-Request-Id` or `traceparent`.
        id_at: Index of the group of `X-Request-Id`, which is None if the value is not valid; -1: no such header.
        parent_at: Likewise of `traceparent`.
        without_ids: Returns the values of the other groups.
    """

    __slots__ = ("cache", "has_ids", "id_at", "match", "names", "parent_at", "without_ids")

    def __init__(self, names: Sequence[bytes]) -> None:
        lower = [name.lower() for name in names]
        ids = {lower.index(name): pattern for name, pattern in REQUEST_ID_VALUES.items() if name in lower}
        lines = [
            rb"\r\n" + re.escape(name) + _COLON + (_valid_or_not(ids[at]) if at in ids else _value_of(name))
            for at, name in enumerate(names)
        ]
        self.match = re.compile(b"".join(lines) + rb"\r\n\r\n").match
        groups = [(name, at in ids) for at, name in enumerate(lower) if name in _EXTRACTED or at in ids]
        self.names = [name for name, is_id in groups if not is_id]
        self.has_ids = bool(ids)
        self.id_at, self.parent_at = (
            groups.index((name, True)) if name in lower else -1 for name in (RESPONSE_HEADER, TRACEPARENT)
        )
        self.without_ids = _picker([at for at, (_, is_id) in enumerate(groups) if not is_id])
        self.cache: OrderedDict[tuple[bytes, ...], ParsedHeaders] = OrderedDict()


class HeaderCache:
    """Parses the header lines of plain requests; returns None for all others.

    Attributes:
        recent: Some recent blocks, by the length of everything after the request line, body included. Clients that
            send the same headers rarely send anything else of the same length.
    """

    def __init__(self, max_body_bytes: int, tracer: RequestTracer | None = None) -> None:
        """Start with empty caches.

        Args:
            max_body_bytes: Requests with a longer body are left to the declared route.
            tracer: Decides which requests continue a trace; None: none does.
        """
        self._tracer = tracer
        self._max_body = max_body_bytes
        self.recent: dict[int, HeaderBlock] = {}
        self._until_recent = 0  # requests until the next block is added to `recent`
        self._layouts: list[HeaderLayout] = []  # the last used one first
        self._candidates: OrderedDict[tuple[bytes, ...], int] = OrderedDict()  # requests by their order of names
        # `HotRequestMatcher` compares headers by identity.
        self._interned: OrderedDict[RequestHeaders, RequestHeaders] = OrderedDict()

    def match(self, data: bytes, start: int) -> tuple[RequestHeaders, int, bytes] | None:
        """Parse the header lines of a complete request that is followed by nothing.

        Args:
            data: The bytes that a connection received.
            start: Offset of the end of the request line.

        Returns:
            The headers, the offset of the body, and the request's id; None: the request is not plain, not complete, or
            not alone.
        """
        parsed, body_start = self._parse(data, start)
        if parsed is None or body_start + parsed[1] != len(data):
            return None
        self._until_recent -= 1
        # Not each block: of those that differ, most are never received again.
        if self._until_recent < 0 and len(data) - start <= _MAX_RECENT_BYTES:
            self._until_recent = _RECENT_EVERY
            self.recent[len(data) - start] = HeaderBlock(data[start:body_start], *parsed)
        return parsed[0], body_start, parsed[2]

    def read(self, text: bytes) -> ParsedHeaders | None:
        """Parse header lines.

        Args:
            text: The lines, from the end of the request line to the end of the empty line.

        Returns:
            What was parsed; None: the request is not plain.
        """
        return self._parse(text, 0)[0]

    def _parse(self, data: bytes, start: int) -> tuple[ParsedHeaders | None, int]:
        """Return what was parsed, None if the request is not plain; and the offset of the body."""
        layouts = self._layouts
        for layout in layouts:
            match = layout.match(data, start, start + _MAX_HEAD_BYTES)
            if match is not None:
                if layout is not layouts[0]:
                    layouts.remove(layout)
                    layouts.insert(0, layout)
                values = match.groups()
                if not layout.has_ids:
                    return layout.cache.get(values) or self._parse_values(layout, values), match.end()
                return self._parse_with_id(layout, values), match.end()
        end = data.find(b"\r\n\r\n", start, start + _MAX_HEAD_BYTES) + 4
        return self._parse_lines(data[start:end]), end

    def _parse_with_id(self, layout: HeaderLayout, groups: tuple[bytes, ...]) -> ParsedHeaders | None:
        values = layout.without_ids(groups)
        parsed = layout.cache.get(values) or self._parse_values(layout, values)
        if parsed is None:
            return None
        own = groups[layout.id_at] if layout.id_at >= 0 else None
        if layout.parent_at < 0:
            return parsed[0], parsed[1], own or b""
        return parsed[0], parsed[1], identify(own, groups[layout.parent_at], self._tracer)

    def _parse_values(self, layout: HeaderLayout, values: tuple[bytes, ...]) -> ParsedHeaders | None:
        parsed = self._parse_headers(list(zip(layout.names, values, strict=True)))
        if parsed is not None and parsed[0].idempotency_key is None and sum(map(len, values)) <= _MAX_CACHED_BYTES:
            put_bounded(layout.cache, values, parsed, _MAX_CACHED)  # a key is used for one request only
        return parsed

    def _parse_lines(self, text: bytes) -> ParsedHeaders | None:
        lines = text.split(b"\r\n")
        if not 3 <= len(lines) <= _MAX_LINES + 3 or any((lines[0], lines[-2], lines[-1])):
            return None
        names: list[bytes] = []
        headers: list[tuple[bytes, bytes]] = []
        for line in lines[1:-2]:
            match = _LINE.fullmatch(line)
            if match is None:
                return None
            names.append(match[1])
            headers.append((match[1].lower(), match[2]))
        parsed = self._parse_headers(headers)
        if parsed is not None:
            self._count(tuple(names))
        return parsed

    def _count(self, names: tuple[bytes, ...]) -> None:
        """Count an order of names, and compile its layout if it is frequent."""
        count = self._candidates.pop(names, 0) + 1
        if count < _REQUESTS_PER_LAYOUT:
            put_bounded(self._candidates, names, count, _MAX_CANDIDATES)
        else:
            self._layouts.insert(0, HeaderLayout(names))
            del self._layouts[_MAX_LAYOUTS:]

    def _parse_headers(self, lines: Sequence[tuple[bytes, bytes]]) -> ParsedHeaders | None:
        """Return what was parsed; None: a header that matters is unusual."""
        if not _UNUSUAL.isdisjoint(name for name, _ in lines):
            return None
        connection = [value.lower() for name, value in lines if name == _CONNECTION]
        lengths = [value for name, value in lines if name == b"content-length"]
        if connection not in ([], [b"keep-alive"]) or len(lengths) != 1:
            return None
        [digits] = lengths
        if not digits.isdigit() or len(digits) > _LENGTH_DIGITS or int(digits) > self._max_body:
            return None
        headers = parse_headers(lines)
        if headers is None:
            return None
        headers = replace(headers, length=None)
        if headers.idempotency_key is None:
            headers = self._interned.get(headers) or put_bounded(self._interned, headers, headers, _MAX_CACHED)
        return headers, int(digits), request_id_of(lines, self._tracer)


def _value_of(name: bytes) -> bytes:
    """Return the pattern of a header's value, with a group if the value is extracted."""
    return b"(" + _VALUE + b")" if name.lower() in _EXTRACTED else _VALUE


def _valid_or_not(pattern: bytes) -> bytes:
    """Return the pattern of a value whose group matches only if the value has the given pattern."""
    return b"(?:" + pattern + rb"[ \t]*+(?=\r\n)|" + _VALUE + b")"


def _picker(indices: Sequence[int]) -> Callable[[tuple[bytes, ...]], tuple[bytes, ...]]:
    """Return a function that returns the elements at some indices; there is at least one."""
    if len(indices) > 1:
        return itemgetter(*indices)
    [only] = indices
    return lambda values: (values[only],)


def put_bounded(cache: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> _V:
    """Put an entry into a cache, and evict the oldest one if there are more than `most`."""
    cache[key] = value
    if len(cache) > most:
        cache.popitem(last=False)
    return value
