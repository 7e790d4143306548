"""`MixedPipeline`: processes a columnar batch in which some streams take part in a trial and the others do not.

The streams outside the trial are on the old version, and in a pair the old version consumes the same timesteps. So it
runs once, for all rows, the candidate runs for the pairs, and all records are committed in one command.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from stepwell.engine.packing import all_true, pack_outputs, select_returned
from stepwell.engine.stepping.committer import BatchCommitter, CommittedRows, set_next
from stepwell.engine.stepping.record_cache import EMPTY_SLOT, RecordCache
from stepwell.engine.stepping.replies import Replies
from stepwell.engine.stepping.responding import is_uniform
from stepwell.engine.trials.plans import BatchPlans
from stepwell.models.paired import PairedModel
from stepwell.store.commits import ColumnarCommits, JoinedCommits
from stepwell.store.record import HEADER_BYTES, version_flags
from stepwell.store.record_arrays import HEADER_DTYPE, OPAQUE_HEADER, empty_sources, encode_records, guards
from stepwell.types import BatchOutput
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.stepping.columns.batch import ColumnarBatch
    from stepwell.engine.stepping.pipeline import PipelineDeps
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.engine.trials.comparison import Beside
    from stepwell.store.commits import CommitResults


class PairBatcher(Protocol):
    """What mixed batches need of the batcher of their pairs.

    Attributes:
        deps: The pair, and what its batches share.
        cache: Its cached records.
        n_lent: Mixed batches that use them; it is not closed meanwhile.
    """

    deps: PipelineDeps
    cache: RecordCache
    n_lent: int

    def requeue(self, queued: QueuedStep) -> None:
        """Queue a timestep."""
        ...


class _Records(NamedTuple):
    """The cached records of a mixed batch: those outside the trial first, then the pairs.

    Attributes:
        order: The index of each in the batch, `(rows,)`.
        others: The rows outside the trial, as a slice of `order`.
        pairs: The pairs, likewise.
        headers: Their headers, `(rows,)` of `HEADER_DTYPE`.
        expiry_set_at: When each record's expiry was set, `(rows,)` float64.
        states: The packed states of those outside the trial, `(others, bytes)` uint8.
        pair_states: The packed states of the pairs, `(pairs, bytes)` uint8.
        sources: The table of the positions of sources after the batch; None: there are none.
        section: The same as bytes of the records, `(rows, bytes)` uint8.
    """

    order: Array
    others: slice
    pairs: slice
    headers: Array
    expiry_set_at: Array
    states: Array
    pair_states: Array
    sources: Array | None
    section: Array | None


class _Part(NamedTuple):
    """The rows of a mixed batch that are outside the trial, or those that are pairs.

    Attributes:
        committer: What handles the results of their commits.
        rows: Their indices, as a slice of `_Records.order`.
        states: Their packed states after the run, `(rows, bytes)` uint8.
        beside: Of the pairs, what their run returned beside the predictions.
    """

    committer: BatchCommitter
    rows: slice
    states: Array
    beside: Beside | None = None


class MixedPipeline:
    """Processes batches of the streams of a version and of the pairs with this version as their old one.

    Attributes:
        pairs: The batcher of the pairs.
        n_joined: Number of pairs that have joined coalesced batches since the last batch was attempted.
    """

    def __init__(self, deps: PipelineDeps, pairs: PairBatcher) -> None:
        """Create it.

        Args:
            deps: What batches of the version share.
            pairs: The batcher of the pairs.
        """
        self.pairs = pairs
        self._deps, self._pair_deps = deps, pairs.deps
        self._replies = Replies(deps)
        self._committer = BatchCommitter(deps, self._replies)
        self._pair_committer = BatchCommitter(pairs.deps, Replies(pairs.deps))
        model = pairs.deps.served.step_model
        self._batch_plans = BatchPlans(deps.plans, deps.served.name, pairs.cache.clear)
        self.n_joined = 0
        self._is_ramp = isinstance(model, PairedModel) and model.mode == "ramp"

    def is_possible(self, timesteps: int) -> bool:
        """Whether a batch with so many timesteps of pairs may be mixed now.

        The candidate has to be so quick that it runs on the event loop: streams outside the trial do not wait for a
        slow one. Commits that are published are built row by row.
        """
        return (
            self._pair_deps.runner.is_short(timesteps)
            and self._deps.served.step_model.batched
            and not self._deps.interests.has_interest(self._deps.served.name)
        )

    def holds(self, row: QueuedStep) -> bool:
        """Whether the cached record of a row's stream is that of a pair."""
        return row.name in self.pairs.cache and row.timestep.version is None and not row.dry_run

    async def attempt(self, batch: ColumnarBatch, deadline: float) -> Sequence[QueuedStep] | None:
        """Process a batch if each row certainly applies to its cached record; else submit the pairs to their batcher.

        Returns:
            The rows that are still to be processed by the version; None: no cached record is that of a pair.
        """
        plan = self._batch_plans.started()
        self.pairs.n_lent += 1
        self.n_joined = 0
        names: list[str] = []
        try:
            slots = self._deps.cache.slots_for(batch.names)
            uncached = np.flatnonzero(slots == EMPTY_SLOT)
            names = [batch.names[i] for i in uncached.tolist()]
            pair_slots = self.pairs.cache.slots_for(names)
            if not pair_slots.any():
                return None
            if all_true(pair_slots != EMPTY_SLOT) and (records := self._records(batch, slots, uncached, pair_slots)):
                remaining = await self._process(batch, records, deadline)
                if remaining is not None:
                    return remaining
            rows = list(batch)
            self._submit_to_pair([rows[i] for i in uncached[pair_slots != EMPTY_SLOT].tolist()])
            return [row for row in rows if not row.answered]
        except BaseException:
            self._drop(names)
            raise
        finally:
            self.pairs.n_lent -= 1
            if self._batch_plans.is_outdated(plan):
                self._drop(names)  # the streams may have to move at their next step

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            self.pairs.cache.drop(name)

    def _submit_to_pair(self, rows: Sequence[QueuedStep]) -> None:
        """Submit rows to the pair's batcher; those whose request names a version are decided by that one."""
        for row in rows:
            if row.timestep.version is None and not row.answered:
                row.answered = self._replies.reroute(row, self._pair_deps.served.fingerprint)

    def _records(self, batch: ColumnarBatch, slots: Array, paired: Array, pair_slots: Array) -> _Records | None:
        """Return the records of a batch; None: the rows have to be decided one by one.

        Args:
            batch: The batch.
            slots: The slots in the version's cache, `(rows,)`; `EMPTY_SLOT` for the pairs.
            paired: The indices of the pairs in the batch, `(pairs,)`.
            pair_slots: Their slots in the pair's cache, `(pairs,)`.
        """
        if not self.is_possible(len(paired) * batch.length) or batch.names_with_version():
            return None
        cache, pair_cache = self._deps.cache, self.pairs.cache
        headers = cache.headers(slots)
        headers.view(OPAQUE_HEADER)[paired] = pair_cache.headers(pair_slots).view(OPAQUE_HEADER)
        pair_states = pair_cache.states(pair_slots)
        if not all_true(batch.matches_expected_position(headers)):
            return None
        if not is_uniform(self._pair_deps.served, pair_states, pair_states):
            return None  # the old version responds to some of them until the candidate has consumed its `warm_steps`
        others = np.flatnonzero(slots)
        order, own_slots = np.concatenate([others, paired]), slots[others]
        table, section = cache.sources(slots), None
        pair_table = pair_cache.sources(pair_slots)
        if batch.sources is not None or table is not None or pair_table is not None:
            table = empty_sources(len(slots)) if table is None else table
            table[paired] = empty_sources(1) if pair_table is None else pair_table
            if (advanced := batch.advance_sources(table)) is None:
                return None
            table, section = (array[order] for array in advanced)
        return _Records(
            order,
            slice(0, len(others)),
            slice(len(others), len(slots)),
            headers.view(OPAQUE_HEADER).take(order).view(HEADER_DTYPE),
            np.concatenate([cache.expiry_set_at(own_slots), pair_cache.expiry_set_at(pair_slots)]),
            cache.states(own_slots),
            pair_states,
            table,
            section,
        )

    async def _process(self, batch: ColumnarBatch, records: _Records, deadline: float) -> Sequence[QueuedStep] | None:
        """Run and commit a batch, and return the rows to be attempted again; None: nothing was committed."""
        deps, pair_deps, pairs = self._deps, self._pair_deps, records.pairs
        deps.observer.cache_lookup(len(batch), 0)
        inputs = {name: array[records.order] for name, array in batch.inputs(deps.runner.inputs).items()}
        old_states = records.pair_states[:, : records.states.shape[1]]
        run = await deps.runner.run(inputs, np.concatenate([records.states, old_states]))
        if run.rows is not None:
            return None
        pair_run = pair_deps.runner.run_beside(
            _rows_of(inputs, pairs), records.pair_states, _rows_of(run.outputs, pairs), run.states[pairs]
        )
        # Interest is checked after the run, as late as possible, so that no event is missed.
        is_usual = is_uniform(pair_deps.served, records.pair_states, pair_run.states)
        if not is_usual or deps.interests.has_interest(deps.served.name):
            return None
        predictions = run.outputs
        if self._is_ramp:
            predictions = {
                name: np.concatenate([array[records.others], pair_run.outputs[name]])
                for name, array in predictions.items()
            }
        outputs = select_returned(batch.keep, predictions)
        parts = [_Part(self._committer, records.others, run.states[records.others])] if len(records.states) else []
        parts.append(_Part(self._pair_committer, pairs, pair_run.states, pair_run.beside))
        committed, commits = self._next_records(batch, outputs, records, parts)
        self._pair_committer.check_artifacts()
        if batch.has_answered_row:
            return None
        batch.is_sent = True
        results = await self._committer.send(commits, float(records.expiry_set_at.min()), deadline)
        if results.not_applied:
            return self._handle_results(batch, records, parts, committed, results)
        for part, new_records in zip(parts, committed, strict=True):
            part.committer.cache_committed(new_records, results)
        self._reply(batch, outputs, records, committed)
        for rows, sampler in ((records.others, deps.sampler), (pairs, pair_deps.sampler)):
            if sampler is not None and not sampler.skips():
                names = [batch.names[i] for i in records.order[rows].tolist()]
                sampler.add(names, _rows_of(inputs, rows), _rows_of(outputs, rows))
        return []

    def _next_records(
        self, batch: ColumnarBatch, outputs: Mapping[str, Array], records: _Records, parts: Sequence[_Part]
    ) -> tuple[list[CommittedRows], JoinedCommits]:
        """Return the new records of each part, and their commits."""
        headers, section, order = records.headers, records.section, records.order.tolist()
        packed = pack_outputs(self._deps.served.manifest.answered, outputs, len(order))
        names, op_ids = [*map(batch.names.__getitem__, order)], [*map(batch.op_ids.__getitem__, order)]
        header_bytes = HEADER_BYTES if section is None else HEADER_BYTES + section.shape[1]
        columns = []
        for _, rows, states, _ in parts:
            commits = ColumnarCommits(names[rows], header_bytes + packed.shape[1] + states.shape[1])
            commits.guards[:] = guards(headers[rows])  # of the old headers
            columns.append(commits)
        before, hashes = headers["history_hash"].tolist(), list[bytes]()
        for committer, rows, _, _ in parts:
            hashes += committer.extend(before[rows], op_ids[rows])
        set_next(headers, op_ids, batch.length, hashes)
        if batch.sources is not None:
            headers["flags"][records.others] |= np.uint32(version_flags(self._deps.served.version))
            headers["flags"][records.pairs] |= np.uint32(version_flags(self._pair_deps.served.version))
        committed = []
        for (_, rows, states, beside), commits in zip(parts, columns, strict=True):
            own = headers[rows]
            encode_records(commits.records, own, packed[rows], states, None if section is None else section[rows])
            sources = None if records.sources is None else records.sources[rows]
            expiry_set_at, predictions = records.expiry_set_at[rows], _rows_of(outputs, rows)
            committed.append(
                CommittedRows(commits.names, own, states, expiry_set_at, predictions, hashes[rows], sources, beside)
            )
        return committed, JoinedCommits(columns)

    def _reply(
        self, batch: ColumnarBatch, outputs: Mapping[str, Array], records: _Records, committed: Sequence[CommittedRows]
    ) -> None:
        """Reply to all rows, in the order of the batch."""
        position = np.empty_like(records.order)
        position[records.order] = np.arange(len(position))
        at, hashes = position.tolist(), [*itertools.chain.from_iterable(rows.history_hashes for rows in committed)]
        steps = records.headers["step"].take(position).tolist()
        output = BatchOutput(_rows_of(outputs, position), steps, [*map(hashes.__getitem__, at)])
        versions = None
        if self._is_ramp:
            versions = [(self._deps if i < records.pairs.start else self._pair_deps).served.version for i in at]
        self._replies.reply_columnar(batch, output, versions)

    def _handle_results(
        self,
        batch: ColumnarBatch,
        records: _Records,
        parts: Sequence[_Part],
        committed: Sequence[CommittedRows],
        results: CommitResults,
    ) -> Sequence[QueuedStep]:
        """Reply to the rows that were applied, and return those that the version attempts again."""
        rows = list(batch)
        ordered = [rows[i] for i in records.order.tolist()]
        for part, own in zip(parts, committed, strict=True):
            found = results.part(part.rows.start, part.rows.stop)
            left = part.committer.handle_results(ordered[part.rows], own, [], found)
            if part.committer is self._pair_committer:
                self._submit_to_pair(left)
        return [row for row in rows if not row.answered]


def _rows_of(arrays: Mapping[str, Array], rows: Array | slice) -> dict[str, Array]:
    return {name: array[rows] for name, array in arrays.items()}
