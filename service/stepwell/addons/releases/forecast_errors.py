"""Errors of two versions against the truth: how far each was from what came after its predictions.

A release and a backtest use the same functions, so that their figures are the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.truth import Truth

_T95: Final = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
_Z95: Final = 1.959964

N, STREAMS, CURRENT, CANDIDATE, CURRENT_2, CANDIDATE_2, PRODUCT = range(7)
"""The columns of sums, `(labels, 7)` float64: truths; streams; the absolute errors of the current version and of the
candidate; and over the streams, the sum of the squares and of the product of a stream's own two sums."""

SUMS: Final = 7
"""How many sums a label has."""


class ErrorFigures(NamedTuple):
    """How far both versions were from the truth in one number of an output.

    Attributes:
        current: The mean absolute error of the current version; None: there was no truth yet.
        candidate: That of the candidate.
        ratio: The candidate's as a multiple of the other one; None: that is 0.
        low: The lower end of the 95 % interval of the ratio over streams; None: there are fewer than two streams.
        high: The upper end.
        n: Truths that both were compared with.
    """

    current: float | None
    candidate: float | None
    ratio: float | None
    low: float | None
    high: float | None
    n: int


def figures(sums: Array) -> ErrorFigures:
    """Return the figures of one label from its sums, `(7,)`.

    The ratio is that of the sums over all streams. Its interval is that of the logarithm of a ratio of means over
    independent streams, with Student's t for as many streams as there are.

    Source: W. G. Cochran, Sampling Techniques, 3rd edition, section 6.4.
    """
    n, streams = round(float(sums[N])), round(float(sums[STREAMS]))
    if not n:
        return ErrorFigures(None, None, None, None, None, 0)
    current, candidate = float(sums[CURRENT]), float(sums[CANDIDATE])
    ratio = candidate / current if current > 0 else None
    low = high = None
    if ratio is not None and streams > 1:
        squares = float(sums[CANDIDATE_2] - 2 * ratio * sums[PRODUCT] + ratio * ratio * sums[CURRENT_2])
        error = math.sqrt(max(squares, 0.0) * streams / (streams - 1)) / current
        spread = student_95(streams - 1) * error / ratio if ratio > 0 else 0.0
        low, high = ratio * math.exp(-min(spread, 700.0)), ratio * math.exp(min(spread, 700.0))
    return ErrorFigures(current / n, candidate / n, ratio, low, high, n)


def student_95(df: int) -> float:
    """Return the two-sided 95 % quantile of Student's t distribution, to 1e-3.

    Source: Abramowitz and Stegun, 26.7.5.
    """
    if df <= len(_T95):
        return _T95[df - 1]
    z = _Z95
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + math.fsum(term / df ** float(k + 1) for k, term in enumerate(terms))


class StreamErrors:
    """The errors of one output, of streams in numbered slots.

    Args:
        truth: Where the truth is from.
        slots: How many streams there are; `grow` adds some.
    """

    def __init__(self, truth: Truth, slots: int = 0) -> None:
        self.truth = truth
        self._pending = np.zeros((0, truth.last, truth.numbers, 2))
        self._sums = np.zeros((0, len(truth.labels), 3))
        self._slots = slots

    def grow(self, slots: int) -> None:
        """Have at least so many slots."""
        self._slots = max(self._slots, slots)

    def forget(self, slots: Array) -> None:
        """Drop all that is known of streams."""
        slots = slots[slots < len(self._sums)]
        self._pending[slots], self._sums[slots] = np.nan, 0

    def skip(self, slots: Array, timesteps: Array) -> None:
        """Go on after timesteps that were not given: their predictions, and what they show, are not judged.

        Args:
            slots: The streams, `(rows,)`, each once.
            timesteps: How many, `(rows,)`; below 0: what comes does not belong to any prediction before.
        """
        known = slots < len(self._sums)
        slots, timesteps = slots[known], timesteps[known]
        last = self.truth.last
        at = np.arange(last) + np.where(timesteps < 0, last, timesteps)[:, None]
        kept = self._pending[slots[:, None], np.minimum(at, max(last - 1, 0))] if last else self._pending[slots]
        kept[at >= last] = np.nan
        self._pending[slots] = kept

    def add(self, slots: Array, inputs: Mapping[str, Array], current: Array, candidate: Array) -> Array:
        """Consume timesteps that follow those before, and return what they add to the sums, `(labels, SUMS)`.

        Args:
            slots: The streams, `(rows,)`, each once.
            inputs: `(rows, T, *row)` by name.
            current: The predictions of the current version, `(rows, T, *row)`; NaN: not to be judged.
            candidate: Those of the candidate.
        """
        rows, length = current.shape[:2]
        predicted = np.stack([current.reshape(rows, length, -1), candidate.reshape(rows, length, -1)], -1)
        predicted = predicted.astype(np.float64)
        self._allocate()
        joined = np.concatenate([self._pending[slots], predicted], axis=1)
        self._pending[slots] = joined[:, length:]
        errors = np.abs(self.truth.due(joined) - self.truth.read(inputs)[..., None])
        known = np.isfinite(errors).all(axis=-1)
        errors = np.where(known[..., None], errors, 0.0)
        added = np.concatenate([known.sum(axis=1)[..., None], errors.sum(axis=1)], axis=-1)
        added = added.reshape(rows, len(self.truth.labels), -1, 3).sum(axis=2)  # of a group, where it has one name
        before = self._sums[slots]
        after = before + added
        self._sums[slots] = after
        columns = [added[..., 0], (before[..., 0] == 0) & (after[..., 0] > 0), added[..., 1], added[..., 2]]
        columns += [
            after[..., i] * after[..., j] - before[..., i] * before[..., j] for i, j in ((1, 1), (2, 2), (1, 2))
        ]
        return np.stack([column.sum(axis=0) for column in columns], axis=-1)

    def _allocate(self) -> None:
        if len(self._sums) >= self._slots:
            return
        more = max(self._slots, 2 * len(self._sums)) - len(self._sums)
        self._pending = np.concatenate([self._pending, np.full((more, *self._pending.shape[1:]), np.nan)])
        self._sums = np.concatenate([self._sums, np.zeros((more, *self._sums.shape[1:]))])
