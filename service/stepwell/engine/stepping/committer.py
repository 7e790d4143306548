"""`BatchCommitter`: builds the next record of each row of a batch, commits the records, and handles the results."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stepwell.engine.packing import all_true, pack_outputs, select_returned
from stepwell.engine.protocol.replay import several
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.replies import Replies
from stepwell.engine.watch.commit_events import CandidateOutputs
from stepwell.errors import ServiceError, not_a_record
from stepwell.models.pair_state import pair_rows
from stepwell.models.paired import PairedModel
from stepwell.store.commits import DELETE, ColumnarCommits, Commit, CommitResults, Outcome
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import CHANGED_VERSION, HAD_KEY, HEADER_BYTES, Kind, decode, extend_history, version_flags
from stepwell.store.record_arrays import digests_in, encode_records, guards, record_with_sources, sources_table
from stepwell.types import ENDS, STARTS, BatchOutput
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.stepping.model_runner import RunResult
    from stepwell.engine.stepping.pipeline import PipelineDeps
    from stepwell.engine.stepping.responding import Responding
    from stepwell.engine.trials.comparison import Beside
    from stepwell.store.commits import CommitResult, Notification
    from stepwell_client.wire.outcomes import ReturnMode


class CommittedRows(NamedTuple):
    """The new records of a batch's rows, as columns.

    Attributes:
        names: Keys of the records.
        headers: `(rows,)` of `HEADER_DTYPE`.
        states: Packed states, `(rows, bytes)` uint8.
        expiry_set_at: When each record's expiry was set before the commit, on the store's clock, `(rows,)` float64.
        outputs: The returned predictions, `(rows, T', *row)` by name.
        history_hashes: History hashes, 16 bytes each.
        sources: The table of positions of sources, see `record_arrays`; None: the records have none.
        beside: Of a pair, what its run returned beside the predictions.
        responding: The versions that responded; None: that of the model, as before.
    """

    names: Sequence[str]
    headers: Array
    states: Array
    expiry_set_at: Array
    outputs: Mapping[str, Array]
    history_hashes: Sequence[bytes]
    sources: Array | None = None
    beside: Beside | None = None
    responding: Responding | None = None

    def select(self, indices: Sequence[int]) -> CommittedRows:
        """Return some of the rows."""
        return CommittedRows(
            [self.names[i] for i in indices],
            self.headers[indices],
            self.states[indices],
            self.expiry_set_at[indices],
            {name: array[indices] for name, array in self.outputs.items()},
            [self.history_hashes[i] for i in indices],
            None if self.sources is None else self.sources[indices],
            None if self.beside is None else self.beside.select(indices),
            None if self.responding is None else self.responding.select(indices),
        )


class BatchCommitter:
    """Commits the results of a model version, and returns the rows whose records another writer has changed."""

    def __init__(self, deps: PipelineDeps, replies: Replies) -> None:
        self._served = deps.served
        self._artifacts = deps.served.artifacts
        self._specs = deps.served.manifest.answered
        self._store = deps.store
        self._cache = deps.cache
        self._observer = deps.observer
        self._interests = deps.interests
        self._replies = replies
        self._comparison = deps.comparison
        self._runner = deps.runner
        self._sampler = deps.sampler
        self._source_ids = deps.source_ids

    async def commit(
        self,
        rows: Sequence[QueuedStep],
        headers: Array,
        run: RunResult,
        *,
        responding: Responding | None,
        expiry_set_at: Array,
        deadline: float,
    ) -> list[QueuedStep]:
        """Commit the next records, reply to the rows that were applied, and return those to be attempted again.

        Args:
            rows: The rows that were run.
            headers: The headers of the records that they continue, `(rows,)` of `HEADER_DTYPE`; they are overwritten.
            run: The result of the run, of these rows.
            responding: The versions that responded; None: that of the model, as before.
            expiry_set_at: When each record's expiry was set, on the store's clock, `(rows,)` float64.
            deadline: On the loop's clock.
        """
        names = [row.name for row in rows]
        outputs, states = select_returned(rows[0].timestep.keep, run.outputs), run.states
        packed = pack_outputs(self._specs, outputs, len(rows))
        columnar = ColumnarCommits(names, HEADER_BYTES + packed.shape[1] + states.shape[1])
        columnar.guards[:] = guards(headers)
        if (lifecycle := rows[0].timestep.lifecycle) in STARTS:
            self._reset_headers(rows, headers)
        keyed = [i for i, row in enumerate(rows) if row.timestep.idempotency_key is not None]
        history_hashes = self.advance_headers([row.op_id for row in rows], rows[0].applied.length, headers, keyed)
        if responding is not None and any(responding.changed):
            changed_rows = np.flatnonzero(responding.changed).tolist()
            headers["flags"][changed_rows] |= np.array(
                [version_flags(responding.versions[i], changed=True) for i in changed_rows], "<u4"
            )
        answer_versions = self._set_source_versions(rows, headers, responding)
        encode_records(columnar.records, headers, packed, states)
        created = [i for i, row in enumerate(rows) if row.is_loaded and row.record is None]
        commits: Sequence[Commit] = columnar
        with_sources = self._advance_sources(rows)
        if created or keyed or with_sources or lifecycle in ENDS:
            commits = changed = [*columnar]
            for i in with_sources:
                record = record_with_sources(
                    headers[i], rows[i].kept + packed[i].tobytes(), states[i].tobytes(), rows[i].sources,
                    rows[i].answered_at, answer_versions[i],
                )  # fmt: skip
                changed[i] = changed[i]._replace(record=record.encode())
            for i in created:
                changed[i] = changed[i]._replace(expect=b"")
            if lifecycle in ENDS:
                changed[:] = [commit._replace(record=DELETE) for commit in changed]
            for i in range(len(rows)) if lifecycle == "last" else keyed:
                changed[i] = _with_entry(
                    changed[i], rows[i], headers[i], rows[i].kept + packed[i].tobytes(),
                    self._served.fingerprint if responding is None else responding.fingerprints[i],
                    several(answer_versions[i]),
                )  # fmt: skip
        if created or lifecycle in STARTS or any([row.standing is not None for row in rows]):  # noqa: C419 - see all_finite
            for artifact in self._artifacts:  # these records may be the first ones with this fingerprint
                await artifact.ensure(deadline)
        notifications: Sequence[Notification] = ()
        if self._interests.has_interest(self._served.name):
            timesteps = [row.applied for row in rows]
            notifications = self._interests.notifications_for(
                timesteps,
                self._served.inputs,
                outputs,
                headers["step"].tolist(),
                history_hashes,
                [self._served.version] * len(rows) if responding is None else responding.versions,
                () if run.beside is None else self._candidates(run.beside, rows[0].timestep.keep),
            )
        if len(waiting := [row for row in rows if not row.answered]) < len(rows):
            return waiting  # the deadlines of the others have passed
        for row in rows:
            row.is_sent = True
        results = await self.send(commits, float(expiry_set_at.min()), deadline, notifications)
        sources = sources_table([row.sources for row in rows]) if with_sources else None
        committed = CommittedRows(
            names, headers, states, expiry_set_at, outputs, history_hashes, sources, run.beside, responding
        )
        return self.handle_results(rows, committed, created, results)

    def _candidates(self, beside: Beside, keep: ReturnMode) -> list[CandidateOutputs | None]:
        """Return what the candidate of a pair computed for each row; None: it failed."""
        model, halves = self._served.step_model, self._served.halves
        assert isinstance(model, PairedModel)
        assert halves is not None
        outputs = select_returned(keep, beside.candidate(responds=model.mode == "ramp"))
        has_failed = beside.failed[:, 0].tolist()
        return [
            None if failed else CandidateOutputs(halves[1].version, {name: array[i] for name, array in outputs.items()})
            for i, failed in enumerate(has_failed)
        ]

    async def send(
        self,
        commits: Sequence[Commit],
        expiry_set_at: float,
        deadline: float,
        notifications: Sequence[Notification] = (),
    ) -> CommitResults:
        """Commit, and measure the latency; the arguments are those of `StateStore.commit`.

        Await it right after the look-up of the interests, with no `await` in between: see `InterestTable.commits`.
        """
        started = time.perf_counter()
        self.check_artifacts()
        with self._interests.commits.begin():
            results = await self._store.commit(
                commits, deadline=deadline, expiry_set_at=expiry_set_at, notifications=notifications
            )
        self._observer.store_latency("commit", time.perf_counter() - started)
        return results

    def check_artifacts(self) -> None:
        """Have the model's artifacts checked, if that is due."""
        for artifact in self._artifacts:
            if artifact.check_at < time.monotonic():
                artifact.check_soon()

    def handle_results(
        self, rows: Sequence[QueuedStep], committed: CommittedRows, created: list[int], results: CommitResults
    ) -> list[QueuedStep]:
        """Reply to the rows that were applied, and return those to be attempted again."""
        if not_applied := results.not_applied:
            applied = [i for i in range(len(rows)) if i not in not_applied]
            remaining = [
                rows[i]
                for i, result in not_applied.items()
                if self._handle_conflict(rows[i], result, committed.headers[i])
            ]
            self._observer.conflicts(len(remaining))
            rows, committed = [rows[i] for i in applied], committed.select(applied)
            created = [applied.index(i) for i in created if i not in not_applied]
        else:
            remaining = []
        if rows:
            if rows[0].timestep.lifecycle in ENDS:
                for name in committed.names:
                    self._cache.drop(name)
                self.count_comparison(committed.beside, committed.states)
            else:
                self.cache_committed(committed, results)
            self._replies.reply_committed(
                rows,
                BatchOutput(committed.outputs, committed.headers["step"].tolist(), committed.history_hashes),
                created,
                committed.responding,
            )
            if self._sampler is not None and not self._sampler.skips():
                parts = [row.applied for row in rows]
                inputs = self._runner.inputs([part.inputs for part in parts], parts[0].length)
                self._sampler.add(committed.names, inputs, committed.outputs)
        return remaining

    def cache_committed(self, committed: CommittedRows, results: CommitResults) -> None:
        """Cache the committed records."""
        expiry_set_at = committed.expiry_set_at if results.expiry_set_at is None else results.expiry_set_at
        self._cache.put(committed.names, committed.headers, committed.states, expiry_set_at, committed.sources)
        if committed.sources is not None and results.expiry_set_at is not None:
            self._source_ids.renew_soon(digests_in(committed.sources))
        if committed.beside is not None:
            self.count_comparison(committed.beside, committed.states)
            if all_true(committed.beside.compared):
                return
            # A stream that leaves the trial, or whose candidate is warm now, moves at its next step.
            is_final = (pair_rows(committed.states)["failed"] > 0) | committed.beside.is_warm_now
            for i in np.flatnonzero(is_final).tolist():
                self._cache.drop(committed.names[i])

    def count_comparison(self, beside: Beside | None, states: Array) -> None:
        """Count the committed rows of a pair; None: they are of one version."""
        if beside is not None:
            self._comparison.add(self._served, beside, states)

    @staticmethod
    def _advance_sources(rows: Sequence[QueuedStep]) -> list[int]:
        """Advance the positions of the rows' sources, and return the indices of the rows whose streams have any."""
        for row in rows:
            row.advance_sources()
        return [i for i, row in enumerate(rows) if row.sources]

    def _set_source_versions(
        self, rows: Sequence[QueuedStep], headers: Array, responding: Responding | None
    ) -> list[tuple[int, ...]]:
        """Set the flags of the rows that have a source: their record shows which version has responded.

        Returns:
            Of each row the version that computed each answer of `answered_at`; empty: it has no source.
        """
        found: list[tuple[int, ...]] = [()] * len(rows)
        version, by_timestep = self._served.version, tuple[int, ...]()
        for i, row in enumerate(rows):
            if row.timestep.source is not None:
                if responding is not None:
                    version, by_timestep = responding.versions[i], responding.by_timestep[i]
                found[i] = row.answer_versions(version, by_timestep)
                headers["flags"][i] |= np.uint32(version_flags(version))
        return found

    def _reset_headers(self, rows: Sequence[QueuedStep], headers: Array) -> None:
        """Reset headers in place. The history continues, so that a late request matches no earlier position."""
        fingerprint = self._served.fingerprint
        history_hashes = extend_history(
            headers["history_hash"].tolist(), Kind.RESET, [row.op_id for row in rows], fingerprint
        )
        headers["epoch"] = [secrets.randbits(64) for _ in rows]
        headers["step"] = 0
        headers["history_hash"] = np.frombuffer(b"".join(history_hashes), "V16")
        headers["fingerprint"] = np.frombuffer(fingerprint, "V8")

    def advance_headers(
        self, op_ids: Sequence[bytes], length: int, headers: Array, keyed: Sequence[int] = (), *, version: int = 0
    ) -> list[bytes]:
        """Advance headers in place by one step or chunk, and return the new history hashes.

        Args:
            op_ids: Op ids, 16 bytes each.
            length: Timesteps of each row.
            headers: `(rows,)` of `HEADER_DTYPE`.
            keyed: Indices of the rows that have an idempotency key.
            version: The version that has responded, if the rows have a source and are not `QueuedStep`s; else 0.
        """
        history_hashes = self.extend(headers["history_hash"].tolist(), op_ids)
        set_next(headers, op_ids, length, history_hashes)
        if version:
            headers["flags"] |= np.uint32(version_flags(version))
        if keyed:
            headers["flags"][keyed] = Kind.STEP | HAD_KEY
        return history_hashes

    def extend(self, history_hashes: Sequence[bytes], op_ids: Sequence[bytes]) -> list[bytes]:
        """Return the history hashes after a step or chunk of this model, 16 bytes each."""
        return extend_history(history_hashes, Kind.STEP, op_ids, self._served.fingerprint)

    def _handle_conflict(self, row: QueuedStep, result: CommitResult, header: Array) -> bool:
        """Handle a commit that was not applied; True: the row has to be decided again, else it has its reply."""
        self._cache.drop(row.name)
        if row.answered:
            return False
        try:
            if result.outcome is Outcome.KEY_REPLAY and result.stored is not None:
                self._replies.replay_by_key(row, IdempotencyEntry.decode(result.stored))
                return False
            if result.outcome is Outcome.WRONG_TYPE:
                raise not_a_record()
            if result.error is not None:
                raise result.error
            current = None if result.stored is None else decode(result.stored)
            if result.outcome is Outcome.DUPLICATE and current is not None:
                if row.reservation is not None:
                    row.reservation.end(begun=True)
                self._replies.replay(row, current)
                return False
        except ServiceError as exc:
            self._replies.reply(row, exc)
            return False
        if row.timestep.lifecycle in ENDS:
            row.invalidate()  # if the stream is missing, its end entry shows whether this request deleted it
            return True
        before = int(header["step"]) - row.applied.length
        if before and (current is None or (current.epoch == header["epoch"] and current.step < before)):
            self._observer.regressions(1)
        row.set_stored(result.stored, current)
        return True


