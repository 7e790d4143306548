"""`StatelessPipeline`: batches of timesteps that belong to no stream, for models without state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.engine.stepping.pipeline import BatchPipeline
from service.engine.stepping.queued import QueuedStep
from service.store.record import NO_HISTORY
from service.types import BatchOutput, Prediction


class StatelessPipeline(BatchPipeline):
    """Answers timesteps of no stream: nothing is looked up, nothing is kept."""

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        nothing = np.empty((len(rows), self._model.state_bytes), np.uint8)
        ran = await self._runner.run(self._stack_inputs(rows), nothing)
        for at, error in ran.rejected.items():
            self._replies.reply(rows[at], error)
        good = rows if ran.rows is None else [rows[at] for at in ran.rows]
        made = BatchOutput(ran.outputs, [0] * len(good), [NO_HISTORY] * len(good))
        for at, row in enumerate(good):
            self._replies.reply(row, Prediction(made, at, version=self._served.version))
        if good:
            self._replies.count_applied(good)
        return []
