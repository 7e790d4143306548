"""Attention pooling: what a sum over time weighs, by a softmax over time or by answers for the whole sequence.

Such a weight changes for all timesteps with each new one. A value that it weighs has an answer for the timesteps so far
only once it is summed over them; until then the parts of this timestep are kept, and go through the nodes together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from itertools import zip_longest

import numpy as np
import onnx

from model_export.errors import RefusedModelError
from model_export.graph.nodes import attributes, uses
from model_export.streaming.axes.measured_shapes import Dim
from model_export.streaming.causality import check_causal
from model_export.streaming.constants import reshaped
from model_export.streaming.rules.elementwise import pointwise
from model_export.streaming.rules.products import einsum, matmul
from model_export.streaming.rules.quotients import (
    divisor_of, emit_again, is_beside, is_weight, part_of, quotient_of_sums, ranked, source, split,
)  # fmt: skip
from model_export.streaming.rules.reductions import count_so_far, is_whole, read_axes
from model_export.streaming.rules.weighted_sums import expanded, ones, summed_so_far
from model_export.streaming.step_graph import plain
from model_export.streaming.tensor import StepTensor
from model_export.streaming.time_weights import ONE, Part, TimeWeights, joint_dims
from model_export.streaming.walk import Rule, StreamingWalk


def softmax(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Softmax, LogSoftmax: over time its answers change with each timestep; a step has those of a sum that they weigh."""
    name, out = node.input[0], node.output[0]
    axis = int(attributes(node).get("axis", -1)) % max(len(walk.facts.dims(name)), 1)
    over_time = walk.opset >= 13 and walk.facts.time_axis(name) == axis and is_whole(walk, name)
    pointwise(walk, node)
    if not over_time:
        return
    try:
        check_causal(walk, node, out)
    except RefusedModelError as exc:
        scores = Part(walk.operand(name, 0), walk.facts.dims(name))
        infinite = any(np.isneginf(value).any() for value in walk.facts.values(name))
        weights = TimeWeights(scores, is_log=node.op_type == "LogSoftmax", mask=_mask(walk, name), infinite=infinite)
        walk.tensors[out] = StepTensor("unsupported", error=exc, weights=weights)


def with_weights(operator: str, otherwise: Rule) -> Rule:
    """Return the rule of an operator that may take a weight over time; `otherwise` is its rule without one."""

    def rule(walk: StreamingWalk, node: onnx.NodeProto) -> None:
        waiting = list(dict.fromkeys(name for name in uses(node) if walk.tensors[name].weights is not None))
        if waiting:
            if (len(waiting) > 1 and operator != "Concat") or not WEIGHTED[operator](walk, node, waiting[0]):
                walk.need(*waiting)
            return
        if operator == "Div" and quotient_of_sums(walk, node):
            return
        try:
            otherwise(walk, node)
        except RefusedModelError as exc:
            if (weights := _by_the_whole(walk, node)) is None:
                raise
            walk.tensors[node.output[0]] = StepTensor("unsupported", error=exc, weights=weights)

    return rule


def _by_the_whole(walk: StreamingWalk, node: onnx.NodeProto) -> TimeWeights | None:
    """Mul, Div or Sub of a value of each timestep and an answer for the whole sequence; None: it is not that."""
    if node.op_type not in {"Mul", "Div", "Sub"} or walk.opset < 13 or not _keeps_time(walk, node.output[0]):
        return None
    name, whole = node.input if is_whole(walk, node.input[0]) or node.op_type != "Mul" else node.input[::-1]
    if not is_whole(walk, name) or walk.tensors[whole].kind != "final":
        return None
    rank = len(walk.facts.dims(node.output[0]))
    by = part_of(walk, whole, rank)
    if node.op_type == "Sub":
        infinite = any(np.isneginf(value).any() for value in walk.facts.values(name))
        return TimeWeights(part_of(walk, name, rank), shift=by, is_log=True, infinite=infinite)
    weight, values = split(walk, name, whole)
    return TimeWeights(
        weight=part_of(walk, weight, rank) if weight else None,
        values=part_of(walk, values, rank) if values else None,
        factor=_joined(walk, node, None, by),
        divisor="" if weight else divisor_of(walk, whole),
    )


def _joined(walk: StreamingWalk, node: onnx.NodeProto, part: Part | None, by: Part) -> Part:
    """Return a part times or by another one; None: ones."""
    if part is None and node.op_type == "Mul":
        return by
    part = part or ones(walk, by, walk.dtype(node.output[0]))
    return Part(walk.graph.op(node.op_type, part.step, by.step), joint_dims(part.dims, by.dims))


