"""`StatelessPipeline`: batches of timesteps that belong to no stream, for models without state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.engine.stepping.pipeline import BatchPipeline
from service.engine.stepping.queued import QueuedStep
from service.store.record import NO_HISTORY
from service.types import BatchOutput, Prediction


class StatelessPipeline(BatchPipeline):
    """Runs timesteps of no stream: nothing is loaded, nothing is committed."""

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        no_states = np.empty((len(rows), self._model.state_bytes), np.uint8)
        run = await self._runner.run(self._stack_inputs(rows), no_states)
        for i, error in run.rejected.items():
            self._replies.reply(rows[i], error)
        finite = rows if run.rows is None else [rows[i] for i in run.rows]
        output = BatchOutput(run.outputs, [0] * len(finite), [NO_HISTORY] * len(finite))
        for i, row in enumerate(finite):
            self._replies.reply(row, Prediction(output, i, version=self._served.version))
        if finite:
            self._replies.count_applied(finite)
        return []
