r"""What is computed from the number of timesteps, such as what a sum over time is divided by: of the sequence so far.

Before and after:

    x (B, T, 4) ----> Shape, Gather: T     x (B, 1, 4)   sum     count of timesteps
       | ReduceSum      | Cast                   \     /           | Cast
        \______________/              ->          Add             /
               Div                                 \_____________/
             y (B, 4)                                 Div: y (B, 4)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from stepwell_export.graph.nodes import renamed
from stepwell_export.graph.operators import RESHAPING
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.walk import StreamingWalk

_COMPUTING = {"Abs", "Add", "Cast", "Div", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub"}
"""Operators that compute with single numbers, and give one number for each row where they get one."""


def lengths_so_far(walk: StreamingWalk, node: onnx.NodeProto) -> dict[str, str]:
    """Emit the inputs of a node that follow from the number of timesteps, beside an answer for the whole sequence.

    Returns:
        The emitted tensors by place, `i0`, `i1` and so on; nothing where the node takes each timestep.
    """
    kinds = {walk.tensors[name].kind for name in node.input if name}
    if node.op_type not in _COMPUTING or "at_end" not in kinds or kinds - {"at_end", "static", "constant"}:
        return {}
    emitted, dims = {}, walk.facts.dims(node.output[0])
    for place, name in enumerate(node.input):
        if walk.tensors[name].kind == "constant" and _grows(walk, name):
            emitted[f"i{place}"] = _so_far(walk, name, dims)
    return {place: tensor for place, tensor in emitted.items() if tensor}


def _grows(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor is a single number that depends on the number of timesteps."""
    first, *others = walk.facts.values(name)
    return (
        isinstance(first, np.ndarray) and first.size == 1 and any(not np.array_equal(first, other) for other in others)
    )


def _so_far(walk: StreamingWalk, name: str, dims: Sequence[Dim]) -> str:
    """Emit a single number for the timesteps so far, one for each row; empty: there is no way to.

    Args:
        walk: The walk.
        name: The tensor of the sequence graph.
        dims: The axes of what it broadcasts to.
    """
    graph, value = walk.graph, walk.facts.value(name)
    if not _grows(walk, name):
        return walk.operand(name) if value.size == 1 else ""
    if value.dtype.kind in "iu":
        number = walk.facts.number(name)
        if number.has_batch or number.steps.denominator > 1 or number.fixed.denominator > 1:
            return ""
        count = graph.count_like(dims, 1)
        count = graph.op("Mul", count, graph.ints([int(number.steps)])) if number.steps != 1 else count
        count = graph.op("Add", count, graph.ints([int(number.fixed)])) if number.fixed else count
        return count if value.dtype == np.int64 else graph.cast(count, value.dtype.name)
    node = walk.makers.get(name)
    if node is None or node.op_type not in _COMPUTING | RESHAPING:
        return ""
    if node.op_type in RESHAPING:
        return _so_far(walk, node.input[0], dims)
    inputs = [_so_far(walk, each, dims) for each in node.input]
    if not all(inputs):
        return ""
    out = graph.unique(f"{name}/so_far")
    graph.nodes.append(renamed(node, {**dict(zip(node.input, inputs, strict=True)), name: out}, name=node.name))
    return out
