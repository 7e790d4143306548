r"""Savepoint files: the records of many streams of a model, checksummed, readable as they arrive.

A file is a sequence of frames; each is its length (4 bytes, little-endian, without these 5), a kind (1 byte) and that
many bytes:

    H  header, JSON: `{"format": 1, "model", "prefix", "started_at"}`
    S  stream: length of the id (1 byte), the id, its record as the store has it
    P  end of a page: JSON `{"streams", "cursor", "unreadable"}`, and BLAKE2b-128 (16 bytes) of all bytes since the
       end of the page before. With the cursor an interrupted file is continued. A file whose last page has no cursor
       is complete.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import msgspec

_T = TypeVar("_T")

FORMAT: Final = 1
MEDIA_TYPE: Final = "application/octet-stream"
MAX_FRAME_BYTES: Final = 256 * 2**20

_HEAD: Final = struct.Struct("<IB")
_FRAME_HEAD: Final = _HEAD.size
_HEADER, _STREAM = b"HS"
_DIGEST_BYTES: Final = 16


class SavepointFormatError(ValueError):
    """The bytes are not a savepoint, are damaged, or end too early."""


class _PageEnd(msgspec.Struct):
    """The JSON at the end of a page."""

    streams: int
    cursor: str | None
    unreadable: list[str]


@dataclass(slots=True)
class Page:
    """A page of a savepoint.

    Attributes:
        streams: Ids and records.
        cursor: Where the next page begins; None: this is the last page.
        unreadable: Ids of streams whose records could not be read, and are not in the file.
        end: Offset in the file behind the page.
        header: The file's header.
    """

    streams: list[tuple[str, bytes]]
    cursor: str | None
    unreadable: list[str] = field(default_factory=list)
    end: int = 0
    header: Mapping[str, Any] = field(default_factory=dict)


def encode_header(model: str, prefix: str, started_at: str) -> bytes:
    """Return the frame that a savepoint begins with."""
    return _json_frame(b"H", {"format": FORMAT, "model": model, "prefix": prefix, "started_at": started_at})


def encode_page(
    header: bytes, streams: Sequence[tuple[str, bytes]], cursor: str | None, unreadable: Sequence[str]
) -> bytes:
    """Return a page.

    Args:
        header: The header's frame, before the first page; empty before the others.
        streams: Ids and records.
        cursor: Where the next page begins; None: this is the last one.
        unreadable: Ids of streams whose records could not be read.
    """
    frames = header + b"".join(_frame(b"S", bytes((len(name),)) + name.encode() + record) for name, record in streams)
    end = {"streams": len(streams), "cursor": cursor, "unreadable": list(unreadable)}
    payload = json.dumps(end, separators=(",", ":")).encode()
    hashed = frames + (len(payload) + _DIGEST_BYTES).to_bytes(4, "little") + b"P" + payload
    return hashed + _digest(hashed)


class SavepointReader:
    """Decodes a savepoint that arrives in pieces of any size.

    Attributes:
        header: The header; None until it has arrived.
        complete: Whether the last page has arrived.
    """

    def __init__(self) -> None:
        self.header: Mapping[str, Any] | None = None
        self.complete = False
        self._buffer = bytearray()  # begins with the page that has not ended
        self._offset = 0  # in the file, of the buffer's first byte
        self._next = 0  # in the buffer, of the next frame
        self._streams: list[tuple[str, bytes]] = []

    @property
    def buffered_bytes(self) -> int:
        """Bytes that have arrived and are not part of a returned page."""
        return len(self._buffer)

    @property
    def at_page_end(self) -> bool:
        """Whether all bytes that have arrived belong to returned pages."""
        return self.header is not None and not self._buffer

    def feed(self, data: bytes) -> Iterator[Page]:
        """Yield the pages that are complete with these bytes.

        Raises:
            SavepointFormatError: The bytes are not a savepoint, or are damaged.
        """
        self._buffer += data
        while len(self._buffer) - self._next >= _FRAME_HEAD:
            start = self._next
            length, kind = _HEAD.unpack_from(self._buffer, start)
            if kind not in b"HSP" or length > MAX_FRAME_BYTES or (self.header is None and kind != _HEADER):
                raise SavepointFormatError(f"byte {self._offset + start} does not begin a frame of a savepoint")
            end = start + _FRAME_HEAD + length
            if len(self._buffer) < end:
                break
            self._next = end
            if kind == _STREAM:
                self._add_stream(start + _FRAME_HEAD, end)
            elif kind == _HEADER:
                self._set_header(bytes(self._buffer[start + _FRAME_HEAD : end]))
            else:
                page = self._end_page(start + _FRAME_HEAD, end)
                del self._buffer[:end]
                self._offset += end
                self._next = 0
                yield page

    def close(self) -> None:
        """Check that nothing is missing at the end.

        Raises:
            SavepointFormatError: The savepoint ends too early.
        """
        if not (self.complete and self.at_page_end):
            raise SavepointFormatError(f"it ends after {self._offset + len(self._buffer)} bytes, before its last page")

    def _set_header(self, payload: bytes) -> None:
        header = _parse(payload, dict[str, Any])
        if header.get("format") != FORMAT or not isinstance(header.get("model"), str):
            raise SavepointFormatError(f"it has format {header.get('format')!r}; this release reads {FORMAT}")
        if self.header is not None and self.header["model"] != header["model"]:
            raise SavepointFormatError(f"it has streams of two models, {self.header['model']} and {header['model']}")
        self.header = header

    def _add_stream(self, start: int, end: int) -> None:
        name_at = start + 1
        record_at = name_at + self._buffer[start] if start < end else end + 1
        name = self._buffer[name_at:record_at]
        if record_at > end or not name.isascii():
            raise SavepointFormatError("a stream's frame is damaged")
        self._streams.append((name.decode(), bytes(self._buffer[record_at:end])))

    def _end_page(self, start: int, end: int) -> Page:
        digest_at, file_end = end - _DIGEST_BYTES, self._offset + end
        with memoryview(self._buffer) as view:
            digest = _digest(view[:digest_at])
        if self._buffer[digest_at:end] != digest:
            raise SavepointFormatError(f"the page that ends at byte {file_end} does not match its checksum")
        page_end = _parse(bytes(self._buffer[start:digest_at]), _PageEnd)
        streams, self._streams = self._streams, []
        if page_end.streams != len(streams):
            raise SavepointFormatError(f"the page that ends at byte {file_end} has {len(streams)} streams")
        self.complete = page_end.cursor is None
        return Page(streams, page_end.cursor, page_end.unreadable, file_end, self.header or {})


def _frame(kind: bytes, payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "little") + kind + payload


def _json_frame(kind: bytes, document: Mapping[str, Any]) -> bytes:
    return _frame(kind, json.dumps(document, separators=(",", ":")).encode())


def _parse(payload: bytes, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (ValueError, RecursionError) as exc:
        raise SavepointFormatError("a header or the end of a page is damaged") from exc


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST_BYTES).digest()
