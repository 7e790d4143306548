"""`TrialErrors`: how far both versions of a trial were from the truth, in the timesteps that this worker commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from stepwell.addons.releases.forecast_errors import StreamErrors
from stepwell.engine.placing import Followed
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.truth import Truth

MOST_STREAMS: Final = 65_536
"""Streams whose newest predictions are kept; then the one that was added first is left."""
MOST_BYTES: Final = 2**28
"""Of these predictions; there are fewer streams if predictions have many timesteps ahead."""


class TrialErrors:
    """The streams of one trial.

    A prediction is judged if this worker commits both its timestep and the one that shows its truth. Timesteps between
    them, of rollouts or of other workers, are counted by the stream's step; a reset or a new state begins another
    epoch.

    Args:
        truths: Where the truths of outputs are from.
    """

    def __init__(self, truths: Sequence[Truth]) -> None:
        self._errors = [StreamErrors(truth) for truth in truths]
        bytes_each = sum(16 * truth.last * truth.numbers for truth in truths)
        self._most = min(MOST_STREAMS, MOST_BYTES // max(1, bytes_each) + 1)
        self._slots: dict[str, int] = {}
        self._names: list[str] = []
        self._next = 0
        self._epochs = np.zeros(0, np.uint64)
        self._steps = np.zeros(0, np.int64)

    def add(
        self, rows: Followed, current: Mapping[str, Array], candidate: Mapping[str, Array], compared: Array
    ) -> Iterator[tuple[Truth, Array]]:
        """Judge rows, and yield what they add to the sums of each truth, `(labels, SUMS)`.

        Args:
            rows: The rows.
            current: The predictions of the current version, `(rows, T, *row)` by output.
            candidate: Those of the candidate.
            compared: Which timesteps can be compared, `(rows, T)` bool.
        """
        if not self._errors:
            return
        self._most = max(self._most, len(rows.names))  # each row has a slot of its own
        slots = np.array([self._slot(name) for name in rows.names], np.intp)
        missed = np.where(self._epochs[slots] == rows.epochs, rows.steps - self._steps[slots], -1)
        at = np.flatnonzero(missed)
        self._epochs[slots], self._steps[slots] = rows.epochs, rows.steps + compared.shape[1]
        for errors in self._errors:
            errors.grow(len(self._names))
            errors.skip(slots[at], missed[at])
            name = errors.truth.output
            yield (
                errors.truth,
                errors.add(slots, rows.inputs, _where(compared, current[name]), _where(compared, candidate[name])),
            )

    def _slot(self, name: str) -> int:
        slot = self._slots.get(name)
        if slot is not None:
            return slot
        slot = self._next
        self._next = (slot + 1) % self._most
        if slot == len(self._names):
            self._names.append(name)
            if slot == len(self._steps):
                self._epochs, self._steps = (
                    np.concatenate([known, np.zeros(max(64, slot), known.dtype)])
                    for known in (self._epochs, self._steps)
                )
        else:
            del self._slots[self._names[slot]]
            self._names[slot] = name
            self._epochs[slot] = self._steps[slot] = 0
            for errors in self._errors:
                errors.forget(np.array([slot]))
        self._slots[name] = slot
        return slot


def _where(compared: Array, array: Array) -> Array:
    """Return predictions `(rows, T, *row)` as floats, NaN where they cannot be compared."""
    if compared.all():
        return array
    mask = compared.reshape(*compared.shape, *(1,) * (array.ndim - 2))
    return np.where(mask, array, np.nan)
