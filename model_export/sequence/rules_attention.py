"""Attention whose mask lets a fixed number of timesteps through: keys and values of that window are carried.

The window is read off the attention itself as it ran: the softmax is zero outside it, for both lengths.
"""

from __future__ import annotations

import numpy as np
import onnx

from model_export.manifest import Array
from model_export.sequence.rules_plain import pointwise
from model_export.sequence.tensor import Tensor
from model_export.sequence.walk import Walk

_ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Dropout", "IsNaN", "Max", "Min", "Clip"}
_WHY = "Give it a mask that lets a fixed number of past timesteps through, and train it that way."


def matmul(walk: Walk, node: onnx.NodeProto) -> None:
    """MatMul; queries times keys, over a window."""
    times = [axis for axis, dim in enumerate(walk.facts.dims(node.output[0])) if dim.has_time]
    queries, keys = node.input
    rank = len(walk.facts.dims(node.output[0]))
    if times != [rank - 2, rank - 1] or len(walk.timed(node)) < 2:
        pointwise(walk, node)
        return
    size = _window(walk, node)
    offset = min(_offset(walk, name) for name in (queries, keys))
    if offset:
        raise walk.refuse(node, "attends over a sequence that was shifted in time")
    made = walk.copy(node, 0, i1=_windowed(walk, node, keys, size))
    walk.tensors[node.output[0]] = Tensor("square", made.output[0], 0, window=size)


def on_square(walk: Walk, node: onnx.NodeProto) -> None:
    """Any node that takes what is measured between every timestep and every other: for one timestep, its window.

    Raises:
        RefusedModelError: It is no part of attention that is known here.
    """
    squares = [name for name in walk.uses(node) if walk.tensor(name).kind == "square"]
    size, out = walk.tensor(squares[0]).window, node.output[0]
    if node.op_type in _ELEMENTWISE and all(_fits(walk, name) for name in walk.uses(node)):
        rows = {f"i{i}": _row(walk, node, n, size) for i, n in enumerate(node.input) if n and _is_table(walk, n)}
        step = walk.copy(node, 0, **rows).output[0]
    elif node.op_type == "Softmax" and _axis(walk, node) == len(walk.facts.dims(out)) - 1:
        step = walk.copy(node, 0, i0=_started(walk, squares[0], size)).output[0]
    elif node.op_type == "MatMul" and node.input[0] in squares and walk.timed(node, [node.input[1]]):
        made = walk.copy(node, 0, i1=_windowed(walk, node, node.input[1], size))
        walk.give(node, out, made.output[0], "timed", 0)
        return
    else:
        raise walk.refuse(node, "compares every timestep with every other in a way without a rule", _WHY)
    walk.tensors[out] = Tensor("square", step, 0, window=size)


def attention(walk: Walk, node: onnx.NodeProto) -> None:
    """Attention as one operator: what it looks back on grows with the stream."""
    if walk.timed(node, node.input[1:3]):
        raise walk.refuse(node, "attends to all timesteps before, so its state would grow without end", _WHY)
    pointwise(walk, node)


def _window(walk: Walk, node: onnx.NodeProto) -> int:
    """Return how many timesteps the attention that begins here looks at, this one included."""
    weights = _softmax_behind(walk, node.output[0])
    if weights is None:
        raise walk.refuse(node, "compares every timestep with every other", _WHY)
    sizes = set()
    for value in walk.facts.values(weights):
        seen = (value != 0).reshape(-1, *value.shape[-2:]).any(axis=0)
        query, key = np.nonzero(seen)
        if (key > query).any():
            raise walk.refuse(node, "attends to timesteps to come", _WHY)
        sizes.add(int((query - key).max()) + 1)
    if len(sizes) > 1:
        raise walk.refuse(node, "attends to all timesteps before, so its state would grow without end", _WHY)
    return sizes.pop()


def _softmax_behind(walk: Walk, name: str) -> str | None:
    """Return the output of the softmax that scores go into, through operators that keep their places."""
    for node in walk.model.graph.node:
        if name not in node.input:
            continue
        if node.op_type == "Softmax":
            return str(node.output[0])
        if node.op_type in _ELEMENTWISE:
            return _softmax_behind(walk, node.output[0])
    return None


def _offset(walk: Walk, name: str) -> int:
    offset = walk.tensor(name).offset
    return 0 if offset is None else offset


def _windowed(walk: Walk, node: onnx.NodeProto, name: str, size: int) -> str:
    """Return the last timesteps of keys or values."""
    if _offset(walk, name):
        raise walk.refuse(node, "attends over a sequence that was shifted in time")
    return walk.window(name, size - 1)


def _axis(walk: Walk, node: onnx.NodeProto) -> int:
    rank = len(walk.facts.dims(node.output[0]))
    return int(walk.attributes(node).get("axis", -1 if walk.opset >= 13 else 1)) % rank


def _is_table(walk: Walk, name: str) -> bool:
    """Whether a tensor holds a number for every timestep against every other, from sizes alone."""
    return name in walk.sized and sum(dim.has_time for dim in walk.facts.dims(name)) == 2


def _fits(walk: Walk, name: str) -> bool:
    tensor = walk.tensor(name)
    return (
        tensor.kind == "square"
        or _is_table(walk, name)
        or (tensor.kind in {"known", "fixed"} and not _time(walk, name))
    )


def _time(walk: Walk, name: str) -> bool:
    return walk.facts.time_axis(name) is not None


def _row(walk: Walk, node: onnx.NodeProto, name: str, size: int) -> str:
    """Return a table's row for one timestep: its window, the same for all timesteps."""
    rows = {_band(walk, node, value, size).tobytes() for value in walk.facts.values(name)}
    row = _band(walk, node, walk.facts.value(name), size)
    if len(rows) > 1:
        raise walk.refuse(node, f"uses {name!r}, which depends on the number of timesteps", _WHY)
    return walk.graph.constant(row)


def _band(walk: Walk, node: onnx.NodeProto, table: Array, size: int) -> Array:
    """Return the last row's window of a table, which every other row must have too."""
    steps = table.shape[-1]
    last = table[..., -1:, steps - size :]
    for step in range(steps):
        there = min(size, step + 1)
        if not np.array_equal(table[..., step : step + 1, step + 1 - there : step + 1], last[..., size - there :]):
            raise walk.refuse(node, "masks or weighs timesteps by their position in the sequence", _WHY)
    return np.ascontiguousarray(last)


def _started(walk: Walk, name: str, size: int) -> str:
    """Return scores with the lowest number for the timesteps before the first one."""
    graph, dtype = walk.graph, walk.dtype(name)
    ages = graph.ints(list(range(size - 1, -1, -1)))
    too_early = graph.op("Less", walk.count(walk.facts.dims(name)), ages)
    lowest = graph.constant(np.asarray(np.finfo(dtype).min, dtype))
    return graph.op("Where", too_early, lowest, walk.tensor(name).step)
