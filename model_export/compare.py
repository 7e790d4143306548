"""How far two answers are apart, and whether that is too far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from model_export.manifest import Array


class Tolerance(NamedTuple):
    """What is allowed: an absolute difference, plus one relative to the value."""

    atol: float
    rtol: float

    def allowed(self, want: Any) -> Any:
        """Return the largest difference that is allowed from this value or these values, in float64."""
        return self.atol + self.rtol * np.abs(np.asarray(want, np.float64))

    def beyond(self, off: Array, want: Array) -> Array:
        """Return where differences are too large; NaN is, and no difference at all never is."""
        found: Array = ~((off <= self.allowed(want)) | (off == 0))
        return found

    def holds(self, found: Array, want: Array) -> bool:
        """Say whether no number is too far off."""
        return not bool(self.beyond(difference(found, want), want.reshape(found.shape)).any())


@dataclass(slots=True)
class OutputParity:
    """How far one output was off.

    Attributes:
        name: The output.
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the original's value, where that is not below the absolute tolerance.
        at_step: Timestep of the largest absolute difference, from 1.
        sequence: Kind of sequence of that difference.
        row: Which of those sequences, from 1.
        compared: Numbers compared.
    """

    name: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    at_step: int = 1
    sequence: str = ""
    row: int = 1
    compared: int = 0

    def note(self, kind: str, steps: Any, off: Array, want: Array, tolerance: Tolerance) -> None:
        """Take differences `(rows, len(steps), *shape)` into account."""
        self.compared += off.size
        if not off.size:
            return
        size = np.abs(want.astype(np.float64))
        relative = np.divide(off, size, out=np.zeros(off.shape), where=np.isfinite(size) & (size >= tolerance.atol))
        self.max_rel = max(self.max_rel, float(relative.max()))
        if not off.max() <= self.max_abs or not self.sequence:
            row, column = (int(i) for i in np.unravel_index(off.argmax(), off.shape)[:2])
            self.max_abs, self.sequence, self.row, self.at_step = float(off.max()), kind, row + 1, int(steps[column])


def difference(found: Array, want: Array, *, equal_nan: bool = False) -> Array:
    """Return absolute differences in float64, shaped as `found`.

    Equal infinities differ by 0, a NaN by NaN (two of them by 0 with `equal_nan`), unequal integers by 1 at least.
    """
    want = want.reshape(found.shape)
    left, right = found.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.abs(left - right)
    if found.dtype.kind in "iu":
        off = np.maximum(off, 1.0)  # large ones may be one number as floats
    same = found == want
    if equal_nan:
        same |= np.isnan(left) & np.isnan(right)
    return np.where(same, 0.0, off)


def largest(off: Array) -> float:
    """Return the largest of some differences; 0 where there are none."""
    return float(off.max(initial=0.0))
