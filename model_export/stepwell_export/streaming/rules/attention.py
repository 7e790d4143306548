"""Attention to a fixed number of timesteps: keys and values of that window are carried.

Scores have a number for every timestep against every other: a *square*. The window is read from its mask,
`stepwell_export.streaming.rules.masks`: what that hides from positions alone.

Before and after:

    q, k, v (B, T, 4)                      q, k, v (B, 1, 4)   k.past, v.past (B, n, 4)
       | MatMul (B, T, T), mask                  |  k, v joined to what is kept of them
       | of the last n + 1            ->         | MatMul (B, 1, n + 1), mask as far as the stream goes back
       | Softmax, MatMul                         | Softmax, MatMul
    y (B, T, 4)                            y (B, 1, 4)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, uses
from stepwell_export.graph.operators import ELEMENTWISE
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.known_values import emit_by_position, emit_table, shape_at_one_step, shape_to_reshape
from stepwell_export.streaming.rules.elementwise import pointwise
from stepwell_export.streaming.rules.masks import hidden
from stepwell_export.streaming.rules.ranges import range_of
from stepwell_export.streaming.rules.reductions import read_axes
from stepwell_export.streaming.walk import AtEnd, ByPosition, Known, PerStep, Scores, StreamingWalk

# ---------------------------------------------------------------- a number for every timestep against every other

CAUSAL_FIX = "Give it a mask that lets a fixed number of past timesteps through, and train it that way."
SHAPED = {"Reshape", "Expand"}
"""Operators whose second input is the shape of their output."""
_IN_ORDER = {"Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class Square:
    """What a node takes and gives of a tensor of every timestep against every other.

    Attributes:
        window: How many timesteps are looked at, the present one included.
        front: How many of them stand before the first timestep of the sequence.
        keys: The axis of the node's output for the timesteps that are looked at; None: they are summed up.
        queries: The axis of the timesteps that look; None: it is the end of the sequence that looks.
        refused_as_answer: Why it is refused where it is new and not masked later.
    """

    window: int
    front: int
    keys: int | None
    queries: int | None
    refused_as_answer: RefusedModelError | None = None


def time_axes(walk: StreamingWalk, name: str) -> list[int]:
    """Return the axes of a tensor that carry time."""
    return [axis for axis, dim in enumerate(walk.facts.dims(name)) if dim.has_time]


def is_table(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has a number for every pair of timesteps, by its sizes alone."""
    return name in walk.from_sizes and len(time_axes(walk, name)) == 2


def axis_in_output(walk: StreamingWalk, node: onnx.NodeProto, place: int, axis: int) -> int | None:
    """Return the axis of a node's output that an axis of time of its input becomes; None: it is summed over."""
    name, out = node.input[place], node.output[0]
    rank, rank_out = len(walk.facts.dims(name)), len(walk.facts.dims(out))
    attrs = attributes(node)
    if node.op_type == "Transpose":
        order = attrs.get("perm") or list(range(rank))[::-1]
        return int(list(order).index(axis))
    if node.op_type == "Einsum":
        terms, result = attrs["equation"].replace(" ", "").split("->")
        index = result.find(terms.split(",")[place][axis])
        return None if index < 0 else int(index)
    if node.op_type == "MatMul" and axis == rank - 1 - place:
        return None
    if node.op_type.startswith("Reduce"):
        reduced = read_axes(walk, node)
        if axis in reduced:
            return None
        return axis if attrs.get("keepdims", 1) else axis - sum(other < axis for other in reduced)
    if node.op_type in _IN_ORDER:
        return time_axes(walk, out)[time_axes(walk, name).index(axis)]
    return rank_out - rank + axis


