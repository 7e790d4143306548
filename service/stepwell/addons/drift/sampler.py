"""`BatchSampler`: collects references to the arrays of some committed batches, to be counted later."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from stepwell_export.runtime.manifest import Array

MAX_TIMESTEPS: Final = 2048
"""Timesteps of one model version that are collected between two calls of `drain`, about; more are sampled."""

_MAX_OBSERVED: Final = (
    32_768  # numbers to be counted: about 5 ms of CPU; a model with many features has fewer timesteps
)
_MAX_HELD: Final = 1_048_576  # numbers of whole rows, whose memory is held until then
_NEVER: Final = 1 << 60


class Collected(NamedTuple):
    """A committed batch.

    Attributes:
        names: The keys of the streams' records.
        inputs: `(rows, T, *row)` by input.
        outputs: `(rows, T', *row)` by output; T' is smaller if only some predictions are returned.
    """

    names: Sequence[str]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class BatchSampler:
    """Collects about every n-th committed batch; n follows the load, so that the cost has a limit.

    n is random for each batch, so that no stream that steps in the same rhythm is always or never chosen.
    """

    __slots__ = ("_batches", "_every", "_left", "_max_timesteps", "_timesteps")

    def __init__(self, n_features: int, row_values: int) -> None:
        """Collect from the next batch on.

        Args:
            n_features: Observed numbers of one timestep.
            row_values: All numbers of its inputs and outputs.
        """
        limits = (MAX_TIMESTEPS, _MAX_OBSERVED // max(1, n_features), _MAX_HELD // max(1, row_values))
        self._max_timesteps = max(1, min(limits))
        self._batches: list[Collected] = []
        self._timesteps = 0
        self._every = 1.0
        self._left = 1

    def add(self, names: Sequence[str], inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Collect a batch that was committed, or skip it; its arrays must not change afterwards."""
        self._left -= 1
        if self._left > 0:
            return
        self._batches.append(Collected(names, inputs, outputs))
        rows, length = next(iter(inputs.values())).shape[:2]
        self._timesteps += rows * length
        if self._timesteps >= 2 * self._max_timesteps:
            self._left = _NEVER
        elif self._every > 1:
            self._left = random.randrange(1, round(2 * self._every))  # noqa: S311 - no secret; its mean is `every`
        else:
            self._left = 1

    def drain(self) -> tuple[list[Collected], int]:
        """Return the batches that were collected since the last call, and the most timesteps to count of them."""
        batches, timesteps, was_full = self._batches, self._timesteps, self._left > _NEVER // 2
        wanted = self._every * timesteps / self._max_timesteps
        self._every = max(1.0, 2 * wanted if was_full else wanted)
        self._batches, self._timesteps, self._left = [], 0, 1
        return batches, self._max_timesteps
