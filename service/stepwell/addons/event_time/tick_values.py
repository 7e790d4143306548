"""`TickValues`: the values of one timestep, of the messages in its tick, and of earlier ones where there are none."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from stepwell_export.runtime.manifest import Array

Take = Literal["last", "mean", "sum", "min", "max", "count"]
"""Which value a tick has of several."""

Fill = Literal["hold", "nan", "zero"]
"""Which value a tick has if there is none: the newest before it, NaN, or 0."""

TAKES: Final = ("last", "mean", "sum", "min", "max", "count")
FILLS: Final = ("hold", "nan", "zero")

Values = Mapping[str, Array | None]
"""The values of one message by input, in float64 or in the input's integer dtype; NaN, and None for a whole input: it
has none."""


class NoValueError(Exception):
    """A tick has no value for an input that must have one."""


@dataclass(frozen=True, slots=True)
class TickColumn:
    """One input of the timesteps.

    Attributes:
        name: Its name.
        dtype: Its dtype.
        shape: Its shape in one timestep.
        take: Which value it has of several.
        may_be_missing: NaN is a value of it.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    take: Take = "last"
    may_be_missing: bool = False

    @property
    def is_float(self) -> bool:
        """Whether a value of it may be NaN, which stands for none."""
        return self.dtype.kind == "f"

    def error(self, fill: Fill) -> str | None:
        """Return why its values cannot be made by these rules; None: they can."""
        if self.take == "mean" and not self.is_float:
            return f"Input {self.name!r} is {self.dtype}, so it cannot be the mean of several values."
        if self.take in ("sum", "count") and self.dtype.kind == "b":
            return f"Input {self.name!r} is true or false, so it cannot be a {self.take}."
        if fill == "nan" and not self.may_be_missing and self.take not in ("sum", "count"):
            return f"Input {self.name!r} must not be missing, so it cannot be filled with NaN."
        return None


def parts_of(values: Values) -> Iterator[Hashable]:
    """Yield what a message has a value for: each is filled by itself."""
    for name, array in values.items():
        if array is None:
            continue
        if array.dtype.kind != "f" or array.size == 1:
            if array.dtype.kind != "f" or not np.isnan(array).any():
                yield name
            continue
        for i in np.flatnonzero(~np.isnan(array)):
            yield name, int(i)


class TickValues:
    """Makes the values of ticks, in the order of each stream's ticks."""

    def __init__(self, columns: Iterable[TickColumn], fill: Fill) -> None:
        """Create it.

        Args:
            columns: The inputs.
            fill: Which value a tick has if there is none.
        """
        self._columns = list(columns)
        self._fill = fill
        self._held: dict[str, dict[str, Array]] = {}

    def clear(self) -> None:
        """Forget the values of all streams."""
        self._held.clear()

    def forget(self, stream: str) -> None:
        """Forget the values of a stream that pauses."""
        self._held.pop(stream, None)

    def of(self, stream: str, messages: Sequence[Values]) -> dict[str, Array]:
        """Return the values of a stream's next tick, by input, in its dtype and shape.

        Args:
            stream: The stream's id.
            messages: The tick's messages, in the order of their times.

        Raises:
            NoValueError: An input has none, now and before.
        """
        held = self._held.setdefault(stream, {})
        found = {}
        missing = None
        for column in self._columns:
            name = column.name
            taken = _taken(column, [array for one in messages if (array := one[name]) is not None])
            if taken is not None and self._fill == "hold":
                before = held.get(name)
                if column.is_float and before is not None and np.isnan(taken).any():
                    taken = np.where(np.isnan(taken), before, taken)
                held[name] = taken
            if taken is None:
                taken = held.get(name)
            filled = self._filled(column, taken)
            if filled is None:
                missing = missing or name
            else:
                with np.errstate(over="ignore"):
                    found[name] = filled.astype(column.dtype)
        if missing is not None:
            raise NoValueError(f"input {missing!r} has no value in this tick, and none before it")
        return found

    def _filled(self, column: TickColumn, taken: Array | None) -> Array | None:
        """Return values with nothing missing that must not be; None: there are none."""
        if taken is not None and not (column.is_float and np.isnan(taken).any()):
            return taken
        if taken is None:
            if not column.is_float:
                return np.zeros(column.shape, column.dtype) if self._fill == "zero" else None
            taken = np.full(column.shape, np.nan)
        if self._fill == "zero":
            taken = np.nan_to_num(taken, nan=0.0, posinf=np.inf, neginf=-np.inf)
        return taken if column.may_be_missing or not np.isnan(taken).any() else None


def _taken(column: TickColumn, arrays: Sequence[Array]) -> Array | None:
    """Return the value of several; NaN, or None for all of it: there is none. Sums and counts of nothing are 0."""
    take, kind = column.take, np.float64 if column.is_float else column.dtype
    if take == "count":
        ones = np.ones(column.shape, kind)
        return sum((~np.isnan(one) * ones for one in arrays), np.zeros(column.shape, kind)).astype(kind)
    if not arrays:
        return np.zeros(column.shape, kind) if take == "sum" else None
    if not column.is_float:
        stacked = np.stack(arrays)
        found = {"last": lambda: stacked[-1], "sum": lambda: stacked.sum(0, dtype=kind), "min": lambda: stacked.min(0)}
        return np.asarray(found.get(take, lambda: stacked.max(0))())
    if take in ("sum", "mean"):
        return _summed(arrays, mean=take == "mean")
    first, *others = arrays
    for one in others:
        if take == "last":
            first = np.where(np.isnan(one), first, one)
        else:
            first = np.fmin(first, one) if take == "min" else np.fmax(first, one)
    return first


def _summed(arrays: Sequence[Array], *, mean: bool) -> Array:
    """Return sums or means without what is missing, by Kahan's summation, as pandas does it."""
    total = np.zeros_like(arrays[0])
    lost, n = total.copy(), total.copy()
    for one in arrays:
        there = ~np.isnan(one)
        with np.errstate(invalid="ignore"):
            part = np.where(there, one, 0.0) - lost
            after = total + part
            lost = np.where(there, (after - total) - part, lost)
        lost = np.where(np.isnan(lost), 0.0, lost)  # of infinite sums
        total = np.where(there, after, total)
        n += there
    with np.errstate(invalid="ignore"):
        return total / n if mean else total
