"""Which axis of a declared shape is the batch, which is time, and how long one row is.

Declarations are a start, not a proof: published models declare a symbolic batch and fail on two rows, or declare
no shape at all. What is read here is held against real runs by `adopt`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.specs import shape_of_rows

Dim = int | str | None
"""A declared length: a number, a symbol, or nothing known."""

_TIME = re.compile(r"t|time.*|.*time|seq.*|.*_?len(gth)?|(n_?|num_?)?(time)?steps?|(n_?|num_?)?frames?", re.IGNORECASE)
_BATCH = re.compile(r"b|n|bs|batch.*|.*_batch(_size)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Declared:
    """An input or output as the graph declares it."""

    name: str
    dtype: str
    dims: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class ShapedTensor:
    """A tensor of a step graph when one row is run.

    Attributes:
        name: Its name in the graph, or `INPUT.context`.
        dtype: NumPy name.
        shape: The lengths of its axes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def fits(self, other: ShapedTensor) -> bool:
        """Return whether one could be fed back as the other."""
        return (self.dtype, self.shape) == (other.dtype, other.shape)


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a graph input.

    Attributes:
        batch_axis: Where the graph has its batch axis; None where it has none.
        graph: The row in the graph, without batch axis, a window's past part included.
        wire: The row that a caller sends.
        window_axis: Axis of the row along which the past part is joined; None without one.
    """

    batch_axis: int | None
    graph: tuple[int, ...]
    wire: tuple[int, ...]
    window_axis: int | None = None

    def shape(self, rows: int) -> tuple[int, ...]:
        """Return the graph's shape with that many rows."""
        return shape_of_rows(self.graph, self.batch_axis, rows)


class UnknownLengthError(UnclearModelError):
    """The length of a row is declared nowhere."""


def find_batch_axes(inputs: Sequence[Declared], said: Mapping[str, int | None] | None = None) -> dict[str, int | None]:
    """Return each input's batch axis: as a person set it, else as its declaration suggests; None: none."""
    said = said or {}
    symbols = Counter(d for i in inputs for d in dict.fromkeys(i.dims) if isinstance(d, str) and not _TIME.fullmatch(d))
    leading = {i.dims[0] for i in inputs if i.dims}
    batch = max(
        (s for s in symbols if s in leading or _BATCH.fullmatch(s)),
        key=lambda s: (bool(_BATCH.fullmatch(s)), symbols[s], s in leading),
        default=None,
    )
    # Where one input takes any number of rows, an open axis of the others is the batch too.
    open_batch = batch is not None or None in leading
    return {
        i.name: said[i.name] if i.name in said else _batch_axis(i.dims, batch, open_batch=open_batch) for i in inputs
    }


def open_axes(tensor: Declared, batch_axis: int | None, time_axis: int | None = None) -> list[int]:
    """Return the axes whose length is not declared, but for the batch axis and the given time axis."""
    return [a for a, d in enumerate(tensor.dims) if a not in {batch_axis, time_axis} and not isinstance(d, int)]


def _batch_axis(dims: tuple[Dim, ...], batch: str | None, *, open_batch: bool) -> int | None:
    if batch is not None and batch in dims:
        return dims.index(batch)
    if open_batch and None in dims:
        return dims.index(None)
    return dims.index(1) if 1 in dims else None


