"""`DryRunPipeline` and `StatelessPipeline`: batches that are run like all others, but not committed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell.engine.packing import select_returned
from stepwell.engine.stepping.pipeline import BatchPipeline
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.record_cache import EMPTY_SLOT
from stepwell.engine.stepping.responding import responding_versions
from stepwell.store.record import NO_HISTORY
from stepwell.types import BatchOutput, Prediction


class DryRunPipeline(BatchPipeline):
    """Returns what steps would return. A missing stream is peeked from its initial state.

    Every row loads its record from the store: a cached record may be stale, and no commit would detect it.
    """

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        await self._loader.load_rows(rows, deadline, exact=True)  # no commit would detect a value that is not a record
        rows = [row for row in rows if self._decide_row(row)]
        if not rows:
            return []
        empty = np.full(len(rows), EMPTY_SLOT)
        headers, states = self._cache.headers(empty), self._cache.states(empty)
        self._scatter_loaded(rows, headers, states)
        length, keep = rows[0].timestep.length, rows[0].timestep.keep
        run = await self._runner.run(self._stack_inputs(rows), states)
        finite = self._accepted(rows, run)
        output = BatchOutput(
            select_returned(keep, run.outputs),
            [length + (0 if row.record is None else row.record.step) for row in finite],
            [b"" if row.record is None else row.record.history_hash for row in finite],
        )
        if run.rows is not None:
            states = states[run.rows]
        responding = responding_versions(self._served, finite, states, run.states, run.beside)
        for i, row in enumerate(finite):
            version, has_changed = self._served.version, False
            if responding is not None:
                version, has_changed = responding.versions[i], responding.changed[i]
            self._replies.reply(row, Prediction(output, i, version=version, shows_version=has_changed))
        return []


class StatelessPipeline(BatchPipeline):
    """Runs timesteps of no stream: nothing is loaded, nothing is committed."""

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        no_states = np.empty((len(rows), self._model.state_bytes), np.uint8)
        run = await self._runner.run(self._stack_inputs(rows), no_states)
        finite = self._accepted(rows, run)
        output = BatchOutput(run.outputs, [0] * len(finite), [NO_HISTORY] * len(finite))
        for i, row in enumerate(finite):
            shows_version = row.timestep.source is not None
            self._replies.reply(row, Prediction(output, i, version=self._served.version, shows_version=shows_version))
        if finite:
            self._replies.count_applied(finite)
        return []
