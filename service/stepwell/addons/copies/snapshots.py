"""`SnapshotStore`: named copies of streams' records, one hash per stream, so that listing them needs no scan."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from stepwell.errors import CorruptRecordError, ServiceError
from stepwell.store import keys
from stepwell.store.record import EPOCH_AT, Record, decode
from stepwell.store.scripts import Script
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import Argument

SCRIPT: Final = Script.of("snapshots.lua", "stepwell.addons.copies")
"""Writes and deletes snapshots."""

_DONE, _KEY_REPLAY, _CHANGED = 1, 3, 6


class StreamChangedError(Exception):
    """The stream was deleted or reset since it was read; nothing was written."""


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A copy of a stream's record.

    Attributes:
        taken_ms: When it was created, milliseconds since the Unix epoch.
        record: The stream's record at that time.
    """

    taken_ms: int
    record: Record


class IdempotencyWrite(NamedTuple):
    """An idempotency entry to write.

    Attributes:
        key: Its key.
        entry: Its bytes.
    """

    key: str
    entry: bytes


class SnapshotStore:
    """Stores the snapshots of streams.

    All snapshots of a stream expire together, their time to live after one of them was last created or used. They are
    deleted with the stream.
    """

    def __init__(self, store: StateStore, *, ttl_s: float | None, max_snapshots: int) -> None:
        """Create the snapshot store on top of a state store.

        Args:
            store: The store of the records.
            ttl_s: Seconds after the last use until snapshots expire; None: the time to live of idle streams.
            max_snapshots: Most snapshots of one stream.
        """
        self._store = store
        self._ttl = int((store.stream_ttl_s if ttl_s is None else ttl_s) * 1000)
        self._entry_ttl = int(store.idempotency_ttl_s * 1000)
        self._max_snapshots = max_snapshots

    async def put(
        self, stream: str, name: str, record: bytes, *, deadline: float, idempotency: IdempotencyWrite | None = None
    ) -> bytes | None:
        """Store a copy of a record under a name; an existing snapshot of that name is replaced.

        Args:
            stream: Key of the stream's record.
            name: The snapshot's name.
            record: The record's bytes.
            deadline: On the running loop's clock.
            idempotency: The entry of the request's idempotency key.

        Returns:
            The entry that an earlier request with this idempotency key wrote; None if the snapshot is stored now.

        Raises:
            StreamChangedError: The stream has not the record's epoch any more.
            ServiceError: `stream_quota`: the stream has the maximum number of snapshots; or an error of the store.
        """
        value = int(time.time() * 1000).to_bytes(8, "little") + record
        return await self._change(stream, name, value, idempotency, record[EPOCH_AT], deadline=deadline)

    async def delete(
        self, stream: str, name: str, *, deadline: float, idempotency: IdempotencyWrite | None = None
    ) -> bytes | None:
        """Delete a snapshot if it exists; the arguments and the result are those of `put`."""
        return await self._change(stream, name, b"", idempotency, deadline=deadline)

    async def get(self, stream: str, name: str, *, deadline: float, renew_ttl: bool = False) -> StoredSnapshot | None:
        """Return a snapshot, None if it does not exist.

        Args:
            stream: Key of the stream's record.
            name: The snapshot's name.
            deadline: On the running loop's clock.
            renew_ttl: The snapshot is used as a source: set the expiry of all the stream's snapshots anew.

        Raises:
            CorruptRecordError: The stored value is not a record.
        """
        key = keys.snapshots_key(stream)
        value = _checked(await self._store.execute(deadline, "HGET", key, name))
        if value is not None and renew_ttl:
            await self._store.execute(deadline, "PEXPIRE", key, self._ttl)
        return None if value is None else _decode(value)

    async def all(self, stream: str, *, deadline: float) -> Mapping[str, StoredSnapshot]:
        """Return a stream's snapshots by name, sorted."""
        flat = _checked(await self._store.execute(deadline, "HGETALL", keys.snapshots_key(stream)))
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {name.decode(): _decode(value) for name, value in sorted(pairs)}

    async def _change(
        self,
        stream: str,
        name: str,
        value: bytes,
        idempotency: IdempotencyWrite | None,
        epoch: bytes = b"",
        *,
        deadline: float,
    ) -> bytes | None:
        names = [keys.snapshots_key(stream), stream, *([] if idempotency is None else [idempotency.key])]
        entry = b"" if idempotency is None else idempotency.entry
        arguments: list[Argument] = [len(names), *names, name, value, self._max_snapshots, self._ttl]
        arguments += (entry, self._entry_ttl, epoch)
        outcome, *stored = await self._store.run(SCRIPT, arguments, deadline=deadline)
        if outcome == _KEY_REPLAY:
            stored_entry: bytes = stored[0]
            return stored_entry
        if outcome == _CHANGED:
            raise StreamChangedError
        if outcome != _DONE:
            raise ServiceError(
                "stream_quota",
                f"The stream has the maximum of {self._max_snapshots} snapshots.",
                fix="Delete one, use the name of an existing one, or raise `max_snapshots`.",
            )
        return None


def _checked(reply: Any) -> Any:
    """Return a reply unless it is an error: the value of the hash's key may be of another type."""
    if isinstance(reply, Exception):
        raise CorruptRecordError("The key of the stream's snapshots holds a value of another type; expected a hash.")
    return reply


def _decode(value: bytes) -> StoredSnapshot:
    return StoredSnapshot(int.from_bytes(value[:8], "little"), decode(value[8:]))
