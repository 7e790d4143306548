"""`ColumnarPipeline`: processes batches as columns, a single timestep as bytes, and unusual batches row by row."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import numpy as np

from stepwell.engine.packing import all_true, pack_outputs, select_returned
from stepwell.engine.stepping.columns.batch import ColumnarBatch
from stepwell.engine.stepping.committer import CommittedRows
from stepwell.engine.stepping.pipeline import BatchPipeline, PipelineDeps
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.record_cache import EMPTY_SLOT, CachedRecord
from stepwell.engine.stepping.responding import is_uniform
from stepwell.store.commits import ColumnarCommits, Commit
from stepwell.store.record import (
    GUARD_AT,
    HEADER_BYTES,
    SourcePosition,
    encode_next,
    header_of,
    history_hash_of,
    step_of,
)
from stepwell.store.record_arrays import (
    DecodedRecords,
    decode_records,
    empty_sources,
    encode_records,
    guards,
    read_headers,
    sources_in,
)
from stepwell.types import BatchOutput
from stepwell_export.runtime.manifest import Array


class ColumnarPipeline(BatchPipeline):
    """Processes a `ColumnarBatch` as a whole if every row certainly applies; any other batch row by row."""

    def __init__(self, deps: PipelineDeps) -> None:
        super().__init__(deps)
        self._sampler = deps.sampler

    # The rows that remain of a batch are attempted again as a list. `isinstance(rows, list)` is cheap, unlike a check
    # for `ColumnarBatch`, which is an abstract class.

    def _received(self, rows: Sequence[QueuedStep]) -> tuple[float, float]:
        if isinstance(rows, list):
            return super()._received(rows)
        batch = cast("ColumnarBatch", rows)
        return batch.oldest_received, batch.youngest_received

    def _is_sent(self, rows: Sequence[QueuedStep]) -> bool:
        return not isinstance(rows, list) and cast("ColumnarBatch", rows).is_sent

    def _source_ids_of(self, rows: Sequence[QueuedStep]) -> Sequence[str]:
        if isinstance(rows, list):
            return super()._source_ids_of(rows)
        sources = cast("ColumnarBatch", rows).sources
        return () if sources is None else sources.ids

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        if isinstance(rows, list):
            return await super()._attempt(rows, deadline)
        batch = cast("ColumnarBatch", rows)
        is_single = len(batch) == 1 and self._served.halves is None
        if is_single and (cached := self._cache.get_one(batch.names[0])) is not None:
            header, sources = cached.header, batch.sources_after(cached.sources)
            if sources is not None and batch.certainly_continues(step_of(header), history_hash_of(header)):
                return await self._process_single(batch, cached, sources, deadline)
        return await self._process_columnar(batch, deadline)

    async def _process_single(
        self, batch: ColumnarBatch, cached: CachedRecord, sources: tuple[SourcePosition, ...], deadline: float
    ) -> Sequence[QueuedStep]:
        """Process a single timestep that certainly applies to a cached record, as `_process_columnar` does.

        Only the model run uses arrays: for one row, a call of NumPy takes longer than the work in it.
        """
        names, served = batch.names, self._served
        header, state, expiry_set_at, sources_before = cached
        self._observer.cache_lookup(1, 0)
        inputs = batch.inputs(self._runner.inputs)
        run = await self._runner.run(inputs, state)
        # Interest is checked after the run, as late as possible, so that no event is missed.
        if run.rows is not None or self._interests.has_interest(served.name):
            headers = read_headers([header])
            expiry = np.array([expiry_set_at])
            [row] = batch
            row.cached_sources = sources_before
            return await self._commit_finite_rows([row], headers, state, expiry, run, deadline)
        outputs = b"".join([run.outputs[spec.name].tobytes() for spec in served.manifest.answered])
        answered_at, version = ((), 0) if batch.sources is None else (batch.sources.at[0].tolist(), served.version)
        updated_ms, new_state = int(time.time() * 1000), run.states.tobytes()
        record, step, history_hash = encode_next(
            header, batch.op_ids[0], updated_ms, outputs, new_state, sources, answered_at, version
        )
        results = await self._committer.send([Commit(names[0], header[GUARD_AT], record)], expiry_set_at, deadline)
        if 0 in results.not_applied:
            headers, expiries = read_headers([record]), np.array([expiry_set_at])
            committed = CommittedRows(names, headers, run.states, expiries, run.outputs, [history_hash])
            return self._committer.handle_results(list(batch), committed, [], results)
        new_expiry = expiry_set_at if results.expiry_set_at is None else results.expiry_set_at
        self._cache.put_one(names[0], CachedRecord(header_of(record), run.states, new_expiry, sources))
        if sources and results.expiry_set_at is not None:
            self._source_ids.renew_soon([source.digest for source in sources])
        self._replies.reply_columnar(batch, BatchOutput(run.outputs, [step], [history_hash]))
        if self._sampler is not None and not self._sampler.skips():
            self._sampler.add(names, inputs, run.outputs)
        return []

    async def _process_columnar(self, batch: ColumnarBatch, deadline: float) -> Sequence[QueuedStep]:
        """Process a batch if each record, cached or loaded, is at the position that its row expects.

        Returns the rows that are still to be processed.
        """
        names, served = batch.names, self._served
        slots = self._cache.slots_for(names)
        headers, states, expiry_set_at = (
            self._cache.headers(slots),
            self._cache.states(slots),
            self._cache.expiry_set_at(slots),
        )
        applies = batch.matches_expected_position(headers)
        if batch.may_match_missing:
            applies &= slots != EMPTY_SLOT  # the empty slot has the header of a stream without a step
        sources = self._cache.sources(slots)
        missed: list[int] = [] if all_true(applies) else np.flatnonzero(~applies).tolist()
        if missed:
            may_move = self._may_move([names[i] for i in missed])
            loaded = None if may_move or batch.has_first_step else await self._load_columnar(batch, missed, deadline)
            if loaded is None:
                return list(batch)
            headers[missed], states[missed], expiry_set_at[missed] = loaded.headers, loaded.states, -np.inf
            if sources is None and loaded.sources is not None:
                sources = empty_sources(len(names))
            if sources is not None:
                sources[missed] = empty_sources(1) if loaded.sources is None else loaded.sources
            if not batch.matches_expected_position(headers).all():
                return list(batch)  # decided row by row, with the records that the store has then
        before, section = sources, None
        if sources is not None or batch.sources is not None:
            advanced = batch.advance_sources(sources)
            if advanced is None:
                return list(batch)
            sources, section = advanced
        self._observer.cache_lookup(len(names) - len(missed), len(missed))
        inputs = batch.inputs(self._runner.inputs)
        run = await self._runner.run(inputs, states)
        # Interest is checked after the run, as late as possible, so that no event is missed.
        is_usual = run.rows is None and is_uniform(served, states, run.states)
        if not is_usual or self._interests.has_interest(served.name):
            return await self._commit_finite_rows(_rows(batch, before), headers, states, expiry_set_at, run, deadline)
        outputs, states = select_returned(batch.keep, run.outputs), run.states
        packed = pack_outputs(served.manifest.answered, outputs, len(names))
        header_bytes = HEADER_BYTES if section is None else HEADER_BYTES + section.shape[1]
        commits = ColumnarCommits(names, header_bytes + packed.shape[1] + states.shape[1])
        commits.guards[:] = guards(headers)  # of the old headers, which the next line overwrites
        version = 0 if batch.sources is None else served.version
        history_hashes = self._committer.advance_headers(batch.op_ids, batch.length, headers, version=version)
        encode_records(commits.records, headers, packed, states, section)
        if batch.has_answered_row:
            return [row for row in batch if not row.answered]
        batch.is_sent = True
        results = await self._committer.send(commits, float(expiry_set_at.min()), deadline)
        committed = CommittedRows(names, headers, states, expiry_set_at, outputs, history_hashes, sources, run.beside)
        if results.not_applied:
            return self._committer.handle_results(list(batch), committed, [], results)
        self._committer.cache_committed(committed, results)
        self._replies.reply_columnar(batch, BatchOutput(outputs, headers["step"].tolist(), history_hashes))
        if self._sampler is not None and not self._sampler.skips():
            self._sampler.add(names, inputs, outputs)
        return []

    def _may_move(self, names: Sequence[str]) -> bool:
        """Whether one of these streams may be moved by a release; False is certain."""
        if self._served.halves is not None:
            return True
        plan, fingerprint = self._plans.plan(self._served.name), self._served.fingerprint
        return plan is not None and any(plan.may_move(fingerprint, name) for name in names)

    async def _load_columnar(
        self, batch: ColumnarBatch, indices: Sequence[int], deadline: float
    ) -> DecodedRecords | None:
        """Return some records from the store; None: a step cannot continue from one of them in columns."""
        started = time.perf_counter()
        stored = await self._store.load_with_errors([batch.names[i] for i in indices], deadline=deadline)
        self._observer.store_latency("load", time.perf_counter() - started)
        return decode_records(stored, self._served.fingerprint, self._model.state_bytes)


def _rows(batch: ColumnarBatch, sources: Array | None) -> list[QueuedStep]:
    """Return the rows of a batch, with the positions of sources that their cached records have."""
    rows = list(batch)
    if sources is not None:
        for row, cached in zip(rows, sources, strict=True):
            row.cached_sources = sources_in(cached)
    return rows
