"""The parts of a value that is weighed over time, as tensors of the step graph, and their layouts."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.known_values import reshaped, shape_at_one_step
from stepwell_export.streaming.rules.reductions import is_whole
from stepwell_export.streaming.tensor import ONE, PARTS, TimeWeights, WeightedPart, joint_dims
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


# ---------------------------------------------------------------- layouts: all parts of a value are brought along


def repeated(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Identity and what is none: Cast to the same type, Dropout; Expand and Tile along axes of length 1."""
    out, weights = node.output[0], walk.tensors[name].weights
    if walk.dtype(out) != walk.dtype(name) or any(node.output[1:]):
        return False
    rank = len(walk.facts.dims(out))
    pairs = zip_longest(walk.facts.dims(name)[::-1], walk.facts.dims(out)[::-1], fillvalue=ONE)
    if weights is None or not keeps_time(walk, out) or any(a != b and a.at_one_step() != (1, 0) for a, b in pairs):
        return False
    return set_weights(walk, out, name, weights.mapped(lambda part: ranked(walk, part, rank)))


def permuted(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Transpose of all parts."""
    weights, rank = walk.tensors[name].weights, len(walk.facts.dims(name))
    perm = attributes(node).get("perm") or list(range(rank))[::-1]

    def moved(part: WeightedPart) -> WeightedPart:
        return WeightedPart(emit_again(walk, node, part.step)[0], tuple(part.dims[axis] for axis in perm))

    return weights is not None and set_weights(walk, node.output[0], name, weights.mapped(moved))


def refolded(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Squeeze, Unsqueeze, Reshape, Flatten that leave the order of the numbers in front of time, and behind it."""
    weights, out = walk.tensors[name].weights, node.output[0]
    if weights is None or not keeps_time(walk, out):
        return False
    axes = [walk.facts.time_axis(given) or 0 for given in (name, out)]
    for before, after in zip(walk.facts.values(name), walk.facts.values(out), strict=True):
        if np.prod(before.shape[: axes[0]]) != np.prod(after.shape[: axes[1]]):
            return False
    whole, dims = walk.facts.dims(name), walk.facts.dims(out)

    def changed(part: WeightedPart) -> WeightedPart:
        return WeightedPart(reshaped(walk.graph, expanded(walk, part, whole).step, dims), dims)

    return set_weights(walk, out, name, weights.mapped(changed))


def picked(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Gather, Slice and Split along another axis than time."""
    weights, axes = walk.tensors[name].weights, _axes_cut(walk, node)
    if weights is None or node.input[0] != name or axes is None or walk.facts.time_axis(name) in axes:
        return False
    whole = weights.mapped(lambda part: expanded(walk, part, walk.facts.dims(name)))
    cut = {id(part): emit_again(walk, node, part.step) for part in whole.parts}
    for place, out in enumerate(node.output):
        parts = {key: WeightedPart(made[place], walk.facts.dims(out)) for key, made in cut.items()}
        set_weights(walk, out, name, whole.mapped(lambda part, cut_parts=parts: cut_parts[id(part)]))  # type: ignore[misc]
    return True


def _axes_cut(walk: StreamingWalk, node: onnx.NodeProto) -> list[int] | None:
    """Return the axes along which a node takes some elements; None: they are computed on the way."""
    rank = len(walk.facts.dims(node.input[0]))
    if node.op_type != "Slice":
        constant = all(walk.tensors[name].kind == "constant" for name in node.input[1:] if name)
        return [int(attributes(node).get("axis", 0)) % rank] if constant else None
    known = [walk.known(name) for name in node.input[1:] if name]
    if any(values is None for values in known):
        return None
    count = len(known[0][0])
    return [int(axis) % rank for axis in (known[2][0] if len(node.input) > 3 and node.input[3] else range(count))]


def joint(walk: StreamingWalk, node: onnx.NodeProto, _: str) -> bool:
    """Concat of weights of one kind, along another axis than time."""
    out = node.output[0]
    given = [walk.tensors[name].weights for name in node.input]
    shapes = [walk.facts.dims(name) for name in node.input]
    axis = int(attributes(node)["axis"]) % len(shapes[0])
    kinds = {w and (w.is_log, w.shift is None, w.weight is None, w.zero_of_nothing) for w in given}
    if len(kinds) > 1 or walk.facts.time_axis(out) == axis or any(w is None or w.scores is None for w in given):
        return False
    all_given = [weights for weights in given if weights is not None]

    def joined(field: str) -> WeightedPart | None:
        parts = [getattr(weights, field) for weights in all_given]
        if not any(parts):
            return None
        filled = [part or ones(walk, w.parts[0], walk.dtype(out)) for part, w in zip(parts, all_given, strict=True)]
        steps = [expanded(walk, part, dims).step for part, dims in zip(filled, shapes, strict=True)]
        return WeightedPart(walk.graph.op("Concat", *steps, axis=axis), walk.facts.dims(out))

    parts: dict[str, Any] = {field: joined(field) for field in PARTS}
    made = TimeWeights(
        **parts,
        is_log=all_given[0].is_log,
        infinite=any(weights.infinite for weights in all_given),
        bounds=(min(weights.bounds[0] for weights in all_given), max(weights.bounds[1] for weights in all_given)),
        is_uneven=any(weights.is_uneven for weights in all_given),
        zero_of_nothing=all_given[0].zero_of_nothing,
    )
    return set_weights(walk, out, node.input[0], made)
