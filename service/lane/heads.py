"""`Heads`: what the header lines of a plain request say, remembered by their bytes.

httptools alone judges what a header is. Clients repeat their headers with every request, so its verdict is
remembered by the block's bytes, with the digits of Content-Length left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import httptools

from service.wire import Format
from service.wire.formats import format_of_answer, format_of_body

_LENGTH_NAMES: Final = (b"Content-Length: ", b"content-length: ")
_LENGTH_DIGITS: Final = 8
_REMEMBERED: Final = 512  # blocks
_REMEMBERED_BYTES: Final = 1024  # of one block
_KEY_LIMIT: Final = 255

_ASKED: Final = (b"authorization", b"idempotency-key", b"origin", b"host", b"content-type", b"accept")
# These change how a request is read or what happens to its connection.
_UNUSUAL: Final = frozenset({b"transfer-encoding", b"expect", b"upgrade", b"proxy-connection"})


@dataclass(frozen=True, slots=True)
class Fields:
    """What a head says that matters.

    Attributes:
        authorization: As sent, or None.
        idempotency_key: 1 to 255 characters, or None.
        origin: The browser's page, or None.
        host: As sent, or None.
        form: The format of the body.
        answer_form: The format of the answer.
    """

    authorization: str | None
    idempotency_key: str | None
    origin: str | None
    host: str | None
    form: Format
    answer_form: Format


class Heads:
    """Reads the header lines of plain requests; says None of all others."""

    def __init__(self, max_body_bytes: int) -> None:
        """Begin with nothing remembered.

        Args:
            max_body_bytes: A request with a longer body is none of ours.
        """
        self._max_body = max_body_bytes
        self._known: dict[bytes, Fields | None] = {}

    def read(self, block: bytes) -> tuple[Fields, int] | None:
        """Return what a block of header lines says, and the length of the body.

        Args:
            block: Header lines, each with its line end.
        """
        name = _LENGTH_NAMES[0]
        at = block.find(name)
        if at < 0:
            name = _LENGTH_NAMES[1]
            at = block.find(name)
        if at < 0 or (at and block[at - 1] != 0x0A):
            return None
        at += len(name)
        end = block.find(b"\r\n", at)
        digits = block[at:end]
        if not digits.isdigit() or len(digits) > _LENGTH_DIGITS:
            return None
        key = block[:at] + block[end:]
        try:
            fields = self._known[key]
        except KeyError:
            fields = self._remember(key, block)
        length = int(digits)
        return None if fields is None or length > self._max_body else (fields, length)

    def _remember(self, key: bytes, block: bytes) -> Fields | None:
        fields = _fields(block)
        is_of_one_request = fields is not None and fields.idempotency_key is not None
        if len(key) <= _REMEMBERED_BYTES and not is_of_one_request:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = fields
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
    found = dict(headers.found)
    if not headers.complete or names.count(b"content-length") != 1 or not _UNUSUAL.isdisjoint(names):
        return None
    if found.get(b"connection", b"keep-alive").lower() != b"keep-alive" or names.count(b"connection") > 1:
        return None
    if any(names.count(name) > 1 for name in _ASKED):
        return None
    asked = {name: found[name].decode("latin-1") for name in _ASKED if name in found}
    key = asked.get(b"idempotency-key")
    if key is not None and not 1 <= len(key) <= _KEY_LIMIT:
        return None
    form = format_of_body(asked.get(b"content-type"))
    return Fields(
        asked.get(b"authorization"),
        key,
        asked.get(b"origin"),
        asked.get(b"host"),
        form,
        format_of_answer(asked.get(b"accept"), form),
    )