def set_next(headers: Array, op_ids: Sequence[bytes], length: int, history_hashes: Sequence[bytes]) -> None:
    """Advance headers in place by one step or chunk.

    Args:
        headers: `(rows,)` of `HEADER_DTYPE`.
        op_ids: Op ids, 16 bytes each.
        length: Timesteps of each row.
        history_hashes: The new history hashes, 16 bytes each.
    """
    headers["step"] += length
    headers["length"] = length
    headers["flags"] = Kind.STEP
    headers["op_id"] = np.frombuffer(b"".join(op_ids), "V16")
    headers["history_hash"] = np.frombuffer(b"".join(history_hashes), "V16")
    headers["updated_ms"] = int(time.time() * 1000)


def _with_entry(  # noqa: PLR0917 - the parts of an entry
    commit: Commit, row: QueuedStep, header: Array, outputs: bytes, fingerprint: bytes, versions: tuple[int, ...]
) -> Commit:
    """Return a commit with the entry of its idempotency key; `fingerprint` is that of the version that responded."""
    step, epoch, history_hash = int(header["step"]), int(header["epoch"]), header["history_hash"].tobytes()
    shows_version = row.timestep.source is not None or bool(header["flags"] & CHANGED_VERSION)
    parts = row.op_id, epoch, step, history_hash, row.applied.length, outputs, fingerprint
    entry = IdempotencyEntry(*parts, shows_version, versions)
    return commit._replace(entry_key=row.entry_key, entry=entry.encode())
