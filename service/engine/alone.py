"""`Alone`: batches of timesteps that belong to no stream, for models without state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.engine.pending import Pending
from service.engine.rounds import Rounds
from service.engine.types import Made, Prediction
from service.store.record import NO_CHAIN


class Alone(Rounds):
    """Answers timesteps of no stream: nothing is looked up, nothing is kept."""

    async def _round(self, rows: Sequence[Pending], deadline: float) -> Sequence[Pending]:
        nothing = np.empty((len(rows), self._model.state_bytes), np.uint8)
        ran = await self._runner.run(self._inputs_of(rows), nothing)
        for at, error in ran.refused.items():
            self._answer(rows[at], error)
        good = rows if ran.rows is None else [rows[at] for at in ran.rows]
        made = Made(ran.outputs, [0] * len(good), [NO_CHAIN] * len(good))
        for at, row in enumerate(good):
            self._answer(row, Prediction(made, at, version=self._served.version))
        if good:
            self._count_applied(good)
        return []
