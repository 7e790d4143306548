"""What is known of each tensor of a graph without running it: its shapes, its numbers if sizes, and where rows are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Literal

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


# ---------------------------------------------------------------- numbers that follow from sizes and constants

Compute = Callable[[Mapping[str, Any], Sequence[Any]], Any]


def _axes(attrs: Mapping[str, Any], given: Sequence[Any]) -> tuple[int, ...] | None:
    axes = attrs.get("axes") if len(given) < 2 or given[1] is None else np.asarray(given[1]).reshape(-1).tolist()
    return None if axes is None else tuple(int(axis) for axis in axes)


def _unsqueeze(attrs: Mapping[str, Any], given: Sequence[Any]) -> Array:
    axes = _axes(attrs, given) or ()
    return np.asarray(np.expand_dims(given[0], axes))


def _slice(attrs: Mapping[str, Any], given: Sequence[Any]) -> Array:
    value = given[0]
    for axis, part in slices(attrs, given, value.ndim).items():
        at = [slice(None)] * value.ndim
        at[axis] = slice(*part)
        value = value[tuple(at)]
    return np.asarray(value)


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


def _split(attrs: Mapping[str, Any], given: Sequence[Any]) -> list[Array]:
    axis, sizes = attrs.get("axis", 0), attrs.get("split") if len(given) < 2 else given[1]
    if sizes is None:
        return list(np.array_split(given[0], attrs["num_outputs"], axis))
    return list(np.split(given[0], np.cumsum(np.asarray(sizes))[:-1], axis))


def _reshape(attrs: Mapping[str, Any], given: Sequence[Any]) -> Array:
    value, target = given[0], np.asarray(given[1]).tolist()
    sizes = [value.shape[i] if n == 0 and not attrs.get("allowzero") else n for i, n in enumerate(target)]
    return np.asarray(value.reshape(sizes))


def _squeeze(attrs: Mapping[str, Any], given: Sequence[Any]) -> Array:
    squeezed: Array = np.squeeze(given[0], _axes(attrs, given))
    return squeezed


MOVED: dict[str, Compute] = {
    "Identity": lambda attrs, given: given[0],
    "Cast": lambda attrs, given: given[0].astype(onnx.helper.tensor_dtype_to_np_dtype(attrs["to"])),
    "Gather": lambda attrs, given: np.take(given[0], given[1], axis=attrs.get("axis", 0)),
    "Concat": lambda attrs, given: np.concatenate(given, axis=attrs["axis"]),
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Transpose": lambda attrs, given: np.transpose(given[0], attrs.get("perm")),
    "Split": _split,
    "Expand": lambda attrs, given: np.broadcast_to(
        given[0], np.broadcast_shapes(given[0].shape, tuple(np.asarray(given[1]).tolist()))
    ),
}
"""Operators that move numbers; the first inputs hold these, `Concat` has no others."""


def _reduced(function: Callable[..., Any]) -> Compute:
    return lambda attrs, given: np.asarray(
        function(given[0], axis=_axes(attrs, given), keepdims=bool(attrs.get("keepdims", 1)))
    )


def _fill(attrs: Mapping[str, Any]) -> Any:
    return onnx.numpy_helper.to_array(attrs["value"]).reshape(-1)[0] if "value" in attrs else np.float32(0)


def _divided(attrs: Mapping[str, Any], given: Sequence[Any]) -> Array:
    left, right = given
    if left.dtype.kind in "iu":
        return np.asarray(np.trunc(left / right)).astype(left.dtype)  # ONNX rounds towards zero
    return np.asarray(left / right)


COMPUTED: dict[str, Compute] = {
    "Add": lambda attrs, given: given[0] + given[1],
    "Sub": lambda attrs, given: given[0] - given[1],
    "Mul": lambda attrs, given: given[0] * given[1],
    "Div": _divided,
    "Neg": lambda attrs, given: -given[0],
    "Abs": lambda attrs, given: np.abs(given[0]),
    "Min": lambda attrs, given: reduce(np.minimum, given),
    "Max": lambda attrs, given: reduce(np.maximum, given),
    "Equal": lambda attrs, given: given[0] == given[1],
    "Less": lambda attrs, given: given[0] < given[1],
    "LessOrEqual": lambda attrs, given: given[0] <= given[1],
    "Greater": lambda attrs, given: given[0] > given[1],
    "GreaterOrEqual": lambda attrs, given: given[0] >= given[1],
    "Not": lambda attrs, given: ~given[0],
    "And": lambda attrs, given: given[0] & given[1],
    "Or": lambda attrs, given: given[0] | given[1],
    "Where": lambda attrs, given: np.where(*given),
    "Floor": lambda attrs, given: np.floor(given[0]),
    "Ceil": lambda attrs, given: np.ceil(given[0]),
    "Sqrt": lambda attrs, given: np.sqrt(given[0]),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "Range": lambda attrs, given: np.arange(*(np.asarray(value).item() for value in given)),
    "ConstantOfShape": lambda attrs, given: np.full(given[0].tolist(), _fill(attrs)),
}
"""Operators that compute with numbers."""


def _differ(left: Array, other: Array) -> Array:
    return np.asarray((left != other) & ~(_is_nan(left) & _is_nan(other)))


def _is_nan(value: Array) -> Array:
    return np.isnan(value) if value.dtype.kind == "f" else np.zeros(value.shape, bool)


def computed(
    kind: str, attrs: Mapping[str, Any], given: Sequence[tuple[Array, Array] | None], counts: Sequence[Array | None]
) -> list[tuple[tuple[Array, Array], Array]] | None:
    """Return the numbers of a node's outputs for both trials, and which of them follow from the number of rows.

    Args:
        kind: The operator.
        attrs: Its attributes.
        given: Its inputs; None: one that is left out.
        counts: The same for its inputs.

    Returns:
        None where the operator is not one of these, or there are too many numbers.
    """
    compute = MOVED.get(kind) or COMPUTED.get(kind)
    if compute is None or (kind == "ConstantOfShape" and counts[0] is not None and counts[0].any()):
        return None
    try:
        with np.errstate(all="ignore"):
            trials = [compute(attrs, [None if pair is None else pair[t] for pair in given]) for t in range(2)]
            if kind in MOVED:
                moved = len(given) if kind == "Concat" else 1
                marks = compute(attrs, [*counts[:moved], *(pair and pair[0] for pair in given[moved:])])
                if any(mark is not None and mark.any() for mark in counts[moved:]):
                    return None
            else:
                marks = [any(mark is not None and mark.any() for mark in counts)]
    except (ValueError, IndexError, TypeError, KeyError, OverflowError, MemoryError):
        return None
    values = []
    first, second = (trial if isinstance(trial, list) else [trial] for trial in trials)
    for place, (left, other) in enumerate(zip(map(np.asarray, first), map(np.asarray, second), strict=True)):
        if max(left.size, other.size) > MOST_NUMBERS:
            return None
        if kind in MOVED:
            mark = np.asarray(marks[place] if isinstance(marks, list) else marks).astype(bool)
        else:
            mark = np.full(left.shape, marks[0], bool)
        if left.shape == other.shape and mark.shape == left.shape:
            mark = mark | _differ(left, other)
        values.append(((left, other), mark))
    return values
