"""The broker `spool`: a folder of files `1.jsonl`, `2.jsonl`, .. with one JSON message a line.

Only the newest file grows. Older ones may be deleted once they have been read: a position is the number of the file and
of the line.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from stepwell import extend

SPOOL = extend.Broker("spool:///FOLDER", module="stepwell_fleet.spool", has_host=False, acknowledges=False)


def open_reader(url: extend.BrokerUrl, options: extend.ReaderOptions) -> SpoolReader:
    return SpoolReader(Path(url.path), ends=options.once or options.preview)


def open_writer(url: extend.BrokerUrl, body_format: str) -> SpoolWriter:
    if body_format != "json":
        raise extend.ConnectUsageError(f"{url.text} takes the format json; found {body_format!r}.")
    return SpoolWriter(Path(url.path))


class SpoolReader:
    """Reads from the first line on: the service skips what it has applied, so nothing is acknowledged."""

    is_done = False

    def __init__(self, folder: Path, *, ends: bool) -> None:
        self._folder = folder
        self._ends = ends

    async def open(self) -> None:
        if not self._folder.is_dir():
            raise extend.ConnectError(f"{self._folder} is no folder.", fix="Create it, or give another one.")
        self._number = self._row = self._offset = 0
        sizes = {path: path.stat().st_size for path in files(self._folder)}
        self._until = sizes if self._ends else None

    async def poll(self, limit: int) -> Sequence[extend.BrokerMessage]:
        messages = list(islice(self._unread(), limit))
        if not messages:
            self.is_done = self._ends
            await asyncio.sleep(0 if self._ends else 0.2)
        return messages

    def _unread(self) -> Iterator[extend.BrokerMessage]:
        source = f"spool:{self._folder}"
        for path in files(self._folder) if self._until is None else self._until:
            number = int(path.stem)
            if number < self._number:
                continue
            if number > self._number:
                self._number, self._row, self._offset = number, 0, 0
            end = math.inf if self._until is None else self._until[path]
            with path.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n") or self._offset >= end:
                        break
                    at = number << 32 | self._row
                    self._offset += len(line)
                    self._row += 1
                    yield extend.BrokerMessage(line, source, at, source)

    async def acknowledge(self, messages: Sequence[extend.BrokerMessage]) -> None:
        pass

    async def is_current(self) -> bool:
        return True

    def lag(self) -> int | None:
        return None

    async def close(self) -> None:
        pass


class SpoolWriter:
    """Begins a new file each time it is opened: a line that a crash has cut off stays the last one of its file."""

    _file: BinaryIO

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def open(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = max((int(path.stem) for path in files(self._folder)), default=0) + 1
        self._file = (self._folder / f"{number}.jsonl").open("xb")

    async def write(self, messages: Sequence[extend.OutMessage]) -> Sequence[extend.Undeliverable]:
        self._file.write(b"".join(json.dumps(message.document).encode() + b"\n" for message in messages))
        self._file.flush()
        os.fsync(self._file.fileno())
        return ()

    async def close(self) -> None:
        self._file.close()


def files(folder: Path) -> list[Path]:
    """Return the files of a spool, oldest first."""
    return sorted((path for path in folder.glob("*.jsonl") if path.stem.isdecimal()), key=lambda path: int(path.stem))
