"""`ColumnarPipeline`: batches processed in columns, and row by row as soon as one of their rows is unusual."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import numpy as np

from model_export.manifest import Array
from service.engine.packing import all_true, pack_outputs, select_returned
from service.engine.stepping.columnar_batch import ColumnarBatch
from service.engine.stepping.committer import CommittedRows
from service.engine.stepping.pipeline import BatchPipeline
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import EMPTY_SLOT
from service.store.commits import ColumnarCommits
from service.store.record import HEADER_BYTES
from service.store.record_arrays import decode_records, encode_records, guards
from service.types import BatchOutput


class ColumnarPipeline(BatchPipeline):
    """Processes a `ColumnarBatch` as a whole if every row applies for certain; any other batch row by row."""

    # What is left of a block comes round again as a list. Asking whether something is one is cheap, unlike whether it
    # is a `ColumnarBatch`.

    def _oldest_received(self, rows: Sequence[QueuedStep]) -> float:
        return super()._oldest_received(rows) if isinstance(rows, list) else cast("ColumnarBatch", rows).oldest_received

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        if isinstance(rows, list):
            return await super()._attempt(rows, deadline)
        return await self._process_columnar(cast("ColumnarBatch", rows), deadline)

    async def _process_columnar(self, block: ColumnarBatch, deadline: float) -> Sequence[QueuedStep]:
        """Take a block whose records are all here, or read, and surely what it follows; return what is left to do."""
        names, served = block.names, self._served
        slots = self._cache.slots_for(names)
        heads, states, refreshed = (
            self._cache.headers(slots),
            self._cache.states(slots),
            self._cache.expiry_set_at(slots),
        )
        sure = block.matches_expected_position(heads)
        if block.may_match_missing:
            sure &= slots != EMPTY_SLOT  # where nothing is cached, the header is that of a stream without a step
        unsure: list[int] = [] if all_true(sure) else np.flatnonzero(~sure).tolist()
        if unsure:
            read = None if block.has_first_step else await self._load_columnar(block, unsure, deadline)
            if read is None:
                return list(block)
            heads[unsure], states[unsure], refreshed[unsure] = *read, -np.inf
            if not block.matches_expected_position(heads).all():
                return list(block)  # it is decided row by row, on what the store has at that time
        self._observer.cache_lookup(len(names) - len(unsure), len(unsure))
        ran = await self._runner.run(block.inputs(self._runner.inputs), states)
        if ran.rows is not None or self._interests.has_interest(
            served.name
        ):  # asked at the last moment: none may be missed
            return await self._commit_finite_rows(list(block), heads, refreshed, ran, deadline)
        outputs, states = select_returned(block.keep, ran.outputs), ran.states
        packed = pack_outputs(served.manifest.answered, outputs, len(names))
        commits = ColumnarCommits(names, HEADER_BYTES + packed.shape[1] + states.shape[1])
        commits.guards[:] = guards(heads)
        chains = self._committer.advance_headers(block.op_ids, block.length, heads)
        encode_records(commits.records, heads, packed, states)
        began = time.perf_counter()
        answers = await self._store.commit(commits, deadline=deadline, expiry_set_at=float(refreshed.min()))
        self._observer.store_latency("commit", time.perf_counter() - began)
        moved = CommittedRows(names, heads, states, refreshed, outputs, chains)
        if answers.not_applied:
            return self._committer.handle_results(list(block), moved, [], answers)
        self._committer.cache_committed(moved, answers)
        block.reply(BatchOutput(outputs, heads["step"].tolist(), chains), served.version)
        self._replies.on_answered(len(names), len(names) * block.length * served.timestep_bytes)
        self._observer.replied(served.name, block.latencies(self._time()))
        for transport, rows in block.rows_by_transport.items():
            self._observer.steps_applied(served.name, transport, rows * block.length)
        return []

    async def _load_columnar(
        self, block: ColumnarBatch, places: Sequence[int], deadline: float
    ) -> tuple[Array, Array] | None:
        """Return headers and states of some records from the store; None: one is not what one goes on from."""
        began = time.perf_counter()
        found = await self._store.load_with_errors([block.names[at] for at in places], deadline=deadline)
        self._observer.store_latency("load", time.perf_counter() - began)
        return decode_records(found, self._served.fingerprint, self._model.state_bytes)