def operands(walk: StreamingWalk, node: onnx.NodeProto, square: Square) -> dict[str, str]:
    """Return the tensors of the step graph that a node takes, by place as `StreamingWalk.emit_like` has them."""
    given = range(1 if node.op_type in SHAPED else len(node.input))
    emitted = {f"i{place}": _operand(walk, node, place, square) for place in given if node.input[place]}
    if node.op_type in SHAPED:
        dims = list(walk.facts.dims(node.output[0]))
        if square.keys is not None:
            dims[square.keys] = Dim(Fraction(square.window))
        emitted["i1"] = (shape_to_reshape if node.op_type == "Reshape" else shape_at_one_step)(walk.graph, dims)
    return emitted


def _operand(walk: StreamingWalk, node: onnx.NodeProto, place: int, square: Square) -> str:
    """Return what a node takes at one place: its window where it is looked at, this timestep where it looks."""
    name = node.input[place]
    tensor, times = walk.tensors[name], time_axes(walk, name)
    if is_table(walk, name):
        return _row_of_table(walk, node, place, square)
    walk.need(name)
    if not times and (not isinstance(tensor, AtEnd) or square.queries is None):
        return walk.operand(name, 0, node)
    become = {axis: axis_in_output(walk, node, place, axis) for axis in times}
    if isinstance(tensor, Scores):
        same = (tensor.window, tensor.front) == (square.window, square.front)
        if same and become[tensor.keys] == square.keys:
            return tensor.step
    elif len(times) == 1 and become[times[0]] == square.keys:
        if isinstance(tensor, Known) and square.keys is not None:
            return walk.operand(name, 0, node)
        if isinstance(tensor, ByPosition):
            return emit_by_position(walk, name, 0, node, past=square.window - 1)
        if isinstance(tensor, PerStep) and tensor.offset == square.front:
            return walk.window(name, square.window - 1)
        if isinstance(tensor, PerStep) and tensor.offset is None and square.keys is not None:
            return tensor.step
        raise walk.refuse(node, "attends over a sequence that was shifted in time", CAUSAL_FIX)
    elif len(times) == 1 and become[times[0]] == square.queries is not None:
        if walk.offset(name):
            raise walk.refuse(node, "attends over a sequence that was shifted in time", CAUSAL_FIX)
        if not isinstance(tensor, AtEnd):
            return walk.operand(name, 0, node)
    raise without_rule(walk, node)


def without_rule(walk: StreamingWalk, node: onnx.NodeProto) -> RefusedModelError:
    """Return the error for a node that is no part of attention that is known here."""
    return walk.refuse(node, "compares every timestep with every other in a way without a rule", CAUSAL_FIX)


# ---------------------------------------------------------------- masks, which follow from the sizes alone


def _row_of_table(walk: StreamingWalk, node: onnx.NodeProto, place: int, square: Square) -> str:
    """Return a table's row for one timestep: its window, or that of its position where rows differ."""
    name, size = node.input[place], square.window
    become = {axis_in_output(walk, node, place, axis): axis for axis in time_axes(walk, name)}
    if become.keys() != {square.keys, square.queries} or None in become:
        raise without_rule(walk, node)
    axes = become[square.queries], become[square.keys]
    whole = [] if walk.facts.at_length is None else [walk.facts.at_length(name)]
    tables = [walk.facts.one_row(value, name) for value in (*whole, *walk.facts.values(name))]
    squares = [None if table is None else np.moveaxis(table, axes, (-2, -1)) for table in tables]
    bands = [None if table is None else _band(table, size, square.front) for table in squares]
    first = bands[0]
    if first is not None and all(
        band is not None and np.array_equal(band, first[..., -band.shape[-1] :]) for band in bands
    ):
        return walk.graph.constant(np.moveaxis(first, (-2, -1), axes))
    longest = squares[0]
    if longest is None or not whole or any(table is None or not _begins(longest, table) for table in squares):
        raise walk.refuse(node, f"uses {name!r}, which depends on the position in the sequence", CAUSAL_FIX)
    rows = np.moveaxis(_windows(longest, size, square.front), (-2, -1), axes)
    return emit_table(walk, rows, axes[0], name, node)


