"""Sums over time of weighted values, of the timesteps so far: a running weighted mean, times the sum of the weights.

A running sum loses digits in a long stream, where each new value is small beside it; a mean does not. Where scores may
be large, all exponentials are relative to the largest score so far; when that grows, the sum of the weights is scaled
down. All states stay finite, whatever is masked by scores of minus infinity or by weights of zero.
"""

from __future__ import annotations

import math

import numpy as np
import onnx

from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.rules.elementwise import pointwise
from stepwell_export.streaming.rules.pooling.parts import times
from stepwell_export.streaming.rules.reductions import is_whole, over_time
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.tensor import TimeWeights, Total, WeightedPart, joint_dims
from stepwell_export.streaming.walk import StreamingWalk

_SMALL = 30
"""Scores that cannot be larger have exponentials that float32 adds up for as long as a stream may be."""

_EVEN = 1000
"""How many times as much as another timestep one may weigh that is still added like any other."""


def summed_so_far(walk: StreamingWalk, label: str, weights: TimeWeights, dtype: str) -> WeightedPart:
    """Emit the sum over the timesteps so far; all parts have as many axes as the result, whose time axis has length 1.

    Args:
        walk: The walk.
        label: What its states are named after.
        weights: What is summed up.
        dtype: NumPy name of its type.
    """
    graph, values = walk.graph, weights.values
    counted = weights.scores or weights.weight
    if counted is None:
        assert values is not None
        state, spec = graph.state_like(f"{label}.sum", values.dims, dtype, None)
        added = graph.op("Add", state, values.step)
        graph.next_state_like(spec, added, values.dims)
        return times(walk, WeightedPart(added, values.dims), weights.factor)
    so_far = _total(walk, label, weights, counted, dtype)
    if weights.scores is not None and weights.weight is not None:
        values = times(walk, weights.weight, values)
    mean = None if values is None else _mean(walk, label, values, so_far, dtype)
    if weights.scores is None or weights.shift is not None:
        factor = times(walk, so_far.total, weights.factor)
        if weights.scores is not None and weights.shift is not None:
            relative = graph.op("Exp", graph.op("Sub", so_far.largest, weights.shift.step))
            factor = times(walk, factor, WeightedPart(relative, joint_dims(counted.dims, weights.shift.dims)))
        return factor if mean is None else times(walk, mean, factor)
    if mean is not None and (weights.zero_of_nothing or weights.bounds[0] > -math.inf):
        return times(walk, mean, weights.factor)
    # their sum is at least 1, unless all scores so far are minus infinity: then the answer is NaN
    some = graph.op("Min", so_far.total.step, graph.constant(np.asarray(1, dtype)))
    result = mean or WeightedPart(some, counted.dims)
    return times(walk, WeightedPart(graph.op("Div", result.step, some), result.dims), weights.factor)


@over_time
def log_sum_exp(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """ReduceLogSumExp: that of the timesteps so far."""
    name = node.input[0]
    if not is_whole(walk, name):
        pointwise(walk, node)
        return
    scores = WeightedPart(walk.operand(name, 0), walk.facts.dims(name))
    so_far = _total(walk, plain(node.name), TimeWeights(scores), scores, walk.dtype(name))
    result = walk.graph.op("Add", so_far.largest, walk.graph.op("Log", so_far.total.step))
    walk.set_output(node, node.output[0], walk.emit_like(node, 0, i0=result).output[0], "at_end")


def _total(walk: StreamingWalk, label: str, weights: TimeWeights, counted: WeightedPart, dtype: str) -> Total:
    """Emit the sum of weights so far, once for all sums that they apply to.

    Args:
        walk: The walk.
        label: What its states are named after.
        weights: What they are, and between which numbers they lie.
        counted: The weights, or the scores that they are exponentials of.
        dtype: NumPy name of their type.
    """
    graph, is_score = walk.graph, counted is weights.scores
    low, high = weights.bounds
    is_small = is_score and weights.shift is None and max(-low, high) <= _SMALL and dtype != "float16"
    masks = bool(weights.divisor) and walk.dtype(weights.divisor) == "bool"
    has_some = low > (-math.inf if is_score else 0)
    is_even = (has_some and not weights.is_uneven) if is_score else masks or low * _EVEN >= high > 0
    key = f"{counted.step} {is_score} {is_small} {has_some} {is_even}"
    if key not in walk.totals:
        before, spec = graph.state_like(f"{label}.weights", counted.dims, dtype, None)
        now, highest = counted.step, ""
        if is_small:
            now = graph.op("Exp", now)
        elif is_score:
            lowest = np.asarray(np.finfo(dtype).min, dtype)
            largest, largest_spec = graph.state_like(
                f"{label}.largest_score", counted.dims, dtype, _row(counted.dims, lowest)
            )
            # also of the lowest: scores, or a stored state of fewer bits, may be minus infinity
            highest = graph.op("Max", largest, now, *([] if has_some else [graph.constant(lowest)]))
            graph.next_state_like(largest_spec, highest, counted.dims)
            now = graph.op("Exp", graph.op("Sub", now, highest))
            before = graph.op("Mul", before, graph.op("Exp", graph.op("Sub", largest, highest)))
        total = divisor = graph.op("Add", before, now)
        graph.next_state_like(spec, total, counted.dims)
        if not has_some:
            divisor = graph.op("Max", total, graph.constant(np.asarray(np.finfo(dtype).tiny, dtype)))
        is_heavy = "" if is_even else graph.op("Less", before, now)
        lighter = graph.op("Where", is_heavy, graph.op("Neg", before), now) if is_heavy else now
        walk.totals[key] = Total(
            WeightedPart(total, counted.dims), is_heavy, graph.op("Div", lighter, divisor), highest
        )
    return walk.totals[key]


def _mean(walk: StreamingWalk, label: str, values: WeightedPart, so_far: Total, dtype: str) -> WeightedPart:
    """Move the mean so far towards this timestep's values, or these towards the mean, whichever weighs less.

    Neither then cancels the other out, so that a mean of a few small numbers keeps its digits.
    """
    graph, dims = walk.graph, joint_dims(values.dims, so_far.total.dims)
    state, spec = graph.state_like(f"{label}.mean", dims, dtype, None)
    nearest = graph.op("Where", so_far.is_heavy, values.step, state) if so_far.is_heavy else state
    mean = graph.op("Add", nearest, graph.op("Mul", graph.op("Sub", values.step, state), so_far.share))
    graph.next_state_like(spec, mean, dims)
    return WeightedPart(mean, dims)


def _row(dims: tuple[Dim, ...], fill: Array) -> Array:
    return np.full([fixed or per_row for fixed, per_row in (dim.at_one_step() for dim in dims)], fill)
