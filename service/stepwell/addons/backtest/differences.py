"""`OutputDifferences`: how far two models differ in one output, in all, per stream and over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stepwell.addons.backtest.histogram import N_BINS, OverTime, bins_of, quantile
from stepwell_export.runtime.manifest import Array


class OutputDifferences:
    """The differences of one output.

    Two numbers that are not finite differ by nothing if they are equal or both NaN, else by infinity.

    Attributes:
        name: The output.
        over_time: The differences by step.
        timesteps: Timesteps that were compared.
        non_finite: Timesteps in which only one of the models gave finite numbers.
        disagree: Timesteps whose largest number is at another index; None for an output of one number.
        largest: The largest difference, and the code of the stream and the step where it is.
        labels: The same of each number that has a label.
    """

    def __init__(self, name: str, row_size: int, labels: Sequence[str] = ()) -> None:
        self.name = name
        self.labels = {label: OutputDifferences(f"{name}[{label}]", 1) for label in labels}
        self.over_time = OverTime()
        self.timesteps = 0
        self.non_finite = 0
        self.disagree: int | None = 0 if row_size > 1 else None
        self.largest: tuple[float, int, int] = (0.0, 0, 1)
        self._counts = np.zeros(N_BINS, np.int64)
        self._sum, self._n_numbers = 0.0, 0
        self._largest_of = np.zeros(0)

    def add(self, codes: Array, steps: Array, ours: Array, theirs: Array) -> None:
        """Add a chunk of each of some streams.

        Args:
            codes: The streams, `(N,)`.
            steps: The step of each timestep, `(N, T)`.
            ours: One model's output, `(N, T, *row)`.
            theirs: The other's.
        """
        shape = (*steps.shape, -1)
        a, b = ours.reshape(shape).astype(np.float64), theirs.reshape(shape).astype(np.float64)
        with np.errstate(invalid="ignore"):
            difference = np.abs(a - b)
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            difference[~finite] = np.where(same, 0.0, np.inf)[~finite]
            self.non_finite += int((~same & ~finite).any(axis=-1).sum())
        if self.disagree is not None:
            self.disagree += int((_place(a) != _place(b)).sum())
        self.timesteps += steps.size
        self._counts += np.bincount(bins_of(difference.ravel()), minlength=N_BINS)
        known = difference[np.isfinite(difference)]
        self._sum, self._n_numbers = self._sum + float(known.sum()), self._n_numbers + known.size
        of_timestep = difference.max(axis=-1)
        self.over_time.add(steps, of_timestep)
        at = np.unravel_index(np.argmax(of_timestep), of_timestep.shape)
        if of_timestep[at] > self.largest[0]:
            self.largest = float(of_timestep[at]), int(codes[at[0]]), int(steps[at])
        self._add_streams(codes, of_timestep.max(axis=1))
        for i, each in enumerate(self.labels.values()):
            each.add(codes, steps, a[..., i], b[..., i])

    @property
    def mean(self) -> float:
        """The mean of the finite differences of all numbers."""
        return self._sum / self._n_numbers if self._n_numbers else 0.0

    @property
    def p99(self) -> float:
        """99 % of all numbers differ by at most this, to 10 %."""
        return min(quantile(self._counts, 0.99) or 0.0, self.largest[0])

    def of_streams(self, n_streams: int) -> Array:
        """Return the largest difference of each stream by its code, `(n_streams,)`."""
        return np.pad(self._largest_of, (0, max(0, n_streams - len(self._largest_of))))

    def _add_streams(self, codes: Array, largest: Array) -> None:
        needed = int(codes.max()) + 1
        if needed > len(self._largest_of):
            self._largest_of = np.pad(
                self._largest_of, (0, max(needed, 2 * len(self._largest_of)) - len(self._largest_of))
            )
        self._largest_of[codes] = np.maximum(self._largest_of[codes], largest)


def _place(values: Array) -> Array:
    """Return the index of the largest number of each timestep; NaN is the smallest."""
    place: Array = np.where(np.isnan(values), -np.inf, values).argmax(axis=-1)
    return place
