"""The parts of a value that is weighed over time, as tensors of the step graph."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx

from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.known_values import reshaped, shape_at_one_step
from stepwell_export.streaming.rules.reductions import is_whole
from stepwell_export.streaming.tensor import ONE, TimeWeights, WeightedPart, joint_dims
from stepwell_export.streaming.walk import StreamingWalk


def is_beside(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has its value for each timestep of the sequence as that comes, or one for all."""
    tensor = walk.tensors[name]
    equal = tensor.kind == "per_step" and tensor.offset is None
    return equal or tensor.kind in {"constant", "static", "by_position"} or is_whole(walk, name)


def part_of(walk: StreamingWalk, name: str, rank: int) -> WeightedPart:
    """Return a tensor at this timestep, with axes in front of its own where it has fewer than `rank`."""
    return ranked(walk, WeightedPart(walk.operand(name, 0), walk.facts.dims(name)), rank)


def side_by_side(walk: StreamingWalk, out: str, other: str, weights: TimeWeights) -> tuple[WeightedPart, TimeWeights]:
    """Return an operand and weights with as many axes as the result has."""
    rank = len(walk.facts.dims(out))
    return part_of(walk, other, rank), weights.mapped(lambda part: ranked(walk, part, rank))


def ranked(walk: StreamingWalk, part: WeightedPart, rank: int) -> WeightedPart:
    """Return a part with axes of length 1 in front of its own where it has fewer than `rank`."""
    if len(part.dims) >= rank:
        return part
    dims = (ONE,) * (rank - len(part.dims)) + part.dims
    return WeightedPart(reshaped(walk.graph, part.step, dims), dims)


def expanded(walk: StreamingWalk, part: WeightedPart, dims: tuple[Dim, ...]) -> WeightedPart:
    """Return a part with all elements of these axes."""
    if [dim.at_one_step() for dim in part.dims] == [dim.at_one_step() for dim in dims]:
        return part
    return WeightedPart(walk.graph.op("Expand", part.step, shape_at_one_step(walk.graph, dims)), dims)


def ones(walk: StreamingWalk, like: WeightedPart, dtype: str) -> WeightedPart:
    """Return ones, with as many axes as a part has."""
    shape = (1,) * len(like.dims)
    return WeightedPart(walk.graph.constant(np.ones(shape, dtype)), (ONE,) * len(shape))


def times(walk: StreamingWalk, part: WeightedPart, other: WeightedPart | None) -> WeightedPart:
    """Return the product of two parts; None: ones."""
    if other is None:
        return part
    return WeightedPart(walk.graph.op("Mul", part.step, other.step), joint_dims(part.dims, other.dims))


def emit_again(walk: StreamingWalk, node: onnx.NodeProto, step: str) -> list[str]:
    """Emit a node on another first input, under names of its own; return its outputs."""
    made = walk.emit_like(node, 0, i0=step)
    made.name = walk.graph.unique(node.name)
    made.output[:] = [walk.graph.unique(name) for name in made.output]
    return list(made.output)


def set_weights(walk: StreamingWalk, out: str, name: str, weights: TimeWeights) -> bool:
    """Set the weights of an output, which is refused for other uses as `name` is."""
    walk.tensors[out] = replace(walk.tensors[name], weights=weights)
    return True


def keeps_time(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has one axis of the timesteps, and nothing else on it."""
    times = [dim for dim in walk.facts.dims(name) if dim.has_time]
    return times == [Dim(Fraction(0), steps=Fraction(1))]
