"""Reads the protocol buffers of an ONNX file as far as serving needs it, which has no onnx package."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from stepwell_export.runtime.errors import ModelLoadError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""How a field is encoded."""

_SIZES: Final = {FIXED64: 8, FIXED32: 4}


class BrokenError(Exception):
    """Bytes that are no protocol buffer; `opened` makes it a `ModelLoadError`."""


@contextlib.contextmanager
def opened(source: Path | bytes) -> Iterator[memoryview]:
    """Give a model file's bytes.

    Raises:
        ModelLoadError: It cannot be read, or the bytes that are parsed are no protocol buffer.
    """
    name = "The given bytes" if isinstance(source, bytes) else source.name
    try:
        if isinstance(source, bytes):
            yield memoryview(source)
            return
        with source.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                yield memoryview(b"")
                return
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as view:
                yield view
    except BrokenError as exc:
        raise ModelLoadError(
            f"{name} is no ONNX model: its bytes are not those of one ({exc}).",
            fix="Give an .onnx file; check that it is complete.",
        ) from exc
    except OSError as exc:
        raise ModelLoadError(f"{name} cannot be read: {exc.strerror}.", fix="Check the file's rights.") from exc


def fields(data: memoryview, at: int, end: int, *, kinds: tuple[int, ...] = (BYTES,)) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each field of a message that is encoded in one of these ways.

    Raises:
        BrokenError: The bytes are no message.
    """
    while at < end:
        tag, at = varint(data, at, end)
        field, kind = tag >> 3, tag & 7
        if not field or tag >= 2**32:
            raise BrokenError("a field has no number")
        if kind == VARINT:
            size = varint(data, at, end)[1] - at
        elif kind == BYTES:
            size, at = varint(data, at, end)
        elif kind in _SIZES:
            size = _SIZES[kind]
        else:
            raise BrokenError(f"a field is of kind {kind}")
        if size > end - at:
            raise BrokenError("a field is longer than what contains it")
        if kind in kinds:
            yield field, at, at + size
        at += size


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Return the number that starts at a place, and where it ends.

    Raises:
        BrokenError: It does not end.
    """
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise BrokenError("a number does not end")


class Message:
    """A message: its fields by their number, each as often as it is there.

    A field counts in the encoding that its type has, as parsers of protocol buffers have it.
    """

    def __init__(self, data: memoryview, start: int = 0, end: int | None = None) -> None:
        """Find the fields; those of fixed width are passed over."""
        self._data = data
        self._parts: dict[int, list[tuple[int, int]]] = {}
        self._numbers: dict[int, list[tuple[int, int]]] = {}
        for found, kind in ((self._parts, BYTES), (self._numbers, VARINT)):
            for number, at, to in fields(data, start, len(data) if end is None else end, kinds=(kind,)):
                found.setdefault(number, []).append((at, to))

    def messages(self, *numbers: int) -> list[Message]:
        """Return the messages in these fields."""
        return [Message(self._data, at, to) for number in numbers for at, to in self._parts.get(number, ())]

    def texts(self, number: int) -> list[str]:
        """Return the texts in a field."""
        return [str(self._data[at:to], "utf-8", "replace") for at, to in self._parts.get(number, ())]

    def text(self, number: int) -> str:
        """Return the last text in a field; empty where there is none."""
        return self.texts(number)[-1] if number in self._parts else ""

    def integer(self, number: int) -> int:
        """Return the last integer in a field; 0 where there is none."""
        return varint(self._data, *self._numbers[number][-1])[0] if number in self._numbers else 0

    def is_zero(self, *numbers: int) -> bool:
        """Whether some of these fields are there, and have no byte but zeros."""
        every = [self._parts.get(number, []) + self._numbers.get(number, []) for number in numbers]
        parts = [bytes(self._data[at:to]) for places in every for at, to in places]
        return any(parts) and not any(map(any, parts))