def _product(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Mul or Div with a value of each timestep, or with an answer for the whole sequence."""
    weights, out = walk.tensors[name].weights, node.output[0]
    other = node.input[1] if node.input[0] == name else node.input[0]
    is_final = walk.tensors[other].kind == "final"
    if weights is None or weights.is_log or not (is_final or is_beside(walk, other)) or not _keeps_time(walk, out):
        return False
    if node.op_type == "Div" and node.input[0] != name:
        return False
    by, weights = _side_by_side(walk, out, other, weights)
    if is_final:
        divisor = weights.divisor or divisor_of(walk, other)
        made = replace(weights, factor=_joined(walk, node, weights.factor, by), divisor=divisor)
    elif node.op_type == "Mul" and weights.weight is None and is_weight(walk, other, weights.divisor):
        made = replace(weights, weight=by)
    else:
        made = replace(weights, values=_joined(walk, node, weights.values, by))
    return _set(walk, out, name, made)


def _difference(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Sub of another answer for the whole sequence, as the logarithm of a sum of exponentials."""
    weights, (left, right), out = walk.tensors[name].weights, node.input, node.output[0]
    if weights is None or weights.shift is None or not weights.is_log or not _keeps_time(walk, out):
        return False
    if left != name or walk.tensors[right].kind != "final":
        return False
    by, weights = _side_by_side(walk, out, right, weights)
    assert weights.shift is not None
    shift = Part(walk.graph.op("Add", weights.shift.step, by.step), joint_dims(weights.shift.dims, by.dims))
    return _set(walk, out, name, replace(weights, shift=shift))


def _exponential(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Exp of a logarithm of weights."""
    weights = walk.tensors[name].weights
    return bool(weights and weights.is_log) and _set(walk, node.output[0], name, replace(weights, is_log=False))


def _masked(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Where that has zeros in the place of some weights: a product with zeros and ones."""
    weights, (kept, left, right), out = walk.tensors[name].weights, node.input, node.output[0]
    place, other = (0, right) if left == name else (1, left)
    zero = walk.known(other)
    if weights is None or weights.is_log or zero is None or any(np.any(value) for value in zero):
        return False
    if not is_beside(walk, kept) or not _keeps_time(walk, out):
        return False
    if weights.shift is None and f"{source(walk, kept)} {place}" == weights.mask:
        weights = replace(weights, zero_of_nothing=True)
    elif weights.infinite:
        return False
    by, weights = _side_by_side(walk, out, kept, weights)
    values = weights.values or ones(walk, by, walk.dtype(out))
    both = [walk.operand(other), values.step] if place else [values.step, walk.operand(other)]
    now = Part(walk.graph.op("Where", by.step, *both), joint_dims(by.dims, values.dims))
    return _set(walk, out, name, replace(weights, values=now))


def _mask(walk: StreamingWalk, name: str) -> str:
    """Return the condition of the Where that makes a tensor, and which of its values are kept; empty: none does."""
    maker = walk.makers.get(name)
    if maker is None or maker.op_type != "Where":
        return ""
    return f"{source(walk, maker.input[0])} {int(walk.tensors[maker.input[1]].kind == 'constant')}"


def _same(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Identity; Expand and Tile along axes of length 1."""
    out, weights = node.output[0], walk.tensors[name].weights
    rank = len(walk.facts.dims(out))
    pairs = zip_longest(walk.facts.dims(name)[::-1], walk.facts.dims(out)[::-1], fillvalue=ONE)
    if weights is None or not _keeps_time(walk, out) or any(a != b and a.at_one_step() != (1, 0) for a, b in pairs):
        return False
    return _set(walk, out, name, weights.mapped(lambda part: ranked(walk, part, rank)))


def _transposed(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Transpose of all parts."""
    weights, rank = walk.tensors[name].weights, len(walk.facts.dims(name))
    perm = attributes(node).get("perm") or list(range(rank))[::-1]

    def moved(part: Part) -> Part:
        return Part(emit_again(walk, node, part.step), tuple(part.dims[axis] for axis in perm))

    return bool(weights) and _set(walk, node.output[0], name, weights.mapped(moved))


def _reshaped(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Squeeze, Unsqueeze, Reshape, Flatten that leave the order of the numbers in front of time, and behind it."""
    weights, out = walk.tensors[name].weights, node.output[0]
    if weights is None or not _keeps_time(walk, out):
        return False
    axes = [walk.facts.time_axis(given) or 0 for given in (name, out)]
    for before, after in zip(walk.facts.values(name), walk.facts.values(out), strict=True):
        if np.prod(before.shape[: axes[0]]) != np.prod(after.shape[: axes[1]]):
            return False
    whole, dims = walk.facts.dims(name), walk.facts.dims(out)

    def changed(part: Part) -> Part:
        return Part(reshaped(walk.graph, expanded(walk, part, whole).step, dims), dims)

    return _set(walk, out, name, weights.mapped(changed))


def _picked(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Gather, Slice and Split along another axis than time."""
    weights, axes = walk.tensors[name].weights, _axes_cut(walk, node)
    if weights is None or node.input[0] != name or axes is None or walk.facts.time_axis(name) in axes:
        return False
    whole = weights.mapped(lambda part: expanded(walk, part, walk.facts.dims(name)))
    cut = {id(part): walk.emit_like(node, 0, i0=part.step) for part in whole.parts}
    for made in cut.values():
        made.output[:] = [walk.graph.unique(given) for given in made.output]
    for place, out in enumerate(node.output):
        dims = walk.facts.dims(out)
        _set(walk, out, name, whole.mapped(lambda part, at=place, of=dims: Part(cut[id(part)].output[at], of)))
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


def _joint(walk: StreamingWalk, node: onnx.NodeProto, _: str) -> bool:
    """Concat of weights of one kind, along another axis than time."""
    out = node.output[0]
    all_given = [walk.tensors[name].weights for name in node.input]
    given = [weights for weights in all_given if weights is not None]
    axis = int(attributes(node)["axis"]) % len(walk.facts.dims(out))
    kinds = {(w.is_log, w.scores is None, w.shift is None, w.weight is None) for w in given}
    if len(given) < len(all_given) or len(kinds) > 1 or walk.facts.time_axis(out) == axis or given[0].scores is None:
        return False

    def joined(field: str) -> Part | None:
        parts = [getattr(weights, field) for weights in given]
        if not any(parts):
            return None
        shapes = [walk.facts.dims(name) for name in node.input]
        filled = [
            part or ones(walk, weights.scores, walk.dtype(out)) for part, weights in zip(parts, given, strict=True)
        ]
        steps = [expanded(walk, part, dims).step for part, dims in zip(filled, shapes, strict=True)]
        return Part(walk.graph.op("Concat", *steps, axis=axis), walk.facts.dims(out))

    fields = ("scores", "shift", "weight", "values", "factor")
    return _set(walk, out, node.input[0], replace(given[0], **{field: joined(field) for field in fields}))


def _sum(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """ReduceSum or ReduceMean over time."""
    weights, dims = walk.tensors[name].weights, walk.facts.dims(name)
    if weights is None or weights.is_log or walk.facts.time_axis(name) not in read_axes(walk, node):
        return False
    total = expanded(walk, summed_so_far(walk, plain(node.name), weights, walk.dtype(name)), dims)
    made = walk.emit_like(node, 0, i0=total.step).output[0]
    if node.op_type == "ReduceMean":
        out = node.output[0]
        made = walk.graph.op("Div", made, count_so_far(walk, walk.facts.dims(out), walk.dtype(out)))
    walk.set_output(node, node.output[0], made, "final")
    return True


WEIGHTED: dict[str, Callable[[StreamingWalk, onnx.NodeProto, str], bool]] = {
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(("Expand", "Identity", "Tile"), _same),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _reshaped),
    **dict.fromkeys(("Gather", "Slice", "Split"), _picked),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _sum),
    "Concat": _joint, "Einsum": einsum, "Exp": _exponential, "MatMul": matmul, "Sub": _difference,
    "Transpose": _transposed, "Where": _masked,
}  # fmt: skip
"""What operators make of a weight over time; False: nothing that a step can have."""


def _side_by_side(walk: StreamingWalk, out: str, other: str, weights: TimeWeights) -> tuple[Part, TimeWeights]:
    """Return an operand and weights with as many axes as the result has."""
    rank = len(walk.facts.dims(out))
    return part_of(walk, other, rank), weights.mapped(lambda part: ranked(walk, part, rank))


def _set(walk: StreamingWalk, out: str, name: str, weights: TimeWeights) -> bool:
    """Set the weights of an output, which is refused for other uses as `name` is."""
    walk.tensors[out] = replace(walk.tensors[name], weights=weights)
    return True


def _keeps_time(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has one axis of the timesteps, and nothing else on it."""
    times = [dim for dim in walk.facts.dims(name) if dim.has_time]
    return times == [Dim(Fraction(0), steps=Fraction(1))]
