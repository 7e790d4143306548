"""What is known of each tensor of a graph without running it: its shapes, its numbers if sizes, and where rows are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import onnx

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
class RowsVerdict:
    """Whether the rows of a tensor, or of all answers of a graph, depend on each other.

    Attributes:
        outcome: `independent`; `mixed`: a row depends on others; `undecided`: the operators do not show it.
        node: The node that mixes them or is not decided, for the beginning of a sentence; empty: all are independent.
        reason: What it does, as a verb.
    """

    outcome: Outcome
    node: str = ""
    reason: str = ""

    @property
    def why(self) -> str:
        """The node and what it does, without a full stop; empty: rows are independent."""
        return f"{self.node} {self.reason}" if self.node else ""


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
    fault: RowsVerdict | None = None

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
    def axis(self) -> int | None:
        """The axis of the rows; None: there is none, they are folded with something else, or its shape is not known."""
        return None if self.rows is None or self.row == (-1,) else self.rows.axis

    @property
    def row(self) -> Shape:
        """Its shape without the axis of the rows; (-1,): that is not known, or rows are folded with something else."""
        rows = self.rows
        if self.shapes is None or (rows is not None and (rows.before, rows.behind) != (1, 1)):
            return (-1,)
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


# ---------------------------------------------------------------- numbers that follow from sizes and constants


def slices(attrs: Mapping[str, Any], given: Sequence[Any], rank: int) -> dict[int, tuple[int, int | None, int]]:
    """Return the start, the end and the step that a Slice has, by axis."""
    starts, ends, axes, steps = (
        None if value is None else np.asarray(value).reshape(-1).tolist()
        for value in (
            attrs.get("starts") if len(given) < 2 else given[1],
            attrs.get("ends") if len(given) < 3 else given[2],
            attrs.get("axes") if len(given) < 4 else given[3],
            None if len(given) < 5 else given[4],
        )
    )
    assert starts is not None
    assert ends is not None
    axes = list(range(len(starts))) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cuts: dict[int, tuple[int, int | None, int]] = {}
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        cuts[axis % rank] = start, None if step < 0 and end <= np.iinfo(np.int32).min else end, step
    return cuts


MOVING: Final = frozenset({
    "Identity", "Cast", "Gather", "Concat", "Slice", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Split", "Expand",
})  # fmt: skip
"""Operators that move numbers; the first input holds these, all inputs of `Concat` do."""

COMPUTING: Final = frozenset({
    "Add", "Sub", "Mul", "Div", "Neg", "Abs", "Min", "Max", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual",
    "Not", "And", "Or", "Where", "Floor", "Ceil", "Sqrt", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin", "Range",
    "ConstantOfShape",
})  # fmt: skip
"""Operators that compute with numbers."""


def computed(
    node: onnx.NodeProto, opset: int, given: Sequence[tuple[Array, Array] | None], counts: Sequence[Array | None]
) -> list[tuple[tuple[Array, Array], Array]] | None:
    """Return the numbers of a node's outputs for both trials, and which of them follow from the number of rows.

    Args:
        node: The node.
        opset: The version of its operator.
        given: Its inputs; None: one that is left out.
        counts: The same for its inputs.

    Returns:
        None where the operator is not one of these, or there are too many numbers.
    """
    kind = node.op_type
    moved = len(given) if kind == "Concat" else 1
    is_of_count = [mark is not None and bool(mark.any()) for mark in counts]
    if kind not in MOVING | COMPUTING or (kind == "ConstantOfShape" and is_of_count[0]):
        return None
    if kind in MOVING and any(is_of_count[moved:]):
        return None
    firsts = [pair and pair[0] for pair in given]
    try:
        first, other = run_node(node, opset, firsts), run_node(node, opset, [pair and pair[1] for pair in given])
        if kind in MOVING:
            marks = [mark.astype(bool) for mark in run_node(node, opset, [*counts[:moved], *firsts[moved:]])]
        else:
            marks = [np.full(value.shape, any(is_of_count)) for value in first]
    except Exception:  # noqa: BLE001  # whatever NumPy and onnx raise: the numbers are not known
        return None
    values = []
    for left, right, mark in zip(first, other, marks, strict=True):
        if max(left.size, right.size) > MOST_NUMBERS:
            return None
        differs = _differ(left, right) if left.shape == right.shape else False
        values.append(((left, right), mark | differs))
    return values


def run_node(node: onnx.NodeProto, opset: int, given: Sequence[Array | None]) -> list[Array]:
    """Return what a node gives, by the reference implementation of the onnx package."""
    from onnx.reference import ReferenceEvaluator

    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    names = [f"in_{place}" for place in range(len(given))]
    alone.input[:] = ["" if value is None else name for name, value in zip(names, given, strict=True)]
    with np.errstate(all="ignore"):
        made = ReferenceEvaluator(alone, opsets={node.domain: opset}).run(None, dict(zip(names, given, strict=True)))
    return [np.asarray(value) for value in made]


def _differ(left: Array, right: Array) -> Array:
    differs: Array = left != right
    return differs & ~(np.isnan(left) & np.isnan(right)) if left.dtype.kind == "f" else differs
