"""`SnapshotStore`: named copies of streams' records, one hash for each stream, so that they are listed without a search."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from service.errors import CorruptRecordError, ServiceError
from service.store import keys
from service.store.record import Record, decode
from service.store.scripts import Script
from service.store.state_store import StateStore
from service.store.transport.connection import Argument

SCRIPT: Final = Script.of("snapshots.lua")
"""What changes a stream's snapshots."""

_DONE, _KEY_REPLAY = 1, 3


@dataclass(frozen=True, slots=True)
class StoredSnapshot:
    """A copy of a stream's record.

    Attributes:
        taken_ms: When it was taken, milliseconds since the epoch.
        record: The stream as it was.
    """

    taken_ms: int
    record: Record


class IdempotencyWrite(NamedTuple):
    """What an idempotency key is answered from now on.

    Attributes:
        key: Of its entry.
        entry: The entry's bytes.
    """

    key: str
    entry: bytes


class SnapshotStore:
    """Keeps the snapshots of streams.

    All snapshots of a stream live until none of them was taken or used for their time to live. They go with the
    stream when that is deleted.
    """

    def __init__(self, store: StateStore, *, ttl_s: float | None, most: int) -> None:
        """Begin.

        Args:
            store: Where the records are.
            ttl_s: Seconds that snapshots live after the last use; None: as idle streams do.
            most: Snapshots that one stream may have.
        """
        self._store = store
        self._ttl = int((store.stream_ttl_s if ttl_s is None else ttl_s) * 1000)
        self._entry_ttl = int(store.idempotency_ttl_s * 1000)
        self._max_snapshots = most

    async def put(
        self, stream: str, name: str, record: bytes, *, deadline: float, remember: IdempotencyWrite | None = None
    ) -> bytes | None:
        """Keep a copy of a record under a name, in place of an older one.

        Args:
            stream: The key of the stream's record.
            name: Of the snapshot.
            record: The record's bytes.
            deadline: On the running loop's clock.
            remember: What the request's idempotency key is answered.

        Returns:
            What the idempotency key had answered before; None: it is done now.

        Raises:
            ServiceError: `stream_quota`: the stream has as many as it may; or the store's.
        """
        value = int(time.time() * 1000).to_bytes(8, "little") + record
        return await self._change(stream, name, value, remember, deadline=deadline)

    async def delete(
        self, stream: str, name: str, *, deadline: float, remember: IdempotencyWrite | None = None
    ) -> bytes | None:
        """Forget a snapshot, also where there is none; arguments and answer as for `put`."""
        return await self._change(stream, name, b"", remember, deadline=deadline)

    async def get(self, stream: str, name: str, *, deadline: float, use: bool = False) -> StoredSnapshot | None:
        """Return a snapshot, None where there is none.

        Args:
            stream: The key of the stream's record.
            name: Of the snapshot.
            deadline: On the running loop's clock.
            use: The stream, or another, goes on from it: all of them live on from now.

        Raises:
            CorruptRecordError: What is kept is no record.
        """
        key = keys.snapshots_key(stream)
        found = _checked(await self._store.execute(deadline, "HGET", key, name))
        if found is not None and use:
            await self._store.execute(deadline, "PEXPIRE", key, self._ttl)
        return None if found is None else _read(found)

    async def all(self, stream: str, *, deadline: float) -> Mapping[str, StoredSnapshot]:
        """Return a stream's snapshots by name, sorted."""
        flat = _checked(await self._store.execute(deadline, "HGETALL", keys.snapshots_key(stream)))
        pairs = zip(flat[::2], flat[1::2], strict=True)
        return {name.decode(): _read(value) for name, value in sorted(pairs)}

    async def _change(
        self, stream: str, name: str, value: bytes, remember: IdempotencyWrite | None, *, deadline: float
    ) -> bytes | None:
        names, entry = [keys.snapshots_key(stream)], b""
        if remember is not None:
            names.append(remember.key)
            entry = remember.entry
        arguments: list[Argument] = [
            len(names),
            *names,
            name,
            value,
            self._max_snapshots,
            self._ttl,
            entry,
            self._entry_ttl,
        ]
        outcome, *known = await self._store.run(SCRIPT, arguments, deadline=deadline)
        if outcome == _KEY_REPLAY:
            stored: bytes = known[0]
            return stored
        if outcome != _DONE:
            raise ServiceError(
                "stream_quota",
                f"The stream has {self._max_snapshots} snapshots; that is as many as it may.",
                fix="Delete one, take this one under a name that is there, or raise `max_snapshots`.",
            )
        return None


def _checked(reply: Any) -> Any:
    """Return a reply that is no refusal: what has the hash's key may be of another type."""
    if isinstance(reply, Exception):
        raise CorruptRecordError("The key of the stream's snapshots holds something else.")
    return reply


def _read(value: bytes) -> StoredSnapshot:
    return StoredSnapshot(int.from_bytes(value[:8], "little"), decode(value[8:]))
