r"""Variances over time: the mean square of what differs from the mean, for the timesteps so far.

Source: Welford 1962, "Note on a method for calculating corrected sums of squares and products".

Before and after:

    x (B, T, 4)                            x (B, 1, 4)   mean, variance so far
     |  \ ReduceMean over T                     |            |
     Sub                              ->       mean' = mean + (x - mean) / n
      | Mul with itself, ReduceMean            variance' = variance + ((x - mean) (x - mean') - variance) / n
    y (B, 4)                               y (B, 4)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx

from stepwell_export.graph.nodes import uses
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.rules.reductions import begins_with_the_sequence, count_so_far, read_axes
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.tensor import Deviation, StepTensor
from stepwell_export.streaming.walk import Rule, StreamingWalk

DEVIATING = ("Mul", "Pow", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Sub")
"""Operators that variances over time are made of."""
_MEANS = {"ReduceMean", "ReduceSum", "ReduceSumSquare"}
_DEVIATION_FIX = (
    "Every later timestep changes all differences from the mean over time. Their mean square can be followed: use the "
    "variance or the standard deviation over time. Or take differences from the mean of the timesteps so far: a "
    "cumulative sum, divided by how many there are. For skewness and other moments, take the last n timesteps, "
    "x[:, -n:], with n - 1 timesteps of zeros padded in front."
)


def with_deviations(otherwise: Rule) -> Rule:
    """Return the rule of an operator that variances are made of; `otherwise` is its rule for everything else."""

    def rule(walk: StreamingWalk, node: onnx.NodeProto) -> None:
        name = next((name for name in uses(node) if walk.tensors[name].deviation is not None), "")
        if not name:
            _difference_or(otherwise, walk, node)
        elif not _square(walk, node, name) and not _variance(walk, node, name):
            walk.need(name)

    return rule


def _difference_or(otherwise: Rule, walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Sub: what may be the difference from a mean over time is refused only if something else is made of it."""
    deviation = _difference(walk, node) if node.op_type == "Sub" else None
    try:
        otherwise(walk, node)
    except RefusedModelError as exc:
        if deviation is None:
            raise
        walk.tensors[node.output[0]] = StepTensor("refused", error=exc)
    if deviation is not None:
        tensor = walk.tensors[node.output[0]]
        if isinstance(tensor.error, RefusedModelError):
            tensor.error.fix = _DEVIATION_FIX
        walk.tensors[node.output[0]] = replace(tensor, deviation=deviation)


def _difference(walk: StreamingWalk, node: onnx.NodeProto) -> Deviation | None:
    """Return what a node subtracts its mean over time from; None: it does something else."""
    name, mean = node.input
    maker = walk.makers.get(mean)
    if maker is None or maker.op_type != "ReduceMean" or maker.input[0] != name:
        return None
    axes = read_axes(walk, maker)
    keeps_axes = len(walk.facts.dims(mean)) == len(walk.facts.dims(name))
    if walk.facts.time_axis(name) not in axes or not keeps_axes or np.dtype(walk.dtype(name)).kind != "f":
        return None
    is_timed = walk.tensors[name].kind == "per_step" and begins_with_the_sequence(walk, name)
    return Deviation(name, mean, tuple(axes)) if is_timed else None


def _square(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Mul and Pow: the square of a difference; return whether it is that."""
    tensor = walk.tensors[name]
    if tensor.deviation is None or tensor.deviation.is_squared:
        return False
    power = walk.known(node.input[1]) if node.op_type == "Pow" else None
    is_power = power is not None and power[0].size == 1 and power[0].item() == 2
    if not is_power and not (node.op_type == "Mul" and node.input[0] == node.input[1]):
        return False
    squared = replace(tensor.deviation, is_squared=True)
    walk.tensors[node.output[0]] = StepTensor("refused", error=tensor.error, deviation=squared)
    return True


def _variance(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """The sum or mean of squares of differences over the axes of the mean; return whether it is that."""
    deviation = walk.tensors[name].deviation
    if deviation is None or node.op_type not in _MEANS or (node.op_type == "ReduceSumSquare") == deviation.is_squared:
        return False
    if tuple(read_axes(walk, node)) != deviation.axes:
        return False
    graph, out, offset = walk.graph, node.output[0], walk.tensors[deviation.tensor].offset or 0
    x = walk.operand(deviation.tensor, offset, node)
    now = walk.emit_like(walk.makers[deviation.mean], offset).output[0]
    kept = walk.facts.dims(deviation.mean)
    before, mean = _running(walk, node, "mean", now, dims=kept, offset=offset, is_mean=True)
    product = graph.op("Mul", graph.op("Sub", x, before), graph.op("Sub", x, mean))
    made = walk.emit_like(node, offset, i0=product)
    is_mean = node.op_type == "ReduceMean"
    made.op_type = "ReduceMean" if is_mean else "ReduceSum"
    label, dims = "variance" if is_mean else "squares", walk.facts.dims(out)
    squares = graph.op("Relu", made.output[0])  # they are below 0 by rounding alone
    _, result = _running(walk, node, label, squares, dims=dims, offset=offset, is_mean=is_mean)
    walk.set_output(node, out, result, "at_end")
    return True


def _running(
    walk: StreamingWalk, node: onnx.NodeProto, label: str, now: str, *, dims: Sequence[Dim], offset: int, is_mean: bool
) -> tuple[str, str]:
    """Emit a running sum or mean; return what it was before this timestep, and what it is.

    Args:
        walk: The walk.
        node: The node whose name the state has.
        label: The state's name behind it.
        now: What this timestep adds.
        dims: The axes of the sum.
        offset: Below 0 the first timesteps do not count.
        is_mean: Whether it is a mean.
    """
    graph, dtype = walk.graph, walk.dtype(node.output[0])
    before, spec = graph.state_like(f"{plain(node.name)}.{label}", dims, dtype)
    if is_mean:
        now = graph.op("Div", graph.op("Sub", now, before), count_so_far(walk, dims, dtype, offset))
    after = graph.op("Add", before, now)
    if offset < 0:
        after = graph.op("Where", walk.has_seen(-offset, dims), after, before)
    graph.next_state_like(spec, after, dims)
    return before, after
