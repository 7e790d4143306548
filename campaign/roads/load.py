"""`Load`: the messages of many streams, interleaved, and the predictions that in-process onnxruntime gives for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from campaign.roads.road import Sent
from stepwell_export.runtime.step_model import StepModel

_STREAMS_AT_ONCE = 256
_LARGEST = 1 << 62


class Load:
    """Random inputs of many streams, each with equally many timesteps.

    Attributes:
        names: The streams' ids.
        xs: The inputs, `(streams, steps)` int64.
    """

    def __init__(self, rng: np.random.Generator, prefix: str, n_streams: int, n_steps: int) -> None:
        """Draw the inputs.

        Args:
            rng: Draws all random choices.
            prefix: Prefix of the streams' ids.
            n_streams: The number of streams.
            n_steps: The timesteps of each.
        """
        self.names = [f"{prefix}{i}" for i in range(n_streams)]
        self.xs = rng.integers(-_LARGEST, _LARGEST, (n_streams, n_steps), np.int64)
        self._order = rng.permutation(np.repeat(np.arange(n_streams), n_steps))

    def __len__(self) -> int:
        return int(self.xs.size)

    def messages(self) -> Iterator[Sent]:
        """Yield all messages; those of a stream are in order, and the streams are interleaved at random."""
        at = [0] * len(self.names)
        for code in self._order.tolist():
            name, t = self.names[code], at[code]
            body = {"stream": name, "n": t + 1, "x": [int(self.xs[code, t])]}
            yield Sent(name, msgspec.json.encode(body))
            at[code] += 1

    def expected(self, model: Path) -> npt.NDArray[np.int64]:
        """Return the predictions of onnxruntime in this process, `(streams, steps)`."""
        return fold_of(model, self.xs)


def fold_of(model: Path, xs: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return the predictions of a step graph for streams that begin at its initial state, `(streams, steps)`."""
    graph = StepModel(model)
    found = np.empty(xs.shape, np.int64)
    for start in range(0, len(xs), _STREAMS_AT_ONCE):
        part = xs[start : start + _STREAMS_AT_ONCE, :, np.newaxis]
        outputs, _ = graph.chunk({"x": part}, graph.initial_states(len(part)))
        found[start : start + _STREAMS_AT_ONCE] = outputs["y"][..., 0]
    return found
