"""How far two answers are apart, and whether that is too far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import magnitude

_ROUNDING = 8.0
"""In units of the last place of a tensor's largest value: what rounding makes of any number of it."""


class Tolerance(NamedTuple):
    """What is allowed: an absolute difference, plus one relative to the value. Integers and booleans must be equal.

    An int16 may differ by 1: it is a sample, which was rounded.

    Attributes:
        atol: The absolute difference; where `scaled`, as a part of the largest value of the tensor that is compared.
        rtol: The difference relative to each value.
        scaled: Whether `atol` is such a part; `on` makes it an absolute one.
    """

    atol: float
    rtol: float
    scaled: bool = False

    def on(self, want: Array) -> Tolerance:
        """Return what is allowed of these values, as an absolute difference."""
        return Tolerance(self.atol * magnitude(want), self.rtol) if self.scaled else self

    def on_number(self, want: Array, tensor: float) -> Tolerance:
        """Return what is allowed of one number of rows, which has a label and so perhaps a unit of its own.

        Args:
            want: Its values.
            tensor: The largest magnitude of the whole tensor; what rounding makes of it is allowed anywhere.
        """
        if not self.scaled or want.dtype.kind != "f":
            return self.on(want)
        sizes = np.abs(want.astype(np.float64))
        own = float(sizes.max(initial=0.0, where=np.isfinite(sizes)))
        return Tolerance(max(self.atol * own, _ROUNDING * float(np.finfo(want.dtype).eps) * tensor), self.rtol)

    def allowed(self, want: Any) -> Any:
        """Return the largest difference that is allowed from this value or these values, in float64."""
        return self.atol + self.rtol * np.abs(np.asarray(want, np.float64))

    def beyond(self, off: Array, want: Array) -> Array:
        """Return where differences are too large; NaN is, and no difference at all never is."""
        if want.dtype == np.int16:
            return np.asarray(off > 1)
        if want.dtype.kind in "iub":
            return np.asarray(off != 0)
        is_beyond: Array = ~((off <= self.allowed(want)) | (off == 0))
        return is_beyond

    def holds(self, got: Array, want: Array) -> bool:
        """Return whether no number is too far off."""
        plain = self.on(want)
        return not bool(plain.beyond(difference(got, want), want.reshape(got.shape)).any())


ATOL = 1e-5
RTOL = 1e-4
DEFAULT = Tolerance(ATOL, RTOL, scaled=True)
"""What is allowed unless set otherwise."""


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of the original's values that an output was compared with.

    Attributes:
        largest: The largest magnitude.
        median: The middle one of those that are not zero; 0 where all are.
        distinct: Share of the values that are distinct.
    """

    largest: float
    median: float
    distinct: float


@dataclass(slots=True)
class OutputParity:
    """How far one output was off.

    Attributes:
        name: The output.
        max_abs: Largest absolute difference.
        max_rel: Largest difference relative to the original's value, of values above a thousandth of the largest.
        at_step: Timestep of the largest absolute difference, from 1.
        sequence: Kind of sequence of that difference.
        row: Which of those sequences, from 1.
        compared: Numbers compared.
        atol: The absolute difference that was allowed.
        scale: The size of the original's values.
        weak: Whether a wrong graph might have passed.
        why: What makes it weak; empty where it is not.
        labels: The same of each number that has a label, which is held to its own size.
    """

    name: str
    max_abs: float = 0.0
    max_rel: float = 0.0
    at_step: int = 1
    sequence: str = ""
    row: int = 1
    compared: int = 0
    atol: float = 0.0
    scale: Scale = Scale(0.0, 0.0, 0.0)  # frozen
    weak: bool = True
    why: str = "nothing was compared"
    labels: dict[str, OutputParity] = field(default_factory=dict)

    def note(self, kind: str, steps: Any, off: Array, want: Array) -> None:
        """Take differences `(rows, len(steps), *shape)` into account."""
        self.compared += off.size
        if not off.size:
            return
        size = np.abs(want.astype(np.float64))
        counts = np.isfinite(size) & (size > magnitude(want) / 1000)
        relative = np.divide(off, size, out=np.zeros(off.shape), where=counts)
        self.max_rel = max(self.max_rel, float(relative.max()))
        if not off.max() <= self.max_abs or not self.sequence:
            row, column = (int(i) for i in np.unravel_index(np.argmax(off), off.shape)[:2])
            self.max_abs, self.sequence, self.row, self.at_step = float(off.max()), kind, row + 1, int(steps[column])
        for line, (of, values) in zip(self.labels.values(), numbers(off, want), strict=False):
            line.note(kind, steps, of, values)


def numbers(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Yield arrays `(rows, timesteps, *shape)` for each number of a row, `(rows, timesteps)`, in C order."""
    flat = [array.reshape(*array.shape[:2], -1) for array in arrays]
    for i in range(flat[0].shape[2]):
        yield tuple(array[..., i] for array in flat)


def difference(got: Array, want: Array, *, equal_nan: bool = False) -> Array:
    """Return absolute differences in float64, shaped as `got`.

    Equal infinities differ by 0, a NaN by NaN (two of them by 0 with `equal_nan`), unequal integers by 1 at least.
    """
    want = want.reshape(got.shape)
    left, right = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):
        off = np.abs(left - right)
    if got.dtype.kind in "iu":
        off = np.maximum(off, 1.0)  # large ones may be one number as floats
    same = got == want
    if equal_nan:
        same |= np.isnan(left) & np.isnan(right)
    return np.where(same, 0.0, off)


def largest(off: Array) -> float:
    """Return the largest of some differences; 0 where there are none."""
    return float(off.max(initial=0.0))