def find_row(
    tensor: Declared,
    batch_axis: int | None,
    *,
    said: Sequence[int] | None = None,
    context: int | None = None,
    time_axes: Mapping[str, int | None] | None = None,
    is_state: bool = False,
) -> Row:
    """Return how long one row is.

    An axis whose name sounds like time is read as one timestep long, unless the given row fits only if it is not.

    Args:
        tensor: The input.
        batch_axis: From `find_batch_axes`.
        said: `--shape`: the row that a caller sends.
        context: `--window`: length of the past part that the graph takes in front of the new one.
        time_axes: `--time-axis`: the time axis by input; None: it has none, whatever its axes are called.
        is_state: Whether it is a state, for the message.

    Raises:
        UnknownLengthError: A length is not known.
        UnclearModelError: The given row does not fit.
    """
    time = (time_axes or {}).get(tensor.name)
    is_said = tensor.name in (time_axes or {})
    one_step = [
        1 if axis == time or (not is_said and isinstance(d, str) and _TIME.fullmatch(d)) else d
        for axis, d in enumerate(tensor.dims)
    ]
    as_declared = [1 if axis == time else d for axis, d in enumerate(tensor.dims)]
    if context is not None:
        return _find_row(tensor, batch_axis, as_declared, said, context, is_state=is_state)
    try:
        return _find_row(tensor, batch_axis, one_step, said, context, is_state=is_state)
    except UnclearModelError:
        if said is None:
            raise
    return _find_row(tensor, batch_axis, as_declared, said, context, is_state=is_state)


def _find_row(
    tensor: Declared,
    batch_axis: int | None,
    dims: Sequence[Dim],
    said: Sequence[int] | None,
    context: int | None,
    *,
    is_state: bool,
) -> Row:
    row = [d for axis, d in enumerate(dims) if axis != batch_axis]
    unknown = [axis for axis, d in enumerate(row) if not isinstance(d, int)]
    window_axis = None
    if context is not None:
        if not row:
            raise UnclearModelError(
                f"Input {tensor.name!r} has a row without axes; a window needs one.", fix="Leave out its `--window`."
            )
        window_axis = unknown[0] if len(unknown) == 1 else len(row) - 1
        total = row[window_axis]
        if isinstance(total, int):
            row[window_axis] = total - context
            if total <= context:
                raise UnclearModelError(
                    f"Input {tensor.name!r} is {total} long and its window {context}; expected a new part behind it.",
                    fix="Give a shorter `--window`.",
                )
    new = _fill(tensor, row, unknown, said, is_state=is_state)
    if window_axis is None:
        wire = tuple(said) if said is not None else without_ones(new)
        return Row(batch_axis, new, wire)
    graph = list(new)
    graph[window_axis] += context or 0
    return Row(batch_axis, tuple(graph), new, window_axis)


def without_ones(row: tuple[int, ...]) -> tuple[int, ...]:
    """Return a row without axes of length 1 (a time axis is one), but never without any axis that it had."""
    return tuple(d for d in row if d != 1) or row[:1]


def length_unknown(tensor: Declared, why: str, *, is_state: bool) -> UnknownLengthError:
    """Return the error for an input whose row has a length that is declared nowhere."""
    subject, wanted = (
        ("State", "Say how long a row of the state is")
        if is_state
        else ("Input", "Say what is sent with each timestep")
    )
    return UnknownLengthError(
        f"{subject} {tensor.name!r} is declared {shown(tensor.dims)}; the length of one row is not known{why}.",
        fix=f"{wanted}: `--shape {tensor.name}=LENGTH` (or LENGTHxLENGTH ...).",
    )


def _fill(
    tensor: Declared, row: list[Dim], unknown: list[int], said: Sequence[int] | None, *, is_state: bool
) -> tuple[int, ...]:
    if said is None:
        if unknown:
            raise length_unknown(tensor, "", is_state=is_state)
        return tuple(d for d in row if isinstance(d, int))
    filled = list(row)
    if len(said) == len(row):
        for axis in unknown:
            filled[axis] = said[axis]
    elif len(unknown) == 1:
        known = math.prod(d for d in row if isinstance(d, int))
        filled[unknown[0]] = math.prod(said) // max(known, 1)
    found = tuple(d for d in filled if isinstance(d, int))
    if len(found) != len(row) or math.prod(found) != math.prod(said):
        raise UnclearModelError(
            f"Shape {list(said)} was given for {tensor.name!r}, whose row is declared {shown(row)}.",
            fix="Give one row: without batch axis, and without the part that a window puts in front.",
        )
    return found


def shown(dims: Sequence[Dim]) -> str:
    """Return a declared shape for people."""
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
