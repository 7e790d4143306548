"""`TrackedStreams`: the mean bin of some streams, by which the tenth that deviates most is found from the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.psi import deviating_tenth

MAX_STREAMS: Final = 256
"""Streams of a model version that a worker tracks."""

_HALVED_AT: Final = 256.0  # values of a stream after which they are halved, so that newer values count more
_FORGOTTEN_AFTER: Final = 300  # rounds without a value, after which a stream may be replaced


class TrackedStreams:
    """Tracks the first streams that are seen; a stream that is no longer seen is replaced by another."""

    def __init__(self, moments: Array) -> None:
        """Track no stream yet.

        Args:
            moments: Mean and standard deviation of the bins of the reference, `(2, features)`.
        """
        self._moments = moments
        self._slots: dict[str, int] = {}
        self._seen = np.zeros(MAX_STREAMS, np.int64)
        self._round = 0
        self._sums = np.zeros((MAX_STREAMS, moments.shape[1]))
        self._counts = np.zeros((MAX_STREAMS, moments.shape[1]))

    def slots_of(self, names: Sequence[str]) -> Array:
        """Return the place of each stream, `(streams,)` int64; -1: it is not tracked. New streams get a free place."""
        if len(self._slots) < MAX_STREAMS or self._forget():
            for name in names:
                if name not in self._slots and len(self._slots) < MAX_STREAMS:
                    self._slots[name] = self._free_slot()
        slots = np.array([self._slots.get(name, -1) for name in names], np.int64)
        self._seen[slots[slots >= 0]] = self._round
        return slots

    def deviating(self) -> Array:
        """Return which places have the tenth of the streams that deviates most, `(MAX_STREAMS, features)` bool."""
        self._round += 1
        return deviating_tenth(self._sums, self._counts, self._moments)

    def add(self, slots: Array, bins: Array, columns: slice) -> None:
        """Add values to the means of their streams.

        Args:
            slots: The place of each value's stream, `(n,)`; none is -1.
            bins: The bins of the values, `(n, features of these columns)`; -1: missing.
            columns: The features.
        """
        n_columns = bins.shape[1]
        flat = slots[:, None] * n_columns + np.arange(n_columns)
        size = MAX_STREAMS * n_columns
        is_present = bins >= 0
        sums, counts = self._sums[:, columns], self._counts[:, columns]  # views
        places = flat[is_present]
        sums += np.bincount(places, bins[is_present], size).reshape(MAX_STREAMS, n_columns)
        counts += np.bincount(places, minlength=size).reshape(MAX_STREAMS, n_columns)
        is_old = counts > _HALVED_AT
        sums[is_old] /= 2
        counts[is_old] /= 2

    def _forget(self) -> bool:
        """Forget the streams that are no longer seen; return whether there is a free place."""
        stale = [name for name, slot in self._slots.items() if self._seen[slot] < self._round - _FORGOTTEN_AFTER]
        for name in stale:
            slot = self._slots.pop(name)
            self._sums[slot] = self._counts[slot] = 0
        return bool(stale)

    def _free_slot(self) -> int:
        taken = np.zeros(MAX_STREAMS, bool)
        taken[list(self._slots.values())] = True
        return int(np.argmin(taken))
