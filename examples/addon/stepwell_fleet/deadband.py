"""The stage `Deadband`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stepwell import extend


@dataclass(frozen=True, eq=False)
class Deadband(extend.Stage):
    """Returns the last number that it has kept, which is 0 at first, until a new one differs by more than `width`."""

    width: float

    def reference(self, values: NDArray[Any]) -> NDArray[Any]:
        kept = np.zeros_like(values)
        last = kept[:, 0]
        for t in range(values.shape[1]):
            last = np.where(np.abs(values[:, t] - last) > self.width, values[:, t], last)
            kept[:, t] = last
        return kept

    def emit(self, graph: extend.GraphBuilder, x: str, row: tuple[int, ...]) -> str:
        state = graph.state("Deadband.last", row)
        last = graph.cast(state.input, "float64")
        change = graph.op("Abs", graph.op("Sub", x, last))
        kept = graph.op("Where", graph.op("Greater", change, graph.constant(self.width, "float64")), x, last)
        graph.next_state(state, graph.cast(kept, "float32"))
        return kept
