"""`HeaderBlockCache`: reads the header lines of plain requests, which need not have come before.

Header lines of any other name than the few that matter are taken out by one regular expression; what is left is mostly
the same from request to request, and is looked up by its bytes. So a trace id or the address that a proxy adds costs
next to nothing. What is left and was not seen before is read line by line. All of it is strict: a request with anything
unusual in its header lines is left to httptools.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from typing import Final, NamedTuple, TypeVar

from service.requests.hot_routes import RELEVANT_HEADERS, RequestHeaders, parse_headers

_K = TypeVar("_K")
_V = TypeVar("_V")

_REMEMBERED_BLOCKS: Final = 1024  # whole blocks of header lines; those of clients that each send their own
_REMEMBERED: Final = 16_384  # of lines that matter
_REMEMBERED_BYTES: Final = 1024  # of each
_LIKELY_BYTES: Final = 4096  # of a request behind its first line
_LENGTH_DIGITS: Final = 8
# These change how a request is read or what happens to its connection.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})
_CONNECTION: Final = b"connection"
# As httptools has it: no space before the colon, spaces before the value dropped, those behind it kept. The quantifiers
# never give anything back, so that no line takes longer than its length.
_LINE: Final = rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\x00-\x08\x0a-\x1f\x7f]*+)"
_ANY_LINE: Final = re.compile(_LINE)
_NAMES: Final = b"|".join(sorted({*RELEVANT_HEADERS, *_UNUSUAL, _CONNECTION}))
# With the line end in front, which is found quickly.
_OTHER_LINES: Final = re.compile(rb"\r\n(?!(?i:" + _NAMES + rb"):)" + _LINE + rb"(?=\r\n)")


class HeaderBlock(NamedTuple):
    """The header lines of a plain request.

    Attributes:
        text: Their bytes, from the end of the request line to the end of the empty line.
        fields: What they contain.
        length: That of the body, in bytes.
    """

    text: bytes
    fields: RequestHeaders
    length: int


class HeaderBlockCache:
    """Reads the header lines of plain requests; returns None for all others.

    Attributes:
        likely: What is likely to come, by the length of all that follows the request line: as long as all clients send
            alike, nothing else is of that length.
    """

    def __init__(self, max_body_bytes: int) -> None:
        """Begin with nothing remembered.

        Args:
            max_body_bytes: A request with a longer body is none of ours.
        """
        self._max_body = max_body_bytes
        self.by_length: dict[int, HeaderBlock] = {}
        self._blocks: OrderedDict[bytes, HeaderBlock] = OrderedDict()
        self._came = [0] * _REMEMBERED_BLOCKS  # hashes of blocks that came lately
        self._known: OrderedDict[bytes, tuple[RequestHeaders, int]] = OrderedDict()  # by the lines that matter
        self._fields: OrderedDict[RequestHeaders, RequestHeaders] = (
            OrderedDict()
        )  # one object for equal ones, as calls are kept by it

    def match(self, data: bytes, at: int) -> tuple[RequestHeaders, int] | None:
        """Return what the header lines behind a request line contain, where nothing but their body comes behind them.

        Args:
            data: What a connection received.
            at: Where the line end of the request line is.

        Returns:
            The fields, and where the body begins.
        """
        begins = data.find(b"\r\n\r\n", at, at + _LIKELY_BYTES) + 4
        text = data[at:begins]
        block = self._blocks.get(text)
        if block is not None:
            fields, length = block.fields, block.length
            if len(data) - at <= _LIKELY_BYTES:
                self.by_length[len(data) - at] = block
        elif (found := self.read(text)) is not None:
            fields, length = found
            self._remember_what_repeats(text, fields, length)
        else:
            return None
        return (fields, begins) if begins + length == len(data) else None

    def read(self, text: bytes) -> tuple[RequestHeaders, int] | None:
        """Return what header lines contain, and the length of the body in bytes.

        Args:
            text: The lines, from the end of the request line to the end of the empty line.
        """
        lines = _OTHER_LINES.sub(b"", text)
        return self._known.get(lines) or self._read(lines)

    def _remember_what_repeats(self, text: bytes, fields: RequestHeaders, length: int) -> None:
        """Remember a block that came before: most of those that are new will not come again."""
        name = hash(text)
        slot = name % _REMEMBERED_BLOCKS
        if self._came[slot] != name:
            self._came[slot] = name
        elif fields.idempotency_key is None and len(text) <= _REMEMBERED_BYTES:
            remember(self._blocks, text, HeaderBlock(text, fields, length), _REMEMBERED_BLOCKS)

    def _read(self, text: bytes) -> tuple[RequestHeaders, int] | None:
        headers = _split(text)
        if headers is None or not _UNUSUAL.isdisjoint(name for name, _ in headers):
            return None
        connection = [value.lower() for name, value in headers if name == _CONNECTION]
        lengths = [value for name, value in headers if name == b"content-length"]
        if connection not in ([], [b"keep-alive"]) or len(lengths) != 1:
            return None
        [digits] = lengths
        if not digits.isdigit() or len(digits) > _LENGTH_DIGITS or int(digits) > self._max_body:
            return None
        fields = parse_headers(headers)
        if fields is None:
            return None
        fields, length = replace(fields, length=None), int(digits)  # the length is of this request alone
        if fields.idempotency_key is None and len(text) <= _REMEMBERED_BYTES:  # and so is a key
            fields = self._fields.get(fields) or remember(self._fields, fields, fields, _REMEMBERED)
            remember(self._known, text, (fields, length), _REMEMBERED)
        return fields, length


def remember(known: OrderedDict[_K, _V], key: _K, value: _V, most: int) -> _V:
    """Remember one more, and forget what was remembered first where there are more than the most."""
    known[key] = value
    if len(known) > most:
        known.popitem(last=False)
    return value


def _split(text: bytes) -> list[tuple[bytes, bytes]] | None:
    """Return the names, in lower case, and the values of header lines, None where one of them is no plain line."""
    lines = text.split(b"\r\n")
    if len(lines) < 3 or any((lines[0], lines[-2], lines[-1])):
        return None
    matches = [_ANY_LINE.fullmatch(line) for line in lines[1:-2]]
    headers = [(match[1].lower(), match[2]) for match in matches if match is not None]
    return headers if len(headers) == len(matches) else None
