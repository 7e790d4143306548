"""Attention to a fixed number of timesteps: keys and values of that window are carried.

The window is read from the mask, `stepwell_export.streaming.rules.masks`: what that hides from positions alone.

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

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes, uses
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming.rules.elementwise import pointwise
from stepwell_export.streaming.rules.masks import hidden
from stepwell_export.streaming.rules.pooling.ranges import range_of
from stepwell_export.streaming.rules.squares import (
    CAUSAL_FIX,
    SHAPED,
    Square,
    axis_in_output,
    operands,
    time_axes,
    without_rule,
)
from stepwell_export.streaming.tensor import StepTensor
from stepwell_export.streaming.walk import StreamingWalk

_ELEMENTWISE = {
    "Abs", "Add", "And", "Cast", "CastLike", "Clip", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Gelu", "Greater",
    "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual",
    "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Selu", "Sigmoid",
    "Softplus", "Softsign", "Sqrt", "Sub", "Tanh", "Where", "Xor",
}  # fmt: skip
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
    elif node.op_type in _ELEMENTWISE | _MOVING or node.op_type.startswith("Reduce"):
        step = walk.emit_like(node, 0, **operands(walk, node, square)).output[0]
    else:
        raise without_rule(walk, node)
    if square.keys is not None:
        made = StepTensor("pairwise", step, square.front, window=square.window, keys=square.keys)
        walk.tensors[out] = replace(made, refused_as_answer=square.refused_as_answer)
    elif node.op_type.startswith("Reduce") and node.op_type != "ReduceSum":
        raise without_rule(walk, node)
    elif square.queries is None:
        walk.set_output(node, out, step, "at_end")
    else:
        walk.set_output(node, out, step, "per_step", 0)
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
    place = next((i for i, name in enumerate(node.input) if name and walk.tensors[name].kind == "pairwise"), None)
    if place is None:
        if any(walk.tensors[name].kind == "pairwise" for name in uses(node)):
            raise without_rule(walk, node)
        return None
    name = node.input[place]
    tensor, times = walk.tensors[name], time_axes(walk, name)
    assert tensor.keys is not None
    looking = [axis for axis in times if axis != tensor.keys]
    keys = axis_in_output(walk, node, place, tensor.keys)
    queries = axis_in_output(walk, node, place, looking[0]) if looking else None
    if looking and queries is None:
        raise without_rule(walk, node)
    return Square(tensor.window, tensor.offset or 0, keys, queries, tensor.refused_as_answer)


def _begun(walk: StreamingWalk, node: onnx.NodeProto) -> Square | None:
    """Return the square that begins with a node that takes none; None: it gives none."""
    if len(node.output) != 1 or node.output[0] in walk.from_sizes or not walk.facts.dims(node.output[0]):
        return None
    out = node.output[0]
    times, kinds = time_axes(walk, out), {walk.tensors[name].kind for name in uses(node)}
    from_the_end = len(times) == 1 and {"at_end", "per_step"} <= kinds
    if not from_the_end and (len(times) != 2 or "per_step" not in kinds):
        return None
    walk.need(*(name for name in uses(node) if name not in walk.from_sizes))
    softmax = _softmax_behind(walk, out, times)
    if softmax is None:
        if node.op_type in {"MatMul", "Einsum"} and not from_the_end:
            raise walk.refuse(node, "compares every timestep with every other", CAUSAL_FIX)
        return None
    keys = times[softmax.place]
    queries = next((axis for axis in times if axis != keys), None)
    offsets = {walk.tensors[name].offset or 0 for name in _looked_at(walk, node, keys)}
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
        elif node.op_type in _ELEMENTWISE | _MOVING or node.op_type.startswith("Reduce"):
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
    return int(attributes(node).get("axis", -1 if walk.opset >= 13 else 1)) % rank


def _softmax(walk: StreamingWalk, node: onnx.NodeProto, square: Square) -> str:
    """Emit a softmax: over the timesteps that are looked at, those before the first have the lowest number."""
    axis, rank = _axis(walk, node), len(walk.facts.dims(node.output[0]))
    if axis == square.queries or (walk.opset < 13 and axis != rank - 1):
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
