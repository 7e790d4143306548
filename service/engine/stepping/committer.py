"""`BatchCommitter`: the next record of each row of a batch, and what the commit of them means for the row."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from model_export.manifest import Array
from service.engine.packing import pack_outputs, select_returned
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import RecordCache
from service.engine.stepping.replies import Replies
from service.errors import ServiceError, not_a_record
from service.store.commits import DELETE, ColumnarCommits, Commit, CommitResults, Outcome
from service.store.record import HAD_KEY, HEADER_BYTES, IdempotencyEntry, Kind, decode, extend_history
from service.store.record_arrays import encode_records, guards
from service.types import ENDS, STARTS, BatchOutput

if TYPE_CHECKING:
    from service.engine.observer import EngineObserver
    from service.engine.watch.interests import InterestTable
    from service.models.registry import ServedModel
    from service.store.commits import CommitResult, Notification
    from service.store.state_store import StateStore


class CommittedRows(NamedTuple):
    """Where the rows of a batch were brought, in columns.

    Attributes:
        names: Where the store has their streams.
        heads: `(rows,)` of `HEAD`.
        states: `(rows, bytes)` uint8.
        refreshed: When their expiry had been set, `(rows,)` float64.
        outputs: What is answered, `(rows, T', *row)` by name.
        chains: Their histories, 16 bytes each.
    """

    names: Sequence[str]
    heads: Array
    states: Array
    refreshed: Array
    outputs: Mapping[str, Array]
    chains: Sequence[bytes]

    def select(self, places: Sequence[int]) -> CommittedRows:
        """Return some of the rows."""
        return CommittedRows(
            [self.names[at] for at in places],
            self.heads[places],
            self.states[places],
            self.refreshed[places],
            {name: array[places] for name, array in self.outputs.items()},
            [self.chains[at] for at in places],
        )


class BatchCommitter:
    """Commits what a model version computed, and returns the rows whose records had changed meanwhile."""

    def __init__(
        self,
        served: ServedModel,
        store: StateStore,
        cache: RecordCache,
        observer: EngineObserver,
        *,
        interests: InterestTable,
        replies: Replies,
    ) -> None:
        self._served = served
        self._specs = served.manifest.answered
        self._store = store
        self._cache = cache
        self._observer = observer
        self._interests = interests
        self._replies = replies

    async def commit(
        self,
        rows: Sequence[QueuedStep],
        heads: Array,
        outputs: Mapping[str, Array],
        states: Array,
        *,
        refreshed: Array,
        deadline: float,
    ) -> list[QueuedStep]:
        """Write the records that follow on `headers`, answer the rows that were applied, return those that were not."""
        names = [row.name for row in rows]
        outputs = select_returned(rows[0].timestep.keep, outputs)
        packed = pack_outputs(self._specs, outputs, len(rows))
        plain = ColumnarCommits(names, HEADER_BYTES + packed.shape[1] + states.shape[1])
        plain.guards[:] = guards(heads)
        if (life := rows[0].timestep.lifecycle) in STARTS:
            self._reset_headers(rows, heads)
        keyed = [at for at, row in enumerate(rows) if row.timestep.idempotency_key is not None]
        chains = self.advance_headers([row.op_id for row in rows], rows[0].timestep.length, heads, keyed)
        encode_records(plain.records, heads, packed, states)
        begun = [at for at, row in enumerate(rows) if row.is_loaded and row.record is None]
        commits: Sequence[Commit] = plain
        if begun or keyed or life in ENDS:
            commits = changed = [*plain]
            for at in begun:
                changed[at] = changed[at]._replace(expect=b"")
            if life in ENDS:
                changed[:] = [commit._replace(record=DELETE) for commit in changed]
            for at in range(len(rows)) if life == "last" else keyed:
                changed[at] = _with_entry(changed[at], rows[at], heads[at], packed[at].tobytes())
        tellings: Sequence[Notification] = ()
        if self._interests.has_interest(self._served.name):
            asked = [row.timestep for row in rows]
            tellings = self._interests.notifications_for(
                asked, self._served.inputs, outputs, heads["step"].tolist(), chains
            )
        began = time.perf_counter()
        answers = await self._store.commit(
            commits, deadline=deadline, expiry_set_at=float(refreshed.min()), notifications=tellings
        )
        self._observer.store_latency("commit", time.perf_counter() - began)
        return self.handle_results(
            rows, CommittedRows(names, heads, states, refreshed, outputs, chains), begun, answers
        )

    def handle_results(
        self, rows: Sequence[QueuedStep], moved: CommittedRows, begun: list[int], answers: CommitResults
    ) -> list[QueuedStep]:
        """Answer the rows that were applied, and return those that have to come round again."""
        if others := answers.not_applied:
            done = [at for at in range(len(rows)) if at not in others]
            again = [
                rows[at] for at, answer in others.items() if self._handle_conflict(rows[at], answer, moved.heads[at])
            ]
            self._observer.conflicts(len(again))
            rows, moved = [rows[at] for at in done], moved.select(done)
            begun = [done.index(at) for at in begun if at not in others]
        else:
            again = []
        if rows:
            if rows[0].timestep.lifecycle in ENDS:
                for name in moved.names:
                    self._cache.drop(name)
            else:
                self.cache_committed(moved, answers)
            self._replies.reply_committed(
                rows, BatchOutput(moved.outputs, moved.heads["step"].tolist(), moved.chains), begun
            )
        return again

    def cache_committed(self, moved: CommittedRows, answers: CommitResults) -> None:
        """Keep what the store now holds."""
        live = moved.refreshed if answers.expiry_set_at is None else answers.expiry_set_at
        self._cache.put(moved.names, moved.heads, moved.states, live)

    def _reset_headers(self, rows: Sequence[QueuedStep], heads: Array) -> None:
        """Bring headers to where a reset would bring them; the history goes on, so no late request finds it again."""
        fingerprint = self._served.fingerprint
        chains = extend_history(heads["chain"].tolist(), Kind.RESET, [row.op_id for row in rows], fingerprint)
        heads["epoch"] = [secrets.randbits(64) for _ in rows]
        heads["step"] = 0
        heads["chain"] = np.frombuffer(b"".join(chains), "V16")
        heads["fingerprint"] = np.frombuffer(fingerprint, "V8")

    def advance_headers(
        self, op_ids: Sequence[bytes], length: int, heads: Array, keyed: Sequence[int] = ()
    ) -> list[bytes]:
        """Bring headers to where the step brings them; return their histories. Some rows have an idempotency key."""
        chains = extend_history(heads["chain"].tolist(), Kind.STEP, op_ids, self._served.fingerprint)
        heads["step"] += length
        heads["length"] = length
        heads["flags"] = Kind.STEP
        if keyed:
            heads["flags"][keyed] = Kind.STEP | HAD_KEY
        heads["op_id"] = np.frombuffer(b"".join(op_ids), "V16")
        heads["chain"] = np.frombuffer(b"".join(chains), "V16")
        heads["updated_ms"] = int(time.time() * 1000)
        return chains

    def _handle_conflict(self, row: QueuedStep, answer: CommitResult, head: Array) -> bool:
        """Learn from a commit that was not applied now; True when the row is to be decided again."""
        self._cache.drop(row.name)
        try:
            if answer.outcome is Outcome.KEY_REPLAY and answer.stored is not None:
                self._replies.replay_by_key(row, IdempotencyEntry.decode(answer.stored))
                return False
            if answer.outcome is Outcome.WRONG_TYPE:
                raise not_a_record()
            if answer.error is not None:
                raise answer.error
            current = None if answer.stored is None else decode(answer.stored)
            if answer.outcome is Outcome.DUPLICATE and current is not None:
                if row.room is not None:
                    row.room.end(begun=True)
                self._replies.replay(row, current)
                return False
        except ServiceError as exc:
            self._replies.reply(row, exc)
            return False
        if row.timestep.lifecycle in ENDS:
            row.invalidate()  # where it is gone, the stream's last words tell whether it was this request
            return True
        before = int(head["step"]) - row.timestep.length
        if before and (current is None or (current.epoch == head["epoch"] and current.step < before)):
            self._observer.regressions(1)
        row.set_stored(answer.stored, current)
        return True


def _with_entry(commit: Commit, row: QueuedStep, head: Array, outputs: bytes) -> Commit:
    """Return a commit that also remembers what the request's idempotency key was answered."""
    step, epoch, chain = int(head["step"]), int(head["epoch"]), head["chain"].tobytes()
    fingerprint = head["fingerprint"].tobytes()
    entry = IdempotencyEntry(row.op_id, epoch, step, chain, row.timestep.length, outputs, fingerprint)
    return commit._replace(entry_key=row.entry_key, entry=entry.encode())
