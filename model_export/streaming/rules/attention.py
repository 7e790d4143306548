"""Attention whose mask lets a fixed number of timesteps through: keys and values of that window are carried.

The window is read off the attention itself as it ran: the softmax is zero outside it, for both lengths.
"""

from __future__ import annotations

import numpy as np
import onnx

from model_export.graph.nodes import attributes, uses
from model_export.manifest import Array
from model_export.streaming.rules.elementwise import pointwise
from model_export.streaming.tensor import StepTensor
from model_export.streaming.walk import StreamingWalk

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Dropout", "IsNaN", "Max", "Min", "Clip"}
_WHY = "Give it a mask that lets a fixed number of past timesteps through, and train it that way."
_UNBOUNDED = (
    "If the model was trained on sequences of N timesteps, declare that: `--length N`, `StepSpec(length=N)`. Or give "
    "it a mask that lets a fixed number of past timesteps through, and train it that way."
)


def matmul(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """MatMul; queries times keys, over a window."""
    times = [axis for axis, dim in enumerate(walk.facts.dims(node.output[0])) if dim.has_time]
    queries, keys = node.input
    rank = len(walk.facts.dims(node.output[0]))
    if times != [rank - 2, rank - 1] or len(walk.timed(node)) < 2:
        pointwise(walk, node)
        return
    front = _offset(walk, keys)
    if _offset(walk, queries) or front < 0:
        raise walk.refuse(node, "attends over a sequence that was shifted in time", _WHY)
    size = _window(walk, node, front)
    made = walk.emit_like(node, 0, i1=walk.window(keys, size - 1))
    walk.tensors[node.output[0]] = StepTensor("scores", made.output[0], front, window=size)


def attention_scores(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Any node that takes what is measured between every timestep and every other: for one timestep, its window.

    Raises:
        RefusedModelError: It is no part of attention that is known here.
    """
    squares = [name for name in uses(node) if walk.tensors[name].kind == "scores"]
    size, front, out = walk.tensors[squares[0]].window, _offset(walk, squares[0]), node.output[0]
    if node.op_type in _ELEMENTWISE and all(_fits(walk, name) for name in uses(node)):
        tables = [(f"i{i}", name) for i, name in enumerate(node.input) if name and _is_table(walk, name)]
        rows = {place: _row(walk, node, name, size, front) for place, name in tables}
        step = walk.emit_like(node, 0, **rows).output[0]
    elif node.op_type == "Softmax" and _axis(walk, node) == len(walk.facts.dims(out)) - 1:
        step = walk.emit_like(node, 0, i0=_started(walk, squares[0])).output[0]
    elif node.op_type == "MatMul" and node.input[0] in squares and _offset(walk, node.input[1]) == front:
        made = walk.emit_like(node, 0, i1=walk.window(node.input[1], size - 1))
        walk.set_output(node, out, made.output[0], "per_step", 0)
        return
    else:
        raise walk.refuse(node, "compares every timestep with every other in a way without a rule", _WHY)
    walk.tensors[out] = StepTensor("scores", step, front, window=size)


def attention(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Attention as one operator: what it looks back on grows with the stream."""
    if walk.timed(node, node.input[1:3]):
        if len(node.input) > 3 and node.input[3]:
            raise walk.refuse(
                node,
                "attends over time with a mask that cannot be read in this form of it",
                "Export with an opset below 23, where attention is written as MatMul and Softmax.",
            )
        raise walk.refuse(node, "attends to all timesteps before, so its state would grow without end", _UNBOUNDED)
    pointwise(walk, node)


def _window(walk: StreamingWalk, node: onnx.NodeProto, front: int) -> int:
    """Return how many timesteps the attention that begins here looks at, this one included."""
    weights = _softmax_behind(walk, node.output[0])
    if weights is None:
        raise walk.refuse(node, "compares every timestep with every other", _WHY)
    sizes = set()
    for value in walk.facts.values(weights):
        seen = (value != 0).reshape(-1, *value.shape[-2:]).any(axis=0)
        query, key = np.nonzero(seen)
        ages = query + front - key
        if (ages < 0).any():
            raise walk.refuse(node, "attends to timesteps to come", _WHY)
        sizes.add(int(ages.max()) + 1)
    if len(sizes) == 1:
        return sizes.pop()
    if walk.length is None:
        raise walk.refuse(node, "attends to all timesteps before, so its state would grow without end", _UNBOUNDED)
    return walk.length + front


def _softmax_behind(walk: StreamingWalk, name: str) -> str | None:
    """Return the output of the softmax that scores go into, through operators that keep their places."""
    for node in walk.model.graph.node:
        if name not in node.input:
            continue
        if node.op_type == "Softmax":
            return str(node.output[0])
        if node.op_type in _ELEMENTWISE:
            return _softmax_behind(walk, node.output[0])
    return None


def _offset(walk: StreamingWalk, name: str) -> int:
    offset = walk.tensors[name].offset
    return 0 if offset is None else offset


def _axis(walk: StreamingWalk, node: onnx.NodeProto) -> int:
    rank = len(walk.facts.dims(node.output[0]))
    return int(attributes(node).get("axis", -1 if walk.opset >= 13 else 1)) % rank


def _is_table(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has a number for every pair of timesteps, by its sizes alone."""
    return name in walk.sized and sum(dim.has_time for dim in walk.facts.dims(name)) == 2


def _fits(walk: StreamingWalk, name: str) -> bool:
    tensor = walk.tensors[name]
    return (
        tensor.kind == "scores"
        or _is_table(walk, name)
        or (tensor.kind in {"constant", "static"} and not _time(walk, name))
    )


def _time(walk: StreamingWalk, name: str) -> bool:
    return walk.facts.time_axis(name) is not None


def _row(walk: StreamingWalk, node: onnx.NodeProto, name: str, size: int, front: int) -> str:
    """Return a table's row for one timestep: its window, the same for all timesteps."""
    whole = [] if walk.facts.at_length is None else [walk.facts.at_length(name)]
    tables = [walk.facts.one_row(value, name) for value in (*whole, *walk.facts.values(name))]
    bands = [None if table is None else _band(table, size, front) for table in tables]
    first = bands[0]
    if first is None or any(band is None or not np.array_equal(band, first[..., -band.shape[-1] :]) for band in bands):
        raise walk.refuse(node, f"uses {name!r}, which depends on the position in the sequence", _WHY)
    return walk.graph.constant(first)


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


def _started(walk: StreamingWalk, name: str) -> str:
    """Return scores with the lowest number for places before the first of the keys."""
    graph, dtype, square = walk.graph, walk.dtype(name), walk.tensors[name]
    front = _offset(walk, name)
    if square.window <= front + 1:
        return square.step
    ages = graph.ints([age - front for age in range(square.window - 1, -1, -1)])
    too_early = graph.op("Less", walk.count(walk.facts.dims(name)), ages)
    lowest = graph.constant(np.asarray(np.finfo(dtype).min, dtype))
    return graph.op("Where", too_early, lowest, square.step)
