"""Sums over time of weighted values, of the timesteps so far: a running weighted mean, times the sum of the weights.

A running sum loses digits in a long stream, where each new value is small beside it; a mean does not. Scores may be
large, so all exponentials are relative to the largest score so far; when that grows, the sum of the weights is scaled
down. All states stay finite, whatever is masked by scores of minus infinity or by weights of zero.
"""

from __future__ import annotations

import numpy as np

from model_export.manifest import Array
from model_export.streaming.axes.measured_shapes import Dim
from model_export.streaming.rules.pooling.parts import times
from model_export.streaming.time_weights import Part, TimeWeights, joint_dims
from model_export.streaming.walk import StreamingWalk


def summed_so_far(walk: StreamingWalk, label: str, weights: TimeWeights, dtype: str) -> Part:
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
        total = graph.op("Add", state, values.step)
        graph.next_state_like(spec, total, values.dims)
        return times(walk, Part(total, values.dims), weights.factor)
    total, share, largest = _total(walk, label, counted, dtype, is_score=weights.scores is not None)
    if weights.scores is not None and weights.weight is not None:
        values = times(walk, weights.weight, values)
    result = Part(total, counted.dims)
    if values is not None:
        result = _mean(walk, label, values, Part(share, counted.dims), dtype)
    if weights.scores is not None and weights.shift is None and not weights.zero_of_nothing:
        # the sum of the weights is at least 1, unless all scores so far are minus infinity: then the answer is NaN
        floor = total if values is None else graph.op("Min", total, graph.constant(np.asarray(1, dtype)))
        result = Part(graph.op("Div", result.step, floor), result.dims)
    elif weights.shift is not None or (weights.weight is not None and values is not None):
        result = times(walk, result, Part(total, counted.dims))
    if weights.scores is not None and weights.shift is not None:
        relative = graph.op("Exp", graph.op("Sub", largest, weights.shift.step))
        result = times(walk, result, Part(relative, joint_dims(counted.dims, weights.shift.dims)))
    return times(walk, result, weights.factor)


def _total(walk: StreamingWalk, label: str, part: Part, dtype: str, *, is_score: bool) -> tuple[str, str, str]:
    """Return the sum of the weights so far, this timestep's share of it, and the largest score."""
    graph, key = walk.graph, f"{part.step} {is_score}"
    if key not in walk.totals:
        before, spec = graph.state_like(f"{label}.weights", part.dims, dtype, None)
        now, highest = part.step, ""
        if is_score:
            lowest = _row(part.dims, float(np.finfo(dtype).min), dtype)
            largest, largest_spec = graph.state_like(f"{label}.largest_score", part.dims, dtype, lowest)
            highest = graph.op("Max", largest, part.step)
            graph.next_state_like(largest_spec, highest, part.dims)
            now = graph.op("Exp", graph.op("Sub", part.step, highest))
            decay = graph.op("Exp", graph.op("Sub", largest, highest))
        total = graph.op("Add", graph.op("Mul", before, decay) if is_score else before, now)
        graph.next_state_like(spec, total, part.dims)
        share = graph.op("Div", now, graph.op("Max", total, graph.constant(np.asarray(np.finfo(dtype).tiny, dtype))))
        walk.totals[key] = total, share, highest
    return walk.totals[key]


def _mean(walk: StreamingWalk, label: str, values: Part, share: Part, dtype: str) -> Part:
    """Move the mean so far towards this timestep's values."""
    graph, dims = walk.graph, joint_dims(values.dims, share.dims)
    state, spec = graph.state_like(f"{label}.mean", dims, dtype, None)
    mean = graph.op("Add", state, graph.op("Mul", graph.op("Sub", values.step, state), share.step))
    graph.next_state_like(spec, mean, dims)
    return Part(mean, dims)


def _row(dims: tuple[Dim, ...], fill: float, dtype: str) -> Array:
    return np.full([fixed or per_row for fixed, per_row in (dim.at_one_step() for dim in dims)], fill, dtype)