def _band(table: Array, size: int, front: int) -> Array | None:
    """Return the window of a table's last row, or as much of it as there is; None where another row has another."""
    steps = table.shape[-2]
    size = min(size, steps + front)
    last = np.ascontiguousarray(table[..., -1:, steps + front - size : steps + front])
    for step in range(steps):
        end = step + front + 1
        there = min(size, end)
        if not np.array_equal(table[..., step : step + 1, end - there : end], last[..., size - there :]):
            return None
    return last


def _begins(longest: Array, table: Array) -> bool:
    """Whether a table of fewer timesteps is the beginning of one of more."""
    return np.array_equal(longest[..., : table.shape[-2], : table.shape[-1]], table)


def _windows(table: Array, size: int, front: int) -> Array:
    """Return the windows of all rows of a table; what stands before its first column counts for nothing."""
    steps = table.shape[-2]
    columns = np.arange(steps)[:, None] + front + np.arange(1 - size, 1)
    windows: Array = table[..., np.arange(steps)[:, None], np.maximum(columns, 0)]
    return windows


# ---------------------------------------------------------------- the window that is looked at

_MOVING = {"Einsum", "MatMul", "Squeeze", "Transpose", "Unsqueeze", *SHAPED}
_TABLED = 256
"""Timesteps of a window up to which a table of their square is small beside a model's weights."""

LENGTH_FIX = (
    "If the model was trained on sequences of N timesteps, declare that: `--length N`, `StepSpec(length=N)`. Or give "
    "it a mask that lets a fixed number of past timesteps through, and train it that way."
)


@dataclass(frozen=True, slots=True)
class _Weights:
    """A softmax over time.

    Attributes:
        name: Its output.
        axes: The axes of time there.
        place: Which of them it is over.
    """

    name: str
    axes: list[int]
    place: int


