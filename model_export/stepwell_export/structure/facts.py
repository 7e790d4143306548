"""What is known of each tensor of a graph without running it: its shapes, its numbers if sizes, and where rows are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Shape = tuple[int, ...]

TRIALS = (1009, 1013)
"""Two numbers of rows for which shapes are inferred: primes, so that no other size is a multiple of one by chance."""

MOST_NUMBERS = 4096
"""Numbers in a tensor that may be sizes, indices or axes; a larger one is a weight."""

Outcome = Literal["independent", "mixed", "undecided"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Where a tensor has its rows: on `axis`, where index `(i * rows + row) * behind + j` belongs to `row`.

    Attributes:
        axis: The axis.
        before: How many times all rows follow each other on it, as of a tensor `(time, rows)` that was folded.
        behind: How many elements of one row follow each other, as of a tensor `(rows, time)` that was folded.
        is_filled: Whether all along the axis is equal, so that rows may as well be on it in another order.
    """

    axis: int
    before: int = 1
    behind: int = 1
    is_filled: bool = False

    def size(self, rows: int) -> int:
        """Return the axis' length."""
        return self.before * rows * self.behind


@dataclass(frozen=True, slots=True)
class RowFault:
    """Why a tensor's rows are not independent, or cannot be shown to be.

    Attributes:
        outcome: `mixed`: a row depends on others. `undecided`: the operators do not show whether it does.
        node: The node, for people, for the beginning of a sentence.
        reason: What it does, as a verb.
    """

    outcome: Outcome
    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class RowFact:
    """What is known of a tensor.

    Attributes:
        kind: ONNX element type; 0: unknown, or no tensor.
        shapes: Its shape for each of `TRIALS`; None: unknown.
        rows: Where it has its rows. Each row of the tensor follows from that row of the inputs alone, for any number of
            rows, and by the same function for all. None: it is the same whatever the rows are.
        values: Its numbers for each of `TRIALS`, where it follows from weights and sizes alone and is small.
        counts: Which of the numbers follow from the number of rows; shaped as `values`.
        is_count: Whether any number of it may follow from the number of rows, and it has no rows.
        parts: What is known of each tensor of a sequence of tensors; None: it is no sequence, or of unknown length.
        fault: Why the above does not hold; None: it does.
    """

    kind: int = 0
    shapes: tuple[Shape, Shape] | None = None
    rows: Rows | None = None
    values: tuple[Array, Array] | None = None
    counts: Array | None = None
    is_count: bool = False
    parts: tuple[RowFact, ...] | None = None
    fault: RowFault | None = None

    @property
    def rank(self) -> int:
        """How many axes it has.

        Raises:
            UndecidedError: That is not known.
        """
        return len(self.known_shapes[0])

    @property
    def known_shapes(self) -> tuple[Shape, Shape]:
        """Its shapes.

        Raises:
            UndecidedError: They are not known.
        """
        if self.shapes is None:
            raise UndecidedError("takes a tensor whose shape is not known")
        return self.shapes

    @property
    def row_shape(self) -> Shape | None:
        """Its shape without the axis of the rows, where that has nothing else; None: there is no such shape."""
        rows = self.rows
        if self.shapes is None or (rows is not None and (rows.before, rows.behind) != (1, 1)):
            return None
        return tuple(size for axis, size in enumerate(self.shapes[0]) if rows is None or axis != rows.axis)


class MixedError(Exception):
    """A node makes something of several rows; the text is what it does, as a verb. Caught in this package."""


class UndecidedError(Exception):
    """What a node does with the rows is not known; the text is why, as a verb. Caught in this package."""


def constant_fact(kind: int, value: Array) -> RowFact:
    """Return the fact of a tensor that never changes."""
    shape = tuple(int(size) for size in value.shape)
    if value.size > MOST_NUMBERS:
        return RowFact(kind, (shape, shape))
    return RowFact(kind, (shape, shape), values=(value, value), counts=np.zeros(shape, bool))


def folded(shapes: tuple[Shape, Shape], rows: Rows, to: tuple[Shape, Shape]) -> Rows:
    """Return where the rows are once a tensor has been given other sizes, its elements in the same order.

    Raises:
        MixedError: Elements of several rows come to one place.
        UndecidedError: There are no elements.
    """
    ways = [(rows.before, rows.behind)]
    if rows.is_filled:  # any order of the rows on the axis is as good as another
        count = rows.before * rows.behind
        ways = [(before, count // before) for before in range(1, count + 1) if count % before == 0]
    for before, behind in ways:
        refolded = _refolded(shapes[0], replace(rows, before=before, behind=behind), to)
        if refolded is not None:
            return refolded
    raise MixedError("puts elements of different rows where those of one row were")


def _refolded(shape: Shape, rows: Rows, to: tuple[Shape, Shape]) -> Rows | None:
    before = math.prod(shape[: rows.axis]) * rows.before
    behind = math.prod(shape[rows.axis + 1 :]) * rows.behind
    if not before or not behind:
        raise UndecidedError("takes a tensor without elements")
    for axis in range(len(to[0])):
        front, rest = math.prod(to[0][:axis]), math.prod(to[0][axis + 1 :])
        if not front or not rest or before % front or behind % rest:
            continue
        made = Rows(axis, before // front, behind // rest)
        if (made.before, made.behind) == (rows.before, rows.behind):
            made = replace(made, is_filled=rows.is_filled)
        if all(made.size(trial) == sizes[axis] for trial, sizes in zip(TRIALS, to, strict=True)):
            return made
    return None


def common_axis(places: Sequence[Rows]) -> Rows:
    """Return where the rows of an output are that is made of several tensors, element by element.

    Raises:
        MixedError: They are not at one place.
    """
    first = next((place for place in places if not place.is_filled), places[0])
    for place in places:
        is_alike = place.is_filled and (place.axis, place.size(1)) == (first.axis, first.size(1))
        if place != first and not is_alike:
            raise MixedError("combines every row with every other")
    return first
