"""`HeaderBlockCache`: parses the header lines of plain requests, at about the same cost if they are new.

One regular expression removes the header lines whose names do not matter, such as a trace id or the client's address
that a proxy adds. What is left is mostly the same from request to request and is looked up by its bytes; where it is
new, it is parsed line by line. The grammar is strict: a request with anything unusual in its header lines is left to
httptools (ADR 0041).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from service.requests.hot_routes import RELEVANT_HEADERS, RequestHeaders, parse_headers

_K = TypeVar("_K")
_V = TypeVar("_V")

_MAX_BLOCKS: Final = 1024  # cached blocks
_MAX_PARSED: Final = 16_384  # cached results
_MAX_CACHED_BYTES: Final = 1024  # of the header lines of one entry
_MAX_LIKELY_BYTES: Final = 4096  # of a request behind its request line
_LENGTH_DIGITS: Final = 8
# These change how a request is parsed or what happens to its connection.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})
_CONNECTION: Final = b"connection"
# As httptools parses it: no space before the colon, leading spaces of the value dropped, trailing ones kept. The
# quantifiers are possessive: without backtracking the time is linear in the length.
_LINE: Final = rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)"
_ANY_LINE: Final = re.compile(_LINE)
_NAMES: Final = b"|".join(sorted({*RELEVANT_HEADERS, *_UNUSUAL, _CONNECTION}))
# It begins with the line end of the line before, which the search finds quickly.
_OTHER_LINES: Final = re.compile(rb"\r\n(?!(?i:" + _NAMES + rb"):)" + _LINE + rb"(?=\r\n)")


class HeaderBlock(NamedTuple):
    """The parsed header lines of a plain request.

    Attributes:
        text: Their bytes, from the end of the request line to the end of the empty line.
        headers: The relevant headers.
        length: Length of the body in bytes.
    """

    text: bytes
    headers: RequestHeaders
    length: int


class HeaderBlockCache:
    """Parses and caches the header lines of plain requests; returns None for all others.

    Attributes:
        likely: Blocks by the length of everything behind the request line, body included. Clients that send the same
            headers rarely send anything else of the same length.
    """

    def __init__(self, max_body_bytes: int) -> None:
        """Start with empty caches.

        Args:
            max_body_bytes: Requests with a longer body are left to the declared route.
        """
        self._max_body = max_body_bytes
        self.by_length: dict[int, HeaderBlock] = {}
        self._blocks: OrderedDict[bytes, HeaderBlock] = OrderedDict()
        self._seen = [0] * _MAX_BLOCKS  # hashes of blocks, by their remainder
        self._parsed: OrderedDict[bytes, tuple[RequestHeaders, int]] = OrderedDict()  # by the lines that matter
        self._interned: OrderedDict[RequestHeaders, RequestHeaders] = (
            OrderedDict()
        )  # `HotRequestMatcher` compares fields by identity

    def match(self, data: bytes, at: int) -> tuple[RequestHeaders, int] | None:
        """Parse the header lines of a complete request that is followed by nothing.

        Args:
            data: The bytes that a connection received.
            at: Index of the end of the request line.

        Returns:
            The headers, and the index of the body; None: the request is not plain, not complete, or not alone.
        """
        begins = data.find(b"\r\n\r\n", at, at + _MAX_LIKELY_BYTES) + 4
        text = data[at:begins]
        block = self._blocks.get(text)
        parsed = self.read(text) if block is None else (block.headers, block.length)
        if parsed is None or begins + parsed[1] != len(data):
            return None
        headers, length = parsed
        if block is None:
            self._cache_if_repeated(text, headers, length)
        elif len(data) - at <= _MAX_LIKELY_BYTES:
            self.by_length[len(data) - at] = block
        return headers, begins

    def read(self, text: bytes) -> tuple[RequestHeaders, int] | None:
        """Parse header lines.

        Args:
            text: The lines, from the end of the request line to the end of the empty line.

        Returns:
            The headers and the length of the body in bytes; None: the request is not plain.
        """
        lines = _OTHER_LINES.sub(b"", text)
        return self._parsed.get(lines) or self._parse(lines)

    def _cache_if_repeated(self, text: bytes, headers: RequestHeaders, length: int) -> None:
        """Cache a block at its second time, so that blocks which never come again evict none that do."""
        digest = hash(text)
        slot = digest % _MAX_BLOCKS
        if self._seen[slot] != digest:
            self._seen[slot] = digest
        elif headers.idempotency_key is None and len(text) <= _MAX_CACHED_BYTES:
            put_bounded(self._blocks, text, HeaderBlock(text, headers, length), _MAX_BLOCKS)

    def _parse(self, text: bytes) -> tuple[RequestHeaders, int] | None:
        lines = _split(text)
        if lines is None or not _UNUSUAL.isdisjoint(name for name, _ in lines):
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
        headers, length = replace(headers, length=None), int(digits)
        if headers.idempotency_key is None and len(text) <= _MAX_CACHED_BYTES:  # a key never comes again
            headers = self._interned.get(headers) or put_bounded(self._interned, headers, headers, _MAX_PARSED)
            put_bounded(self._parsed, text, (headers, length), _MAX_PARSED)
        return headers, length


def put_bounded(cache: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> _V:
    """Put an entry into a cache, and evict the oldest one where there are more than `most`."""
    cache[key] = value
    if len(cache) > most:
        cache.popitem(last=False)
    return value


def _split(text: bytes) -> list[tuple[bytes, bytes]] | None:
    """Return the names, in lower case, and the values of header lines; None if a line is not plain."""
    lines = text.split(b"\r\n")
    if len(lines) < 3 or any((lines[0], lines[-2], lines[-1])):
        return None
    matches = [_ANY_LINE.fullmatch(line) for line in lines[1:-2]]
    headers = [(match[1].lower(), match[2]) for match in matches if match is not None]
    return headers if len(headers) == len(matches) else None
