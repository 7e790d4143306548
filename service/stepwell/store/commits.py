"""Commits: the records to write and the guards they expect, the command that writes them, and its results."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final, NamedTuple, cast, overload

import hiredis
import numpy as np
from msgspec import Struct

from stepwell.errors import ServiceError
from stepwell.store.record import GUARD_BYTES
from stepwell.store.scripts import Script
from stepwell.store.transport.connection import Argument, PackedCommand
from stepwell.store.transport.server import NotReplicated
from stepwell_export.runtime.manifest import Array

DELETE: Final = b"-"
"""Stands for the new record in a commit that deletes the stream; `commit.lua` has the same constant."""

NO_RECORD: Final = b"!"
"""Stands for the expected guard if the key must hold a value that is not a record, which the commit replaces."""

COMMIT: Final = Script.of("commit.lua")
_IMPOSSIBLE_GUARD: Final = b"no guard is this"  # no record has a guard of this length, so a commit never applies
_GUARD_AND_RECORD: Final = itemgetter(1, 2)  # of a commit


class Commit(NamedTuple):
    """One record to write.

    Attributes:
        key: The record's key.
        expect: The guard that the stored record must have; empty if the stream must be missing; or `NO_RECORD`. With
            `DELETE`, its first 8 bytes are enough, the record's epoch.
        record: The new record's bytes, or `DELETE`; a commit that deletes is never `DUPLICATE`.
        entry_key: Key of the idempotency entry to write, or None.
        entry: The idempotency entry's bytes.
    """

    key: str
    expect: bytes
    record: bytes
    entry_key: str | None = None
    entry: bytes = b""


def replica_probe(name: str, stored: bytes, entry_key: str | None = None) -> Commit:
    """Return a commit that changes nothing and succeeds only once a replica has the stored record.

    Args:
        name: The record's key.
        stored: The record that was read; the commit returns `DUPLICATE` if its operation is still the newest one.
        entry_key: Key of an idempotency entry that was read; the commit then returns `KEY_REPLAY`.
    """
    return Commit(name, _IMPOSSIBLE_GUARD, stored, entry_key)


class EncodedCommits(Sequence[Commit]):
    """Commits that are encoded as arguments of the command already; no object is created per commit.

    Attributes:
        names: The records' keys.
    """

    __slots__ = ("names",)

    names: Sequence[str]

    @property
    @abstractmethod
    def encoded(self) -> Sequence[memoryview | bytes]:
        """Each guard and record, as arguments of the command."""

    @abstractmethod
    def _commit(self, index: int) -> Commit: ...

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Commit: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Commit]: ...

    def __getitem__(self, index: int | slice) -> Commit | Sequence[Commit]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._commit(range(len(self))[index])


class ColumnarCommits(EncodedCommits):
    """Commits of a batch whose records have equal lengths, and whose streams all exist, or are all missing.

    Guards and records are columns of one array that already has the layout of the command.

    Attributes:
        guards: The expected guards, `(rows, 56)` uint8, `(rows, 0)` for missing streams; the caller fills them in.
        records: The new records, `(rows, bytes)` uint8; the caller fills them in.
    """

    __slots__ = ("_table", "guards", "records")

    def __init__(self, names: Sequence[str], record_bytes: int, *, missing: bool = False) -> None:
        """Allocate the array.

        Args:
            names: The records' keys.
            record_bytes: Length of each new record.
            missing: The streams must be missing.
        """
        guard_bytes = 0 if missing else GUARD_BYTES
        frame, guard_at, record_at = _frame(guard_bytes, record_bytes)
        self.names = names
        self._table = np.empty((len(names), len(frame)), np.uint8)
        self._table[:] = frame
        self.guards = self._table[:, guard_at : guard_at + guard_bytes]
        self.records = self._table[:, record_at : record_at + record_bytes]

    @property
    def encoded(self) -> Sequence[memoryview | bytes]:
        """The array."""
        return (self._table.data,)

    def _commit(self, index: int) -> Commit:
        return Commit(self.names[index], self.guards[index].tobytes(), self.records[index].tobytes())


class JoinedCommits(EncodedCommits):
    """Columnar commits, then others without idempotency entries, as those of one batch."""

    __slots__ = ("_others", "_parts")

    def __init__(self, parts: Sequence[ColumnarCommits], others: Sequence[Commit]) -> None:
        """Join commits, at most one per key."""
        self.names = [*chain.from_iterable(part.names for part in parts), *(one.key for one in others)]
        self._parts, self._others = parts, others

    @property
    def encoded(self) -> Sequence[memoryview | bytes]:
        """The array of each part, and the encoded others."""
        others = [b"$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(e), e, len(r), r) for _, e, r, _, _ in self._others]
        return [*chain.from_iterable(part.encoded for part in self._parts), *others]

    def _commit(self, index: int) -> Commit:
        return next(islice(self, index, None))

    def __iter__(self) -> Iterator[Commit]:
        return chain(chain.from_iterable(self._parts), self._others)


ENCODED: Final = (ColumnarCommits, JoinedCommits)
"""The classes of `EncodedCommits`: `type(..) in ENCODED` is quicker than `isinstance` for subclasses of ABCs."""


@lru_cache(maxsize=64)
def _frame(guard_bytes: int, record_bytes: int) -> tuple[Array, int, int]:
    """Return a guard and a record of zeros, encoded as two arguments, and the offset of each."""
    guard, record = b"$%d\r\n" % guard_bytes, b"$%d\r\n" % record_bytes
    frame = b"%b%b\r\n%b%b\r\n" % (guard, bytes(guard_bytes), record, bytes(record_bytes))
    return np.frombuffer(frame, np.uint8), len(guard), len(guard) + guard_bytes + 2 + len(record)


class Notification(NamedTuple):
    """The event of a commit, published atomically with the commit if the commit is applied.

    Attributes:
        row: Index of the commit in its call.
        event: The encoded event.
        topic: Topic to publish it on; empty if no watcher has interest in it.
        log_key: Key of the stream's event log, or None if it has none.
        max_kept: Number of events that the log keeps.
        shard_workers: Number of workers that receive the event on the stream's shard channel in a Cluster; 0: it is
            published on the topic.
    """

    row: int
    event: bytes
    topic: str
    log_key: str | None = None
    max_kept: int = 0
    shard_workers: int = 0


class Outcome(IntEnum):
    """The outcome of a commit; the numbers are those of `commit.lua`."""

    CONFLICT = 0
    APPLIED = 1
    DUPLICATE = 2
    KEY_REPLAY = 3
    WRONG_TYPE = 4
    FAILED = 5  # not returned by the script: see `CommitResult.error`


@dataclass(frozen=True, slots=True)
class CommitResult:
    """The result of one commit.

    Attributes:
        outcome: Its outcome.
        stored: The stored record (`CONFLICT`, `DUPLICATE`; None if the stream is missing), the record that was deleted
            by its epoch (`APPLIED`), or the idempotency entry (`KEY_REPLAY`). The bytes are not checked: they may not
            be a record of ours.
        error: Why it failed (`FAILED`), and whether it was applied.
    """

    outcome: Outcome
    stored: bytes | None = None
    error: ServiceError | None = None


APPLIED: Final = CommitResult(Outcome.APPLIED)
_APPLIED_OUTCOMES: Final = frozenset((Outcome.APPLIED, Outcome.DUPLICATE, Outcome.KEY_REPLAY))


class CommitResults(Struct, frozen=True, gc=False):
    """The results of the commits of one call.

    Attributes:
        not_applied: Results of the commits that were not applied now, and of deletions by an epoch, by their index in
            the call.
        expiry_set_at: Time on `state_store.CLOCK` at which the expiries of the applied records were set; None if they
            were left unchanged.
    """

    not_applied: Mapping[int, CommitResult]
    expiry_set_at: float | None

    def __getitem__(self, index: int) -> CommitResult:
        """Return the result of one commit.

        Raises:
            ServiceError: It failed.
        """
        result = self.not_applied.get(index, APPLIED)
        if result.error is not None:
            raise result.error
        return result


def script_call(
    commits: Sequence[Commit],
    notifications: Sequence[Notification] = (),
    *,
    ttl_ms: int,
    entry_ttl_ms: int,
    keep_ttl: bool,
    send_source: bool = False,
) -> tuple[Argument, ...]:
    """Return the command that runs `COMMIT`; `commit.lua` describes its reply.

    Args:
        commits: At most one per key.
        notifications: Their events, at most one per commit.
        ttl_ms: Milliseconds until the records expire.
        entry_ttl_ms: Milliseconds until the idempotency entries expire.
        keep_ttl: Leave the expiries of the records unchanged.
        send_source: Send the script's text instead of its hash.
    """
    keyed = [(i, c) for i, c in enumerate(commits, 1) if c.entry_key is not None]
    logs = [one.log_key for one in notifications if one.log_key is not None] if notifications else []
    call: list[Argument] = ["EVAL", COMMIT.text] if send_source else ["EVALSHA", COMMIT.sha]
    call.append(len(commits) + len(keyed) + len(logs))
    call += [c.key for c in commits]
    if keyed or logs:  # few are
        call += [c.entry_key for _, c in keyed if c.entry_key is not None]
        call += logs
    call += (len(commits), ttl_ms, entry_ttl_ms, int(keep_ttl), len(keyed))
    call += chain.from_iterable(map(_GUARD_AND_RECORD, commits))
    for i, c in keyed:
        call += (i, c.entry)
    for notification in notifications:
        call += (
            notification.row + 1,
            notification.event,
            notification.topic,
            0 if notification.log_key is None else notification.max_kept,
            notification.shard_workers,
        )
    return tuple(call)


def rows_call(commits: EncodedCommits, *, ttl_ms: int, entry_ttl_ms: int, keep_ttl: bool) -> PackedCommand:
    """Return the same command for encoded commits, as bytes; the arguments are those of `script_call`."""
    rows = len(commits)
    head: list[Argument] = ["EVALSHA", COMMIT.sha, rows, *commits.names, rows, ttl_ms, entry_ttl_ms, int(keep_ttl), 0]
    packed, count = hiredis.pack_command(cast("Any", tuple(head))), len(head) + 2 * rows
    return PackedCommand(
        b"".join((b"*%d" % count, memoryview(packed)[packed.index(b"\r") :], *commits.encoded)),
        lambda: script_call(commits, ttl_ms=ttl_ms, entry_ttl_ms=entry_ttl_ms, keep_ttl=keep_ttl),
    )


def single_calls(
    commits: Sequence[Commit], notifications: Sequence[Notification] = (), **ttls: Any
) -> list[Sequence[Argument]]:
    """Return a command for each commit by itself; the arguments are those of `script_call`."""
    by_row = {notification.row: [notification._replace(row=0)] for notification in notifications}
    return [script_call([commit], by_row.get(i, ()), **ttls) for i, commit in enumerate(commits)]


def decode_results(reply: Any, commits: int) -> dict[int, CommitResult]:
    """Decode the reply to `script_call`: the results of the commits that were not applied now, or not confirmed."""
    if reply == []:
        return {}
    is_confirmed = not isinstance(reply, NotReplicated)
    results = {
        index - 1: CommitResult(Outcome(outcome), stored[0] if stored else None)
        for index, outcome, *stored in (reply if is_confirmed else reply.reply)
    }
    for i in () if is_confirmed else range(commits):
        if results.get(i, APPLIED).outcome in _APPLIED_OUTCOMES:
            results[i] = CommitResult(Outcome.FAILED, error=not_replicated())
    return results


def decode_single_results(replies: Sequence[Any]) -> dict[int, CommitResult]:
    """Decode the replies to `single_calls`; an error is the result of its commit."""
    results = {}
    for i, reply in enumerate(replies):
        if isinstance(reply, ServiceError):
            results[i] = CommitResult(Outcome.FAILED, error=reply)
        elif result := decode_results(reply, 1).get(0):
            results[i] = result
    return results


def not_replicated() -> ServiceError:
    """Return the error for a write that the primary applied and no replica confirmed."""
    return ServiceError(
        "not_durable",
        "The step is in the primary's memory, but no replica confirmed it in time.",
        fix="Send the same request again: it is not applied twice, and it waits for the replica again.",
        applied="yes",
    )
