"""`Peeks`: batches that are looked at, decided and run like all others, and commit nothing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from service.engine.batch import kept
from service.engine.cache import MISSING
from service.engine.pending import Pending
from service.engine.rounds import Rounds
from service.engine.types import Made, Prediction


class Peeks(Rounds):
    """Answers what steps would answer. A stream that is missing is peeked at from its initial state.

    Every row reads its stream: what a worker remembers may be old, and no commit would notice.
    """

    async def _round(self, rows: Sequence[Pending], deadline: float) -> Sequence[Pending]:
        await self._load(rows, deadline, exact=True)  # no commit will notice what is no record
        rows = [row for row in rows if self._may_run(row)]
        if not rows:
            return []
        blank = np.full(len(rows), MISSING)
        heads, states = self._cache.heads(blank), self._cache.states(blank)
        self._fill_in(rows, heads, states)
        length, keep = rows[0].timestep.length, rows[0].timestep.keep
        ran = await self._runner.run(self._inputs_of(rows), states)
        for at, error in ran.refused.items():
            self._answer(rows[at], error)
        good = rows if ran.rows is None else [rows[at] for at in ran.rows]
        made = Made(
            kept(keep, ran.outputs),
            [length + (0 if row.view is None else row.view.step) for row in good],
            [b"" if row.view is None else row.view.chain for row in good],
        )
        for at, row in enumerate(good):
            self._answer(row, Prediction(made, at))
        return []
