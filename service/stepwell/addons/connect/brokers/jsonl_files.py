"""Files with one message a line: the rows of a file are read, and messages are appended."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from stepwell.addons.connect.brokers.interface import MarksEach, ReaderOptions
from stepwell.addons.connect.messages import BrokerMessage, ConnectError, ConnectUsageError, OutMessage, Undeliverable
from stepwell.addons.connect.urls import BrokerUrl
from stepwell.addons.recorded.csv_header import CsvHeader

_WAIT_S: Final = 0.2
_MAX_READ: Final = 32 << 20
"""Bytes that one poll reads, unless a single line is longer."""


def csv_header(url: BrokerUrl) -> CsvHeader:
    """Return the first line of a CSV file.

    Raises:
        ConnectError: The file cannot be read.
        RecordedDataError: The line has no names, or one twice.
    """
    path = Path(url.path).absolute()
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return CsvHeader.of(file.readline(), path)
    except OSError as exc:
        raise _unreadable(path, exc.strerror) from exc
    except UnicodeDecodeError as exc:
        raise ConnectError(f"{path} is not a CSV file in UTF-8: {exc}.", fix="Save it in UTF-8.") from exc


def open_reader(url: BrokerUrl, options: ReaderOptions) -> FileReader:
    """Return the reader of a file."""
    return FileReader(Path(url.path).absolute(), options)


def open_writer(url: BrokerUrl, body_format: str) -> FileWriter:
    """Return the writer of a file.

    Raises:
        ConnectUsageError: The format is not JSON.
    """
    if body_format != "json":
        raise ConnectUsageError(f"{url.text} has lines of JSON; found the format {body_format!r}.")
    return FileWriter(Path(url.path).absolute())


class FileReader(MarksEach):
    """Reads the lines of a file from its first one on, and waits for new ones at its end.

    The position of a message is the number of its line, from 0; the first line of a CSV file has the names of the
    fields, and is no message. The position is kept by the service: after a restart the file is read from the start, and
    what was applied is skipped. The source is the path with a digest of the first message: a file that has grown is the
    same one, another file at its path is not.
    """

    def __init__(self, path: Path, options: ReaderOptions) -> None:
        """Use `open_reader`."""
        self._path = path
        self._log = f"file:{path}"
        self._source = ""  # known with the first message
        self._options = options
        self._file: BinaryIO | None = None
        self._row = 0
        self._rest = b""  # a last line without its end
        self._left: int | None = None  # bytes to read; None: no limit
        self.generation = 0

    async def open(self) -> None:
        """Open the file."""
        try:
            self._file = self._path.open("rb")
        except OSError as exc:
            raise _unreadable(self._path, exc.strerror) from exc
        self._row, self._rest, self._source = 0, b"", ""
        self.generation += 1
        self._left = self._size() if self._options.once or self._options.preview else None
        if self._options.header is not None:
            self._next_line()
            self._row = 1

    async def poll(self, limit: int) -> Sequence[BrokerMessage]:
        """Return the next lines."""
        messages: list[BrokerMessage] = []
        n_bytes = 0
        while len(messages) < limit and n_bytes < _MAX_READ:
            line = self._next_line()
            if not line:
                break
            n_bytes += len(line)
            if line.strip():
                body = line.rstrip(b"\r\n")
                self._source = self._source or f"{self._log}@{hashlib.blake2b(body, digest_size=8).hexdigest()}"
                messages.append(BrokerMessage(body, self._source, self._row, self._log, header=self._options.header))
            self._row += 1
        if not messages and not self.is_done:
            if self._file is not None and self._size() < self._file.tell():
                raise ConnectError(
                    f"{self._path} has become shorter while it was read, so its rows are other rows.",
                    fix="Give each file a name of its own, and write at its end only.",
                )
            await asyncio.sleep(_WAIT_S)
        return messages

    async def acknowledge(self, messages: Sequence[BrokerMessage]) -> None:
        """Do nothing: the service has the positions."""

    async def acknowledge_some(self, messages: Sequence[BrokerMessage]) -> None:
        """Do nothing: after a restart all lines are read again, and decided as they were before."""

    @property
    def is_full(self) -> bool:
        """Return False: any number of lines may be open."""
        return False

    async def is_current(self) -> bool:
        """Return True: readers of one file do not exclude each other."""
        return True

    @property
    def is_done(self) -> bool:
        """Whether all lines were returned that were there at the start."""
        return self._left == 0 and not self._rest

    def lag(self) -> int | None:
        """Return None: a file has no number of lines."""
        return None

    async def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _next_line(self) -> bytes:
        """Return the next line; nothing if it is not complete yet."""
        assert self._file is not None
        line = self._file.readline(-1 if self._left is None else self._left) if self._left != 0 else b""
        if self._left is not None:
            self._left -= len(line)
        line = self._rest + line
        if line.endswith(b"\n") or self._left == 0:  # at the end of a file that is read once, the last line is whole
            self._rest = b""
            return line
        self._rest = line
        return b""

    def _size(self) -> int:
        return self._path.stat().st_size


def _unreadable(path: Path, reason: str | None) -> ConnectError:
    return ConnectError(f"{path} cannot be read: {reason}.", fix="Give an existing file.")


class _WrittenLine(msgspec.Struct):
    """The fields of a written line that identify its timestep."""

    stream: str | None = None
    source: _Place | None = None


class _Place(msgspec.Struct):
    """A source and a position in it."""

    id: str
    at: int | None = None


class FileWriter:
    """Appends messages to a file, each once.

    When it is opened, it reads what the file has: messages whose positions are there already are left out.
    """

    def __init__(self, path: Path) -> None:
        """Use `open_writer`."""
        self._path = path
        self._file: BinaryIO | None = None
        self._written: dict[tuple[str, str], int] = {}

    async def open(self) -> None:
        """Open the file, and remove a last line that was not written to its end."""
        try:
            self._file = self._path.open("ab+")
            await asyncio.to_thread(self._recover, self._file)
        except OSError as exc:
            raise ConnectError(f"{self._path} cannot be written: {exc.strerror}.", fix="Give another place.") from exc

    async def write(self, messages: Sequence[OutMessage]) -> Sequence[Undeliverable]:
        """Append the messages that are not there yet; a file takes all."""
        assert self._file is not None
        lines = []
        for message in messages:
            if message.at is not None:
                name = (message.key, message.source)
                if message.at <= self._written.get(name, -1):
                    continue
                self._written[name] = message.at
            lines.append(msgspec.json.encode(message.document) + b"\n")
        try:
            await asyncio.to_thread(_append, self._file, b"".join(lines))
        except OSError as exc:
            raise ConnectError(f"{self._path} cannot be written: {exc.strerror}.", fix="Free some space.") from exc
        return ()

    async def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _recover(self, file: BinaryIO) -> None:
        self._written.clear()
        file.seek(0)
        end = 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                found = msgspec.json.decode(line, type=_WrittenLine)
            except msgspec.MsgspecError:
                continue  # not one of ours
            if found.stream and found.source is not None and found.source.at is not None:
                self._written[found.stream, found.source.id] = found.source.at
        file.truncate(end)
        file.seek(0, os.SEEK_END)


def _append(file: BinaryIO, data: bytes) -> None:
    if data:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
