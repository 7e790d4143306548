"""`DryRunPipeline`: batches that are looked at, decided and run like all others, and commit nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.engine.packing import select_returned
from service.engine.stepping.pipeline import BatchPipeline
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import EMPTY_SLOT
from service.types import BatchOutput, Prediction


class DryRunPipeline(BatchPipeline):
    """Answers what steps would answer. A stream that is missing is peeked at from its initial state.

    Every row reads its stream: what a worker remembers may be old, and no commit would notice.
    """

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        await self._loader.load_rows(rows, deadline, exact=True)  # no commit will notice what is no record
        rows = [row for row in rows if self._decide_row(row)]
        if not rows:
            return []
        blank = np.full(len(rows), EMPTY_SLOT)
        heads, states = self._cache.headers(blank), self._cache.states(blank)
        self._scatter_loaded(rows, heads, states)
        length, keep = rows[0].timestep.length, rows[0].timestep.keep
        ran = await self._runner.run(self._stack_inputs(rows), states)
        for at, error in ran.rejected.items():
            self._replies.reply(rows[at], error)
        good = rows if ran.rows is None else [rows[at] for at in ran.rows]
        made = BatchOutput(
            select_returned(keep, ran.outputs),
            [length + (0 if row.record is None else row.record.step) for row in good],
            [b"" if row.record is None else row.record.history_hash for row in good],
        )
        for at, row in enumerate(good):
            self._replies.reply(row, Prediction(made, at))
        return []
