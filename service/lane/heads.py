"""`Heads`: what the header lines of a plain request say, remembered by their bytes.

httptools alone judges what a header is. Clients repeat their headers with every request, so its verdict is
remembered by the block's bytes, with the digits of Content-Length left out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import httptools

from service.api.hot import Fields, fields_of

_LENGTH_NAMES: Final = (b"\nContent-Length: ", b"\ncontent-length: ")
_LENGTH_DIGITS: Final = 8
_REMEMBERED: Final = 2048  # blocks
_REMEMBERED_BYTES: Final = 1024  # of one block
# These change how a request is read or what happens to its connection.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})


class Heads:
    """Reads the header lines of plain requests; says None of all others.

    Attributes:
        known: What blocks of header lines said that are likely to come again; `read` of others.
    """

    def __init__(self, max_body_bytes: int) -> None:
        """Begin with nothing remembered.

        Args:
            max_body_bytes: A request with a longer body is none of ours.
        """
        self._max_body = max_body_bytes
        self.known: dict[bytes, tuple[Fields, int]] = {}
        self._fields: dict[bytes, Fields | None] = {}  # by the block without the length

    def read(self, block: bytes) -> tuple[Fields, int] | None:
        """Return what a block of header lines says, and the length of the body.

        Args:
            block: Header lines, each with its line end.
        """
        found = self.known.get(block) or self._read(block)
        if found is not None and len(block) <= _REMEMBERED_BYTES and found[0].idempotency_key is None:
            if len(self.known) >= _REMEMBERED:
                self.known.clear()
            self.known[block] = found
        return found

    def _read(self, block: bytes) -> tuple[Fields, int] | None:
        name = _LENGTH_NAMES[0]
        at = block.find(name)
        if at < 0:
            name = _LENGTH_NAMES[1]
            at = block.find(name)
        if at < 0 and not block.startswith((_LENGTH_NAMES[0][1:], _LENGTH_NAMES[1][1:])):
            return None
        at += len(name)  # where the block begins with it, from one byte before it
        end = block.find(b"\r\n", at)
        digits = block[at:end]
        if not digits.isdigit() or len(digits) > _LENGTH_DIGITS:
            return None
        key = block[:at] + block[end:]
        try:
            fields = self._fields[key]
        except KeyError:
            fields = self._remember(key, block)
        length = int(digits)
        return None if fields is None or length > self._max_body else (fields, length)

    def _remember(self, key: bytes, block: bytes) -> Fields | None:
        fields = _fields(block)
        is_of_one_request = fields is not None and fields.idempotency_key is not None
        if len(key) <= _REMEMBERED_BYTES and not is_of_one_request:
            if len(self._fields) >= _REMEMBERED:
                self._fields.clear()
            self._fields[key] = fields
        return fields


class _Headers:
    """Takes what httptools finds."""

    def __init__(self) -> None:
        self.found: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.found.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self.complete = True


def _fields(block: bytes) -> Fields | None:
    """Return what the headers say, None where any of them is unusual."""
    headers = _Headers()
    try:
        httptools.HttpRequestParser(headers).feed_data(b"POST / HTTP/1.1\r\n" + block + b"\r\n")
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    names = [name for name, _ in headers.found]
    if not headers.complete or not _UNUSUAL.isdisjoint(names):
        return None
    connection = [value.lower() for name, value in headers.found if name == b"connection"]
    fields = fields_of(headers.found) if connection in ([], [b"keep-alive"]) else None
    return None if fields is None else replace(fields, length=None)  # it is of this request alone
