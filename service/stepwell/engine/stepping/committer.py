"""`Committer`: builds the next record of each row of a batch, commits the records, and handles the results."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from stepwell.engine.packing import pack_outputs, select_returned
from stepwell.engine.placing import Followed
from stepwell.engine.protocol.replay import versions_if_several
from stepwell.engine.publisher import CandidateOutputs, PendingCommits
from stepwell.engine.stepping.record_cache import CachedRecord
from stepwell.engine.stepping.record_loader import Records
from stepwell.engine.stepping.replies import responding_versions
from stepwell.errors import ServiceError, not_a_record
from stepwell.store.commits import DELETE, ColumnarCommits, Commit, CommitResults, JoinedCommits, Outcome
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import (
    CHANGED_VERSION,
    GUARD_AT,
    HAD_KEY,
    HEADER_BYTES,
    Kind,
    SourcePosition,
    decode,
    encode_next,
    extend_history,
    header_of,
    version_flags,
)
from stepwell.store.record_arrays import (
    advance_sources,
    digests_in,
    empty_sources,
    encode_records,
    encode_sources,
    guards,
    have_sources,
    read_headers,
    record_with_sources,
    sources_in,
    sources_table,
    take_headers,
)
from stepwell.types import ENDS, STARTS, BatchOutput
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.stepping.model_runner import BatchRun
    from stepwell.engine.stepping.pipeline import PipelineDeps
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.engine.stepping.replies import Replies, Responding
    from stepwell.models.joined import JoinedRun
    from stepwell.store.commits import CommitResult, Notification


class NextRecords(Struct, frozen=True, gc=False):
    """The records after a run, as columns, and their commits.

    Attributes:
        records: The rows, with their new headers, states and sources.
        names: The keys of their records.
        commits: One for each.
        order: Of which row each commit is.
        output: Their predictions.
        beside: What the run of joined versions returned beside the predictions.
        followed: Of joined versions, which histories their rows continue; None: they begin again.
        responding: The versions that responded; None: that of the model, as before.
        created: Which of the rows, by their index, create their streams.
        one: Instead of headers and sources, the record of a single timestep as it is cached then.
    """

    records: Records
    names: Sequence[str]
    commits: Sequence[Commit]
    order: Sequence[int]
    output: BatchOutput
    beside: JoinedRun | None = None
    followed: Followed | None = None
    responding: Responding | None = None
    created: frozenset[int] = frozenset()
    one: CachedRecord | None = None

    def select(self, rows: Sequence[int]) -> NextRecords:
        """Return some of the rows."""
        output = self.output
        return NextRecords(
            self.records.select(rows),
            [self.names[j] for j in rows],
            (),
            (),
            BatchOutput(
                {name: array[rows] for name, array in output.arrays.items()},
                [output.steps[i] for i in rows],
                [output.state_ids[i] for i in rows],
            ),
            None if self.beside is None else self.beside.select(rows),
            None if self.followed is None else self.followed.select(rows),
            None if self.responding is None else self.responding.select(rows),
            frozenset([j for j, i in enumerate(rows) if i in self.created]),
        )


class Committer:
    """Commits the results of a model version, and returns the rows whose records another writer has changed."""

    def __init__(self, deps: PipelineDeps, replies: Replies) -> None:
        self._served = deps.served
        self._artifacts = deps.served.artifacts
        self._specs = deps.served.manifest.answered
        self._store = deps.store
        self._cache = deps.cache
        self._observer = deps.observer
        self._publisher = deps.publisher
        self._replies = replies
        self._committed = deps.committed
        self._sampler = deps.sampler
        self._source_ids = deps.source_ids

    async def commit(
        self, records: Records, inputs: Mapping[str, Array], run: BatchRun, deadline: float
    ) -> list[QueuedStep]:
        """Commit the next records, reply to the rows that were applied, and return those to be attempted again.

        Args:
            records: The records that the rows continue; the headers are overwritten.
            inputs: What was run, `(rows, T, *row)` by input.
            run: The result of the run, of these rows.
            deadline: On the loop's clock.
        """
        name, batch = self._served.name, records.batch
        notifications: Sequence[Notification] = ()
        if records.one is not None and name not in self._publisher.watched:
            found = self._next_of_one(records, records.one, run)
        else:
            found = self._next_records(records.in_columns(), inputs, run)
            if (
                found.created
                or batch.lifecycle in STARTS
                or any([row.placed is not None for row in batch.rows.values()])  # noqa: C419 - generators are slow
            ):
                for artifact in self._artifacts:  # these records may be the first ones with this fingerprint
                    await artifact.ensure(deadline)
            if name in self._publisher.watched:  # now: to the store's command there is no `await`
                notifications = self._notifications(found)
        at = records.at
        if batch.rows and any([row.answered for _, row in records.objects()]):  # noqa: C419 - generators are slow
            return [row for i in at if not (row := batch.row(i)).answered]  # the deadlines of the others have passed
        batch.sent = at
        started = time.perf_counter()
        for artifact in self._artifacts:
            if artifact.check_at < time.monotonic():
                artifact.check_soon()
        expiry_set_at = records.expiry_set_at.min() if records.one is None else records.one.expiry_set_at
        results = await self._store.commit(
            found.commits, deadline=deadline, expiry_set_at=float(expiry_set_at), notifications=notifications
        )
        self._observer.store_latency("commit", time.perf_counter() - started)
        remaining: list[QueuedStep] = []
        applied: list[int] | None = None
        if results.not_applied:
            found, remaining, applied = self._without_conflicts(found, results)
        if found.records.at:
            self._cache_committed(found, results)
            self._replies.reply_committed(found.records, found.output, found.responding, found.created)
            if self._sampler is not None:
                committed = inputs if applied is None else {n: array[applied] for n, array in inputs.items()}
                self._sampler.add(found.names, committed, found.output.arrays)
        return remaining

    # ---------------------------------------------------------------- the next records

    def _next_of_one(self, records: Records, cached: CachedRecord, run: BatchRun) -> NextRecords:
        """Return the next record of a single timestep, without arrays: for one row, they take longer than the work."""
        batch, header = records.batch, cached.header
        sources: tuple[SourcePosition, ...] = ()
        answered_at, version = list[int](), 0
        if batch.sources is not None:
            sources = batch.sources_after(cached.sources) or ()
            answered_at, version = batch.sources.at[0].tolist(), self._served.version
        outputs = b"".join([run.outputs[spec.name].tobytes() for spec in self._specs])
        updated_ms, state = int(time.time() * 1000), run.states.tobytes()
        record, step, history_hash = encode_next(
            header, batch.op_ids[0], updated_ms, outputs, state, sources, answered_at, version
        )
        one = CachedRecord(header_of(record), run.states, cached.expiry_set_at, sources)
        commits = [Commit(batch.names[0], header[GUARD_AT], record)]
        return NextRecords(
            records, batch.names, commits, records.at, BatchOutput(run.outputs, [step], [history_hash]), one=one
        )

    def _next_records(self, records: Records, inputs: Mapping[str, Array], run: BatchRun) -> NextRecords:
        """Return the next records.

        Most are encoded together, those of new streams likewise. Those of another length or kind become a list of
        commits: with positions of sources that differ from those of others, with a key, of streams that end.
        """
        batch, headers, states, n = records.batch, records.headers, run.states, len(records.at)
        outputs = select_returned(batch.keep, run.outputs)
        packed = pack_outputs(self._specs, outputs, n)
        responding = responding_versions(self._served, records, run.beside)
        created = frozenset(records.places(records.created))
        own, sources, section = self._own_rows(records, created, is_uniform=responding is None)
        alike = sorted(created.difference(own))
        usual, part = self._usual_rows(n, [*alike, *own])
        names, op_ids = records.of(batch.names, records.at), records.of(batch.op_ids, records.at)
        guard = guards(headers)  # of the old headers, which are overwritten below
        expected = {j: b"" if j in created else guard[j].tobytes() for j in own}
        answer_bytes = packed.shape[1] + states.shape[1]
        parts = [
            ColumnarCommits(
                records.of(names, usual), HEADER_BYTES + (0 if section is None else section.shape[1]) + answer_bytes
            )
        ]
        parts[0].guards[:] = guard[part]
        followed = None
        if run.beside is not None and batch.lifecycle not in STARTS:
            followed = Followed(names, headers["epoch"].copy(), headers["step"].astype(np.int64), inputs)
        history_hashes = self._advance_headers(records, op_ids, own, responding)
        if section is not None:
            headers["flags"][part] |= np.uint32(version_flags(self._served.version))
        if usual:
            new = headers if len(usual) == n else take_headers(headers, usual)
            encode_records(parts[0].records, new, packed[part], states[part], section)
        commits: Sequence[Commit] = parts[0]
        if alike or own:
            if alike:
                parts.append(ColumnarCommits([names[j] for j in alike], HEADER_BYTES + answer_bytes, missing=True))
                encode_records(parts[1].records, take_headers(headers, alike), packed[alike], states[alike])
            own_commits = []
            for j in own:
                row, answers = batch.rows[records.at[j]], packed[j].tobytes()
                own_commits.append(
                    self._own_commit(row, headers[j], expected[j], answers, states[j].tobytes(), responding, j)
                )
            commits = JoinedCommits(parts, own_commits)
            if any([commit.entry_key is not None for commit in own_commits]):  # noqa: C419 - generators are slow
                commits = [*commits]
            if own and sources is not None:
                sources[own] = sources_table([batch.rows[records.at[j]].sources for j in own])
        output = BatchOutput(outputs, headers["step"].tolist(), history_hashes)
        records = records._replace(states=states, sources=sources)
        order = [*usual, *alike, *own] if len(usual) < n else usual
        return NextRecords(records, names, commits, order, output, run.beside, followed, responding, created)

    @staticmethod
    def _usual_rows(n: int, others: Sequence[int]) -> tuple[Sequence[int], slice | Array]:
        """Return the rows, of `n`, without some others, also as an index of arrays."""
        if not others:
            return range(n), slice(None)
        excluded = frozenset(others)
        usual = [j for j in range(n) if j not in excluded]
        return usual, np.array(usual, np.intp)

    def _own_rows(
        self, records: Records, created: frozenset[int], *, is_uniform: bool
    ) -> tuple[list[int], Array | None, Array | None]:
        """Return the rows with a commit of their own, by their index; their positions of sources are set.

        Args:
            records: The records before the run.
            created: Which of the rows create their streams.
            is_uniform: The model's version has responded to all rows, as before.

        Returns:
            Also the table of the positions of sources after the run, and what the records of all other rows have behind
            their headers; None: they have none.
        """
        batch, before, at = records.batch, records.sources, records.at
        n, own = len(at), list[int]()
        if batch.lifecycle in ENDS:
            own = [*range(n)]
        elif batch.rows:
            own = [j for j, row in records.objects() if not row.is_plain]
        after, section = before, None
        if batch.sources is not None:
            own = sorted(created.union(own))
            usual, part = self._usual_rows(n, own)
            advanced = None
            if is_uniform and usual:
                positions = batch.sources.select(records.of(at, usual)) if own or n < len(batch) else batch.sources
                table = empty_sources(n) if before is None else before
                advanced = advance_sources(table[part], positions.digests, positions.at)
            if advanced is None:
                own = [*range(n)]  # they are advanced one by one
            else:
                section = encode_sources(advanced, positions.at if batch.keep == "all" else positions.at[:, -1:])
                after = advanced
                if own:
                    after = table.copy()
                    after[part] = advanced
        elif before is not None:
            own = sorted({*own, *np.flatnonzero(have_sources(before)).tolist()})
        for j in own:
            row = batch.row(at[j])
            if not row.is_loaded and before is not None:
                row.cached_sources = sources_in(before[j])
            row.advance_sources()
        if own and after is None and any([batch.rows[at[j]].sources for j in own]):  # noqa: C419 - generators are slow
            after = empty_sources(n)
        return own, after, section

    def _own_commit(  # noqa: PLR0917 - the parts of a record
        self,
        row: QueuedStep,
        header: Array,
        expect: bytes,
        outputs: bytes,
        state: bytes,
        responding: Responding | None,
        j: int,
    ) -> Commit:
        """Return the commit of one row; `header` is the new one, and its flags are set if the row has a source."""
        version, fingerprint, by_timestep = self._served.version, self._served.fingerprint, tuple[int, ...]()
        if responding is not None:
            version, fingerprint = responding.versions[j], responding.fingerprints[j]
            by_timestep = responding.by_timestep[j]
        versions, outputs = tuple[int, ...](), row.kept + outputs
        if row.timestep.source is not None:
            versions = row.answer_versions(version, by_timestep)
            header["flags"] |= np.uint32(version_flags(version))
        record = DELETE
        if row.timestep.lifecycle not in ENDS:
            record = record_with_sources(header, outputs, state, row.sources, row.answered_at, versions).encode()
        entry, entry_key = b"", None
        if (row.timestep.idempotency_key is not None) or row.timestep.lifecycle == "last":
            step, epoch, history_hash = int(header["step"]), int(header["epoch"]), header["history_hash"].tobytes()
            shows_version = row.timestep.source is not None or bool(header["flags"] & CHANGED_VERSION)
            parts = row.op_id, epoch, step, history_hash, row.applied.length, outputs, fingerprint
            entry_key, entry = (
                row.entry_key,
                IdempotencyEntry(*parts, shows_version, versions_if_several(versions)).encode(),
            )
        return Commit(row.name, expect, record, entry_key, entry)

    def _advance_headers(
        self, records: Records, op_ids: Sequence[bytes], own: Sequence[int], responding: Responding | None
    ) -> list[bytes]:
        """Advance headers in place by the timesteps of each row, and return the new history hashes.

        Streams that begin again are reset before. Their history continues, so that a late request matches no earlier
        position.
        """
        headers, fingerprint, batch = records.headers, self._served.fingerprint, records.batch
        history_hashes: Sequence[bytes] = headers["history_hash"].tolist()
        if batch.lifecycle in STARTS:
            history_hashes = extend_history(history_hashes, Kind.RESET, op_ids, fingerprint)
            headers["epoch"] = [secrets.randbits(64) for _ in op_ids]
            headers["step"] = 0
            headers["fingerprint"] = np.frombuffer(fingerprint, "V8")
        next_hashes = extend_history(history_hashes, Kind.STEP, op_ids, fingerprint)
        length = records.length
        headers["step"] += length
        headers["length"] = length
        headers["flags"] = Kind.STEP
        headers["op_id"] = np.frombuffer(b"".join(op_ids), "V16")
        headers["history_hash"] = np.frombuffer(b"".join(next_hashes), "V16")
        headers["updated_ms"] = int(time.time() * 1000)
        if keyed := [j for j in own if batch.rows[records.at[j]].timestep.idempotency_key is not None]:
            headers["flags"][keyed] = Kind.STEP | HAD_KEY
        if responding is not None and any(responding.changed):
            changed = np.flatnonzero(responding.changed).tolist()
            flags = [version_flags(responding.versions[i], changed=True) for i in changed]
            headers["flags"][changed] |= np.array(flags, "<u4")
        return next_hashes

    # ---------------------------------------------------------------- notifications

    def _notifications(self, found: NextRecords) -> list[Notification]:
        """Return the events of commits."""
        records, responding = found.records, found.responding
        rows = [records.batch.row(i) for i in records.at]
        position = {j: k for k, j in enumerate(found.order)}
        pending = PendingCommits(
            [row.applied for row in rows],
            self._served.inputs,
            found.output.arrays,
            found.output.steps,
            found.output.state_ids,
            [self._served.version] * len(rows) if responding is None else responding.versions,
            () if found.beside is None else self._candidates(found.beside, records),
        )
        return [one._replace(row=position[one.row]) for one in self._publisher.notifications(pending)]

    def _candidates(self, beside: JoinedRun, records: Records) -> list[CandidateOutputs | None]:
        """Return what the last of joined versions computed for each row; None: it failed."""
        computed, has_failed = beside.tried
        outputs, version = select_returned(records.batch.keep, computed), self._served.parts[-1].version
        return [
            None if failed else CandidateOutputs(version, {name: array[i] for name, array in outputs.items()})
            for i, failed in enumerate(has_failed)
        ]

    # ---------------------------------------------------------------- results

    def _without_conflicts(
        self, found: NextRecords, results: CommitResults
    ) -> tuple[NextRecords, list[QueuedStep], list[int]]:
        """Return the records that were applied, the rows to be attempted again, and the indices of the former."""
        records = found.records
        not_applied = {found.order[k]: result for k, result in results.not_applied.items()}
        headers = read_headers([found.commits[0].record]) if found.one is not None else records.headers
        rows = [(records.batch.row(records.at[j]), result, headers[j]) for j, result in not_applied.items()]
        remaining = [row for row, result, header in rows if self._handle_conflict(row, result, header)]
        self._observer.conflicts(len(remaining))
        applied = [j for j in range(len(records.at)) if j not in not_applied]
        return found.select(applied), remaining, applied

    def _cache_committed(self, found: NextRecords, results: CommitResults) -> None:
        """Cache the committed records, and report those of joined versions."""
        records, beside, at = found.records, found.beside, results.expiry_set_at
        batch = records.batch
        if found.one is not None:
            one = found.one if at is None else found.one._replace(expiry_set_at=at)
            self._cache.put_one(found.names[0], one)
            if one.sources and at is not None:
                self._source_ids.renew_soon([source.digest for source in one.sources])
            return
        names = found.names
        moving: Sequence[int] = ()
        if beside is not None:
            moving = self._committed(self._served, beside, records.states, found.followed)
        if batch.lifecycle in ENDS:
            for name in names:
                self._cache.drop(name)
            return
        expiry_set_at = records.expiry_set_at if at is None else at
        self._cache.put(names, records.headers, records.states, expiry_set_at, records.sources)
        if records.sources is not None and at is not None:
            self._source_ids.renew_soon(digests_in(records.sources))
        for i in moving:
            self._cache.drop(names[i])

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