def attention_scores(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Any node that takes or gives what is measured between every timestep and every other: for one, its window.

    Returns:
        Whether it is such a node.

    Raises:
        RefusedModelError: It is no part of attention that is known here.
    """
    square = _continued(walk, node) or _begun(walk, node)
    if square is None:
        return False
    out = node.output[0]
    if node.op_type == "Softmax":
        step = _softmax(walk, node, square)
    elif node.op_type in ELEMENTWISE | _MOVING or node.op_type.startswith("Reduce"):
        step = walk.emit_like(node, 0, **operands(walk, node, square)).output[0]
    else:
        raise without_rule(walk, node)
    if square.keys is not None:
        made = Scores(step, window=square.window, front=square.front, keys=square.keys)
        walk.tensors[out] = replace(made, refused_as_answer=square.refused_as_answer)
    elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
        raise without_rule(walk, node)
    elif square.queries is None:
        walk.set_at_end(node, out, step)
    else:
        walk.set_per_step(node, out, step, 0)
    return True


def attention(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Attention as one operator: what it looks back on grows with the stream."""
    if walk.timed(node, node.input[1:3]):
        if len(node.input) > 3 and node.input[3]:
            raise walk.refuse(
                node,
                "attends over time with a mask that cannot be read in this form of it",
                "Export with an opset below 23, where attention is written as MatMul and Softmax.",
            )
        given = attributes(node)
        if node.op_type != "GroupQueryAttention" and not (given.get("is_causal") or given.get("unidirectional")):
            raise ahead_of_time(walk, node)
        raise walk.refuse(node, "attends to all timesteps before, so its state would grow without end", LENGTH_FIX)
    pointwise(walk, node)


def _continued(walk: StreamingWalk, node: onnx.NodeProto) -> Square | None:
    """Return what a node makes of a square that it takes; None: it takes none."""
    place = next((i for i, name in enumerate(node.input) if name and isinstance(walk.tensors[name], Scores)), None)
    if place is None:
        if any(isinstance(walk.tensors[name], Scores) for name in uses(node)):
            raise without_rule(walk, node)
        return None
    name = node.input[place]
    tensor, times = walk.tensors[name], time_axes(walk, name)
    assert isinstance(tensor, Scores)
    looking = [axis for axis in times if axis != tensor.keys]
    keys = axis_in_output(walk, node, place, tensor.keys)
    queries = axis_in_output(walk, node, place, looking[0]) if looking else None
    if looking and queries is None:
        raise without_rule(walk, node)
    return Square(tensor.window, tensor.front, keys, queries, tensor.refused_as_answer)


def _begun(walk: StreamingWalk, node: onnx.NodeProto) -> Square | None:
    """Return the square that begins with a node that takes none; None: it gives none."""
    if len(node.output) != 1 or node.output[0] in walk.from_sizes or not walk.facts.dims(node.output[0]):
        return None
    out = node.output[0]
    times, kinds = time_axes(walk, out), {type(walk.tensors[name]) for name in uses(node)}
    from_the_end = len(times) == 1 and {AtEnd, PerStep} <= kinds
    if not from_the_end and (len(times) != 2 or PerStep not in kinds):
        return None
    walk.need(*(name for name in uses(node) if name not in walk.from_sizes))
    softmax = _softmax_behind(walk, out, times)
    if softmax is None:
        if node.op_type in {"MatMul", "Einsum"} and not from_the_end:
            raise walk.refuse(node, "compares every timestep with every other", CAUSAL_FIX)
        return None
    keys = times[softmax.place]
    queries = next((axis for axis in times if axis != keys), None)
    offsets = {walk.offset(name) or 0 for name in _looked_at(walk, node, keys)}
    front = max(offsets, default=0)
    if len(offsets) > 1 or front < 0:
        raise walk.refuse(node, "attends over a sequence that was shifted in time", CAUSAL_FIX)
    window, masked = _window(walk, node, softmax, front)
    return Square(window, front, keys, queries, ahead_of_time(walk, node) if masked else None)


def _looked_at(walk: StreamingWalk, node: onnx.NodeProto, keys: int) -> list[str]:
    """Return the inputs whose timesteps are looked at."""
    return [
        name
        for place, name in enumerate(node.input)
        if name in walk.timed(node)
        and len(time_axes(walk, name)) == 1
        and axis_in_output(walk, node, place, time_axes(walk, name)[0]) == keys
    ]


def _softmax_behind(walk: StreamingWalk, name: str, axes: list[int]) -> _Weights | None:
    """Return the softmax over time that a square goes into, or None.

    Args:
        walk: The walk.
        name: The square.
        axes: Its axes of time.
    """
    for node in walk.model.graph.node:
        if name not in node.input or len(node.output) < 1 or not walk.facts.dims(node.output[0]):
            continue
        out, place = node.output[0], list(node.input).index(name)
        if len(time_axes(walk, out)) != len(axes):
            continue
        if node.op_type == "Softmax":
            axis = _axis(walk, node)
            if axis in axes:
                return _Weights(out, axes, axes.index(axis))
        elif node.op_type in ELEMENTWISE | _MOVING or node.op_type.startswith("Reduce"):
            moved = [axis_in_output(walk, node, place, axis) for axis in axes]
            there = [axis for axis in moved if axis is not None]
            if len(there) == len(axes) and (softmax := _softmax_behind(walk, out, there)) is not None:
                return softmax
    return None


def _window(walk: StreamingWalk, node: onnx.NodeProto, weights: _Weights, front: int) -> tuple[int, bool]:
    """Return how many timesteps the attention that begins here looks at, this one included.

    And whether some that look may see none that count: a softmax makes all timesteps equal then, those to come too, and
    what comes of that has to be masked.
    """
    runs = list(_seen(walk, weights, front))
    if any(run.ahead for run in runs):
        raise ahead_of_time(walk, node)
    masked = any(run.may_be_empty for run in runs)
    if len(sizes := {run.most for run in runs}) == 1:
        return sizes.pop(), masked
    if walk.length is None:
        raise walk.refuse(node, "attends to all timesteps before, so its state would grow without end", LENGTH_FIX)
    return walk.length + front, masked


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the timesteps of a run look at, as the mask has it.

    Attributes:
        ahead: Whether any looks at one to come.
        most: How many timesteps one looks at, the furthest and itself included.
        may_be_empty: Whether all that one looks at may be masked by what comes with the data.
    """

    ahead: bool
    most: int
    may_be_empty: bool


def _seen(walk: StreamingWalk, weights: _Weights, front: int) -> Iterator[_Seen]:
    scores = walk.makers[weights.name].input[0]
    for run in range(len(walk.facts.values(weights.name)) if len(weights.axes) == 2 else 0):
        mask = hidden(walk, scores, run)
        queries, keys = weights.axes[1 - weights.place], weights.axes[weights.place]
        always, sometimes = (
            np.moveaxis(array, (queries, keys), (-2, -1)).reshape(-1, array.shape[queries], array.shape[keys])
            for array in (mask.always, mask.sometimes)
        )
        seen = ~always.all(axis=0)
        ages = np.arange(seen.shape[0])[:, None] + front - np.arange(seen.shape[1])
        most = int(np.where(seen, ages + 1, 0).max(initial=0))
        yield _Seen(bool((seen & (ages < 0)).any()), most, bool(sometimes.all(axis=2).any()))


def ahead_of_time(walk: StreamingWalk, node: onnx.NodeProto) -> RefusedModelError:
    """Return the error for attention to timesteps to come."""
    return walk.refuse(node, "attends to timesteps to come", CAUSAL_FIX)


def _axis(walk: StreamingWalk, node: onnx.NodeProto) -> int:
    rank = len(walk.facts.dims(node.output[0]))
    return int(attributes(node).get("axis", -1)) % rank


def _softmax(walk: StreamingWalk, node: onnx.NodeProto, square: Square) -> str:
    """Emit a softmax: over the timesteps that are looked at, those before the first have the lowest number."""
    axis = _axis(walk, node)
    if axis == square.queries:
        raise without_rule(walk, node)
    name = node.input[0]
    step = walk.tensors[name].step
    if axis == square.keys and square.window > square.front + 1:
        step = _without_early(walk, name, axis, square)
    return str(walk.emit_like(node, 0, i0=step).output[0])


def _without_early(walk: StreamingWalk, name: str, axis: int, square: Square) -> str:
    """Emit scores that are the lowest number where a timestep would be before the first one.

    That number is added, of a table by the count of timesteps, which is quickest. Where a score may be NaN or infinite
    for the zeros that stand before the first timestep, where the table would be large, or rows are not in front, there
    is a choice instead.

    Args:
        walk: The walk.
        name: The scores.
        axis: Their axis of the timesteps that are looked at.
        square: What the scores are part of.
    """
    graph, dims, dtype = walk.graph, walk.facts.dims(name), walk.dtype(name)
    shape = [1] * len(dims)
    shape[axis] = square.window
    ages = np.arange(square.window - 1, -1, -1).reshape(shape) - square.front
    lowest, step = np.finfo(dtype).min, walk.tensors[name].step
    if axis and square.window <= _TABLED and dims[0].at_one_step() == (0, 1) and range_of(walk, name)[1] < math.inf:
        counts = np.arange(np.max(ages) + 1).reshape([-1, *[1] * (len(dims) - 1)])
        table = graph.constant(np.where(counts < ages, lowest, 0).astype(dtype), what="early")
        place = graph.op("Min", graph.count(), graph.ints([len(counts) - 1]))
        return graph.op("Add", step, graph.op("Gather", table, place))
    early = graph.op("Less", graph.count_like(dims), graph.constant(ages))
    return graph.op("Where", early, graph.constant(np.asarray(lowest, dtype)), step)
