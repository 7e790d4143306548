"""`TrialErrors`: how far both versions of a trial were from the truth, in the timesteps that this worker commits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np

from stepwell.engine.placing import Followed
from stepwell.models.forecast_errors import StreamErrors
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.truth import Truth

MOST_STREAMS: Final = 65_536
"""Streams whose newest predictions are kept; then the one that was added first is left."""
MOST_BYTES: Final = 2**28
"""Of these predictions; there are fewer streams if predictions have many timesteps ahead."""


class TrialErrors:
    """The streams of one trial.

    A prediction is judged if this worker commits both its timestep and the one that shows its truth, and nothing was
    between them: the history hash is the one that the stream had after the prediction.

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
        self._after = np.zeros(0, "V16")

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
        interrupted = slots[self._after[slots] != rows.before]
        self._after[slots] = rows.after
        for errors in self._errors:
            errors.grow(len(self._names))
            errors.forget(interrupted)
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
            if slot == len(self._after):
                self._after = np.concatenate([self._after, np.zeros(max(64, slot), "V16")])
        else:
            del self._slots[self._names[slot]]
            self._names[slot], self._after[slot] = name, np.zeros((), "V16")
            for errors in self._errors:
                errors.forget(np.array([slot]), sums=True)
        self._slots[name] = slot
        return slot


def _where(compared: Array, array: Array) -> Array:
    """Return predictions `(rows, T, *row)` as floats, NaN where they cannot be compared."""
    if compared.all():
        return array
    mask = compared.reshape(*compared.shape, *(1,) * (array.ndim - 2))
    return np.where(mask, array, np.nan)
