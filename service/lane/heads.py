"""`Heads`: what the header lines of a plain request say, remembered by their bytes.

httptools alone judges what a header is. Clients repeat their headers with every request, so its verdict is
remembered by the block's bytes, with the digits of Content-Length left out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeVar

import httptools

from service.api.hot import Fields, fields_of

_K = TypeVar("_K")
_V = TypeVar("_V")

_LENGTH_NAMES: Final = (b"\nContent-Length: ", b"\ncontent-length: ")
_LENGTH_DIGITS: Final = 8
_REMEMBERED: Final = 2048  # blocks
_REMEMBERED_BYTES: Final = 1024  # of one block
# These change how a request is read or what happens to its connection.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})


@dataclass(frozen=True, slots=True)
class Block:
    """The header lines of a plain request.

    Attributes:
        text: Their bytes, with the empty line behind them.
        fields: What they say.
        length: That of the body, in bytes.
    """

    text: bytes
    fields: Fields
    length: int


class Heads:
    """Reads the header lines of plain requests; says None of all others.

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
        self.likely: dict[int, Block] = {}
        self._known: dict[bytes, Block] = {}
        self._fields: dict[bytes, Fields | None] = {}  # by the block without the length

    def read(self, text: bytes) -> Block | None:
        """Return what header lines say.

        Args:
            text: The lines, with their ends, and the empty line behind them.
        """
        block = self._known.get(text) or self._read(text)
        if block is not None and len(text) <= _REMEMBERED_BYTES and block.fields.idempotency_key is None:
            _remember(self._known, text, block)
        return block

    def find(self, data: bytes, at: int) -> Block | None:
        """Return the known header lines that stand at a place, where nothing but their body stands behind them."""
        end = data.find(b"\r\n\r\n", at, at + _REMEMBERED_BYTES) + 4
        block = self._known.get(data[at:end])
        if block is None or end + block.length != len(data):
            return None
        _remember(self.likely, len(data) - at, block)
        return block

    def _read(self, text: bytes) -> Block | None:
        name = _LENGTH_NAMES[0]
        at = text.find(name)
        if at < 0:
            name = _LENGTH_NAMES[1]
            at = text.find(name)
        if at < 0 and not text.startswith((_LENGTH_NAMES[0][1:], _LENGTH_NAMES[1][1:])):
            return None
        at += len(name)  # where the text begins with it, from one byte before it
        end = text.find(b"\r\n", at)
        digits = text[at:end]
        if not digits.isdigit() or len(digits) > _LENGTH_DIGITS:
            return None
        key = text[:at] + text[end:]
        try:
            fields = self._fields[key]
        except KeyError:
            fields = _fields(text)
            if len(key) <= _REMEMBERED_BYTES and (fields is None or fields.idempotency_key is None):
                _remember(self._fields, key, fields)
        length = int(digits)
        return None if fields is None or length > self._max_body else Block(text, fields, length)


def _remember(known: dict[_K, _V], key: _K, value: _V) -> None:
    if len(known) >= _REMEMBERED:
        known.clear()
    known[key] = value


class _Headers:
    """Takes what httptools finds."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _fields(text: bytes) -> Fields | None:
    """Return what the headers say, None where any of them is unusual."""
    headers = _Headers()
    try:
        httptools.HttpRequestParser(headers).feed_data(b"POST / HTTP/1.1\r\n" + text)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    names = [name for name, _ in headers.found]
    if not headers.complete or not _UNUSUAL.isdisjoint(names):
        return None
    connection = [value.lower() for name, value in headers.found if name == b"connection"]
    fields = fields_of(headers.found) if connection in ([], [b"keep-alive"]) else None
    return None if fields is None else replace(fields, length=None)  # it is of this request alone
