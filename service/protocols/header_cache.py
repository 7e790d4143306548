"""`HeaderBlockCache`: parses the header lines of plain requests, and caches the result by their bytes.

One regular expression removes the header lines that are not relevant. The remaining lines are mostly the same from
request to request, so their result is cached by their bytes: a trace id, or an address that a proxy adds, costs next to
nothing. Remaining lines that are not in the cache are parsed line by line. Parsing is strict: httptools handles every
request with anything unusual in its header lines.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from service.requests.hot_routes import RELEVANT_HEADERS, RequestHeaders, parse_headers

_K = TypeVar("_K")
_V = TypeVar("_V")

_MAX_CACHED_BLOCKS: Final = 1024  # whole blocks of header lines, mostly one per client
_MAX_CACHED_HEADERS: Final = 16_384  # blocks of relevant lines
_MAX_CACHED_BYTES: Final = 1024  # of one block; longer blocks are not cached
_MAX_MATCH_BYTES: Final = 4096  # of a request after its request line
_LENGTH_DIGITS: Final = 8
# These change how a request is parsed or what happens to its connection.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})
_CONNECTION: Final = b"connection"
# As in httptools: no space before the colon; spaces before the value are dropped, those after it are kept. The
# quantifiers are possessive (no backtracking), so the time of a match is linear in the length of the line.
_LINE: Final = rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)"
_ANY_LINE: Final = re.compile(_LINE)
_NAMES: Final = b"|".join(sorted({*RELEVANT_HEADERS, *_UNUSUAL, _CONNECTION}))
# The pattern starts with the line end, which is found quickly.
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
        by_length: The last block by the length in bytes of all that follows the request line. While all clients send
            similar requests, a request of that length mostly has this block.
    """

    def __init__(self, max_body_bytes: int) -> None:
        """Create an empty cache.

        Args:
            max_body_bytes: Requests with a longer body are left to the declared routes.
        """
        self._max_body = max_body_bytes
        self.by_length: dict[int, HeaderBlock] = {}
        self._blocks: OrderedDict[bytes, HeaderBlock] = OrderedDict()
        self._recent_hashes = [0] * _MAX_CACHED_BLOCKS  # hashes of recent blocks
        self._parsed: OrderedDict[bytes, tuple[RequestHeaders, int]] = (
            OrderedDict()
        )  # by the bytes of the relevant lines
        # One object for equal headers: handlers are cached by its identity.
        self._shared_headers: OrderedDict[RequestHeaders, RequestHeaders] = OrderedDict()

    def match(self, data: bytes, offset: int) -> tuple[RequestHeaders, int] | None:
        """Return the headers after a request line; None if the data does not end with the end of the body.

        Args:
            data: The bytes that a connection received.
            offset: Offset of the line end of the request line.

        Returns:
            The headers, and the offset of the body.
        """
        body_start = data.find(b"\r\n\r\n", offset, offset + _MAX_MATCH_BYTES) + 4
        text = data[offset:body_start]
        block = self._blocks.get(text)
        if block is not None:
            headers, length = block.headers, block.length
        elif (parsed := self.read(text)) is not None:
            headers, length = parsed
            self._cache_if_repeated(text, headers, length)
        else:
            return None
        if body_start + length != len(data):
            return None
        if block is not None and len(data) - offset <= _MAX_MATCH_BYTES:
            self.by_length[len(data) - offset] = block  # only now: a later match by length does not check the body
        return headers, body_start

    def read(self, text: bytes) -> tuple[RequestHeaders, int] | None:
        """Return the relevant headers, and the length of the body in bytes; None: the request is not plain.

        Args:
            text: The lines, from the end of the request line to the end of the empty line.
        """
        relevant = _OTHER_LINES.sub(b"", text)
        return self._parsed.get(relevant) or self._parse(relevant)

    def _cache_if_repeated(self, text: bytes, headers: RequestHeaders, length: int) -> None:
        """Cache a block on its second appearance: most new blocks appear only once."""
        text_hash = hash(text)
        slot = text_hash % _MAX_CACHED_BLOCKS
        if self._recent_hashes[slot] != text_hash:
            self._recent_hashes[slot] = text_hash
        elif headers.idempotency_key is None and len(text) <= _MAX_CACHED_BYTES:
            cache_entry(self._blocks, text, HeaderBlock(text, headers, length), _MAX_CACHED_BLOCKS)

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
        headers, length = replace(headers, length=None), int(digits)  # the length differs between requests
        if headers.idempotency_key is None and len(text) <= _MAX_CACHED_BYTES:  # and so does a key
            headers = self._shared_headers.get(headers) or cache_entry(
                self._shared_headers, headers, headers, _MAX_CACHED_HEADERS
            )
            cache_entry(self._parsed, text, (headers, length), _MAX_CACHED_HEADERS)
        return headers, length


def cache_entry(cache: OrderedDict[_K, _V], key: _K, value: _V, limit: int) -> _V:
    """Add an entry to a cache, and evict the oldest one if there are more than `limit`."""
    cache[key] = value
    if len(cache) > limit:
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
