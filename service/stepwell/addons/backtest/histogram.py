"""Distributions of differences over logarithmic bins: over all numbers, and over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepwell_export.runtime.manifest import Array

_LOWEST, _HIGHEST, _PER_DECADE = -12, 9, 24  # neighbouring bins differ by 10 %
_EDGES = np.logspace(_LOWEST, _HIGHEST, (_HIGHEST - _LOWEST) * _PER_DECADE + 1)
N_BINS = len(_EDGES) + 1
"""The first bin has zero and all that is smaller than 1e-12, the last one what is larger than 1e9."""

_MOST_TIMES = 128


def bins_of(differences: Array) -> Array:
    """Return the bin of each difference; one that is not finite is in the last bin."""
    return np.searchsorted(_EDGES, differences, side="right")


def quantile(counts: Array, part: float) -> float | None:
    """Return a quantile of a histogram to 10 %; 0 for the first bin, None if it is empty.

    Args:
        counts: `(N_BINS,)`.
        part: From 0 to 1.
    """
    total = int(counts.sum())
    if not total:
        return None
    found = int(np.searchsorted(np.cumsum(counts), max(1, np.ceil(part * total))))
    return 0.0 if found == 0 else float(_EDGES[min(found, len(_EDGES) - 1)])


@dataclass(frozen=True, slots=True)
class StepSpan:
    """The differences of consecutive steps.

    Attributes:
        first: The first step.
        last: The last step.
        timesteps: Timesteps of all streams.
        p50: Half of the timesteps differ by at most this, to 10 %.
        p90: As p50, 90 %.
        largest: The largest difference.
    """

    first: int
    last: int
    timesteps: int
    p50: float
    p90: float
    largest: float


class OverTime:
    """Differences by step, at most 128 spans of equally many steps; their length doubles as steps grow."""

    def __init__(self) -> None:
        self._length = 1
        self._counts = np.zeros((_MOST_TIMES, N_BINS), np.int64)
        self._largest = np.zeros(_MOST_TIMES)

    def add(self, steps: Array, differences: Array) -> None:
        """Add timesteps.

        Args:
            steps: The step of each, from 1.
            differences: The largest difference of each timestep, of the same shape.
        """
        while int(steps.max()) > _MOST_TIMES * self._length:
            self._double()
        spans = (steps.ravel() - 1) // self._length
        cells = spans * N_BINS + bins_of(differences.ravel())
        self._counts += np.bincount(cells, minlength=self._counts.size).reshape(self._counts.shape)
        np.maximum.at(self._largest, spans, differences.ravel())

    def spans(self) -> list[StepSpan]:
        """Return the spans in which there are timesteps."""
        return [
            StepSpan(
                n * self._length + 1,
                (n + 1) * self._length,
                int(counts.sum()),
                min(quantile(counts, 0.5) or 0.0, float(self._largest[n])),
                min(quantile(counts, 0.9) or 0.0, float(self._largest[n])),
                float(self._largest[n]),
            )
            for n, counts in enumerate(self._counts)
            if counts.any()
        ]

    def _double(self) -> None:
        self._length *= 2
        counts, largest = np.zeros_like(self._counts), np.zeros_like(self._largest)
        half = _MOST_TIMES // 2
        counts[:half] = self._counts[0::2] + self._counts[1::2]
        largest[:half] = np.maximum(self._largest[0::2], self._largest[1::2])
        self._counts, self._largest = counts, largest
