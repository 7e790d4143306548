"""Commits: what is to be written of streams and on which guard, the command that does it, and what became of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast, overload

import hiredis
import numpy as np

from model_export.manifest import Array
from service.errors import ServiceError
from service.store.record import GUARD_BYTES
from service.store.scripts import Script
from service.store.transport.connection import Argument, PackedCommand

DELETE: Final = b"-"
"""What a commit has in place of a record where the stream is to be forgotten; `commit.lua` knows it."""

NO_RECORD: Final = b"!"
"""What a commit expects in place of a guard where the key holds something that is no record, which it replaces."""

COMMIT: Final = Script.of("commit.lua")
_GUARD_AND_RECORD: Final = itemgetter(1, 2)  # of a commit


class Commit(NamedTuple):
    """One record to write.

    Attributes:
        key: The record's key.
        expect: The guard that the stored record must have; empty: the stream must be missing; or `NO_RECORD`.
        record: The new record's bytes, or `DELETE`; a commit that forgets is never `DUPLICATE`.
        entry_key: Where to remember the answer of an idempotency key, or None.
        entry: The entry's bytes.
    """

    key: str
    expect: bytes
    record: bytes
    entry_key: str | None = None
    entry: bytes = b""


class ColumnarCommits(Sequence[Commit]):
    """Commits of a batch whose streams all exist and whose records are equally long.

    Guards and records lie in one array as they go over the wire, so nothing is made of each.

    Attributes:
        names: The records' keys.
        guards: The guards expected, `(rows, 56)` uint8; to be filled in.
        records: The new records, `(rows, bytes)` uint8; to be filled in.
    """

    __slots__ = ("_table", "guards", "names", "records")

    def __init__(self, names: Sequence[str], record_bytes: int) -> None:
        """Make room.

        Args:
            names: The records' keys.
            record_bytes: Length of each new record.
        """
        frame, at, record_at = _frame(record_bytes)
        self.names = names
        self._table = np.empty((len(names), len(frame)), np.uint8)
        self._table[:] = frame
        self.guards = self._table[:, at : at + GUARD_BYTES]
        self.records = self._table[:, record_at : record_at + record_bytes]

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, at: int) -> Commit: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Commit]: ...

    def __getitem__(self, at: int | slice) -> Commit | Sequence[Commit]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        return Commit(self.names[at], self.guards[at].tobytes(), self.records[at].tobytes())

    def packed(self, head: Sequence[Argument]) -> bytes:
        """Return a command with these arguments and, behind them, each guard and record, as it goes over the wire."""
        packed = hiredis.pack_command(cast("Any", tuple(head)))
        count = len(head) + 2 * len(self)
        return b"".join((b"*%d" % count, memoryview(packed)[packed.index(b"\r") :], self._table.data))


@lru_cache(maxsize=64)
def _frame(record_bytes: int) -> tuple[Array, int, int]:
    """Return a guard and a record of zeros as two arguments on the wire, and where the two begin."""
    guard, record = b"$%d\r\n" % GUARD_BYTES, b"$%d\r\n" % record_bytes
    frame = b"%b%b\r\n%b%b\r\n" % (guard, bytes(GUARD_BYTES), record, bytes(record_bytes))
    return np.frombuffer(frame, np.uint8), len(guard), len(guard) + GUARD_BYTES + 2 + len(record)


class Notification(NamedTuple):
    """What watchers are told of a commit, in the moment in which it is applied, and only then.

    Attributes:
        place: The commit's, in its call.
        event: What they are told.
        topic: Where it is published; empty: nobody listens now.
        log_key: Where the stream's newest events are kept; None: they are not.
        most: How many are kept.
    """

    row: int
    event: bytes
    topic: str
    log_key: str | None = None
    max_kept: int = 0


class Outcome(IntEnum):
    """What became of a commit; the numbers are `commit.lua`'s."""

    CONFLICT = 0
    APPLIED = 1
    DUPLICATE = 2
    KEY_REPLAY = 3
    WRONG_TYPE = 4
    FAILED = 5  # never the script's own: see the error


@dataclass(frozen=True, slots=True)
class CommitResult:
    """The store's answer to one commit.

    Attributes:
        outcome: What became of it.
        stored: The stored record (`CONFLICT`, `DUPLICATE`; None: the stream is missing) or entry (`KEY_REPLAY`). It may
            be no record of ours.
        error: Why it failed (`FAILED`), and whether it was applied.
    """

    outcome: Outcome
    stored: bytes | None = None
    error: ServiceError | None = None


APPLIED: Final = CommitResult(Outcome.APPLIED)


@dataclass(frozen=True, slots=True)
class CommitResults:
    """The store's answer to the commits of one call.

    Attributes:
        others: What became of those that were not applied now, by their place in the call.
        refreshed: When (see `StateStore.clock`) the records that were applied began to live their time anew; None:
            they were left to live on as before.
    """

    not_applied: Mapping[int, CommitResult]
    expiry_set_at: float | None

    def __getitem__(self, place: int) -> CommitResult:
        """What became of one commit.

        Raises:
            ServiceError: It failed.
        """
        answer = self.not_applied.get(place, APPLIED)
        if answer.error is not None:
            raise answer.error
        return answer


def script_call(
    commits: Sequence[Commit],
    tellings: Sequence[Notification] = (),
    *,
    ttl_ms: int,
    entry_ttl_ms: int,
    keep: bool,
    whole: bool = False,
) -> tuple[Argument, ...]:
    """Return the command that makes commits by `COMMIT`; it answers as `commit.lua` says.

    Args:
        commits: At most one per key.
        tellings: What is told of them, at most one per commit.
        ttl_ms: Milliseconds that the records live.
        entry_ttl_ms: Milliseconds that the entries of idempotency keys live.
        keep: Leave the records' times to live as they are.
        whole: Send the script itself and not its name.
    """
    keyed = [(i, c) for i, c in enumerate(commits, 1) if c.entry_key is not None]
    logs = [t.log_key for t in tellings if t.log_key is not None]
    call: list[Argument] = ["EVAL", COMMIT.text] if whole else ["EVALSHA", COMMIT.sha]
    call.append(len(commits) + len(keyed) + len(logs))
    call += [c.key for c in commits]
    call += [c.entry_key for _, c in keyed if c.entry_key is not None]
    call += logs
    call += (len(commits), ttl_ms, entry_ttl_ms, int(keep), len(keyed))
    call += chain.from_iterable(map(_GUARD_AND_RECORD, commits))
    for i, c in keyed:
        call += (i, c.entry)
    for t in tellings:
        call += (t.row + 1, t.event, t.topic, 0 if t.log_key is None else t.max_kept)
    return tuple(call)


def rows_call(commits: ColumnarCommits, *, ttl_ms: int, entry_ttl_ms: int, keep: bool) -> PackedCommand:
    """Return the same command for rows, packed already; arguments as for `script_call`."""
    rows = len(commits)
    head: list[Argument] = ["EVALSHA", COMMIT.sha, rows, *commits.names, rows, ttl_ms, entry_ttl_ms, int(keep), 0]
    return PackedCommand(
        commits.packed(head), lambda: script_call(commits, ttl_ms=ttl_ms, entry_ttl_ms=entry_ttl_ms, keep=keep)
    )
