"""Backups of a store: the RDB file that a server sends to a new Redis replica, and the start of a server on one."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import hiredis
import redis

from stepwell.addons.embedded_store.server import EmbeddedStore, EmbeddedStoreError
from stepwell.errors import ServiceError
from stepwell.store.transport.connection import NotSentError
from stepwell.store.transport.transport import open_transport
from stepwell_export.runtime.errors import StepwellError

_CONNECT_S: Final = 10.0
_STALLED_S: Final = 60.0  # a server that prepares its file sends a newline each second
_PIECE: Final = 1 << 20
_MAGIC: Final = (b"REDIS", b"VALKEY")
_FILE: Final = "appendonly.aof"
_FOLDER: Final = "appendonlydir"
_BEFORE: Final = ".before-restore"


class BackupError(StepwellError):
    """A backup cannot be made, or a file cannot be restored."""

    code = "backup_failed"


async def write_backup(url: str, out: BinaryIO) -> int:
    """Write all data of a server, as of one moment, to a file; the server goes on serving. Returns the bytes.

    Raises:
        BackupError: The store is a Cluster, cannot be reached, or does not send the whole file.
        BadStoreUrlError: The URL cannot be parsed.
    """
    transport = open_transport(url, timeout=_CONNECT_S)
    if transport.is_cluster:
        raise BackupError(
            "A Cluster has a file for each of its primaries, and this URL is for all of them.",
            fix="Back up each primary by its own URL, redis://host:port.",
        )
    try:
        writer = await transport.open_dedicated()
        try:
            return await _receive(writer, out)
        finally:
            writer.transport.abort()
    except (NotSentError, TimeoutError, OSError, ServiceError) as exc:
        raise BackupError(
            f"The store did not send a whole backup: {str(exc) or 'nothing arrived for a while'}.",
            fix="Check that it runs, and its log; then try again.",
        ) from exc
    finally:
        await transport.close()


async def _receive(writer: asyncio.StreamWriter, out: BinaryIO) -> int:
    """Receive the file as a new Redis replica does, except that nothing is sent after it."""
    reader = asyncio.StreamReader(limit=_PIECE)
    reader.set_transport(writer.transport)
    writer.transport.set_protocol(asyncio.StreamReaderProtocol(reader))
    # `eof`: the server sends the file while it makes it, and writes none. `rdb-only`: it does not keep the writes
    # meanwhile; servers before Redis 7 reply with an error, which is ignored.
    for option in (("capa", "eof"), ("rdb-only", "1")):
        writer.transport.write(hiredis.pack_command(cast("Any", ("REPLCONF", *option))))
        await _line(reader)
    writer.transport.write(hiredis.pack_command(("SYNC",)))
    head = await _line(reader)
    while not head:  # sent while the file is prepared
        head = await _line(reader)
    if not head.startswith(b"$"):
        raise BackupError(
            f"The store refuses to send its data: {head.decode(errors='replace').lstrip('-')}.",
            fix="Give the user of this URL the permissions +sync and +replconf, or use your provider's backups.",
        )
    pieces = _until(reader, head[5:]) if head.startswith(b"$EOF:") else _exactly(reader, int(head[1:]))
    total = 0
    async for piece in pieces:
        if not total:
            check_head(piece)
        out.write(piece)
        total += len(piece)
    return total


async def _line(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(_STALLED_S):
        line = await reader.readline()
    if not line:
        raise OSError("the connection was closed")
    return line.strip()


async def _exactly(reader: asyncio.StreamReader, total: int) -> AsyncIterator[bytes]:
    """Yield the file in pieces; its length was sent before it."""
    received = 0
    while received < total:
        piece = await _read(reader, min(_PIECE, total - received))
        received += len(piece)
        yield piece


async def _until(reader: asyncio.StreamReader, mark: bytes) -> AsyncIterator[bytes]:
    """Yield the file in pieces; a random mark is sent after it."""
    rest = b""
    while True:
        rest += await _read(reader, _PIECE)
        is_whole = rest.endswith(mark)
        if len(rest) > len(mark):
            yield rest[: -len(mark)]
            rest = rest[-len(mark) :]
        if is_whole:
            return


async def _read(reader: asyncio.StreamReader, n_bytes: int) -> bytes:
    async with asyncio.timeout(_STALLED_S):
        piece = await reader.read(n_bytes)
    if not piece:
        raise OSError("the connection was closed before the end")
    return piece


def check_head(data: bytes) -> None:
    """Check that data begins as an RDB file.

    Raises:
        BackupError: It does not.
    """
    if not data.startswith(_MAGIC):
        raise BackupError(
            f"The data is no RDB file: it begins with {data[:9].decode('ascii', 'backslashreplace')!r}; expected REDIS "
            "or VALKEY.",
            fix="Use a file that `stepwell backup` has made.",
        )


def restore(data_dir: Path, backup: Path) -> int:
    """Make a backup the data of an embedded store, which must not run. Returns the number of keys.

    A server reads an RDB file in the place of its append-only file, and goes on writing behind it. The data that was
    there is kept beside, in place of that of an earlier restore.

    Raises:
        BackupError: The file cannot be read, or the server cannot load it; the data is as it was.
        EmbeddedStoreError: A service uses the folder.
    """
    try:
        with backup.open("rb") as file:
            check_head(file.read(9))
    except OSError as exc:
        raise BackupError(
            f"{backup} cannot be read: {exc.strerror}.", fix="Check the path; `stepwell backup` writes such a file."
        ) from exc
    store = EmbeddedStore(data_dir)
    try:
        store.take_folder()
        aside = _move_aside(data_dir)
        shutil.copyfile(backup, data_dir / _FILE)
        try:
            store.start()
        except EmbeddedStoreError as exc:
            store.take_folder()
            _move_back(data_dir, aside)
            raise BackupError(
                f"The server cannot load {backup}; the data in {data_dir} is as it was. {exc.problem}",
                fix="Use a whole file, and a server at least as new as the one that it is of.",
            ) from exc
        with redis.Redis.from_url(store.url) as client:
            return int(client.dbsize())
    finally:
        store.stop()


def _move_aside(data_dir: Path) -> list[str]:
    """Give the store's files other names; returns their names."""
    found = [name for name in (_FOLDER, _FILE) if (data_dir / name).exists()]
    for name in (_FOLDER, _FILE):
        _remove(data_dir / (name + _BEFORE))
    for name in found:
        (data_dir / name).rename(data_dir / (name + _BEFORE))
    return found


def _move_back(data_dir: Path, names: list[str]) -> None:
    for name in (_FOLDER, _FILE):
        _remove(data_dir / name)
    for name in names:
        (data_dir / (name + _BEFORE)).rename(data_dir / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
