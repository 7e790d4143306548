"""Products, quotients and exponentials of values that are weighed over time, and what begins such a weight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming.causality import check_causal
from stepwell_export.streaming.rules.elementwise import by_timestep, pointwise
from stepwell_export.streaming.rules.pooling.parts import (
    emit_again,
    expanded,
    is_beside,
    keeps_time,
    ones,
    part_of,
    set_weights,
    side_by_side,
)
from stepwell_export.streaming.rules.pooling.ranges import COPYING, is_far, is_gate, range_of
from stepwell_export.streaming.rules.pooling.sums import summed_so_far
from stepwell_export.streaming.rules.reductions import is_whole, read_axes
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.tensor import ANY, StepTensor, TimeWeights, WeightedPart, joint_dims
from stepwell_export.streaming.walk import StreamingWalk

# ---------------------------------------------------------------- quotients by a sum over time: a running mean

_OVER_A_SUM = COPYING | {"Add", "Clip", "Div", "Max", "Reciprocal"}


def quotient_of_sums(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Div of `sum(x * w)` by `sum(w)`, sums over time of weights that are never negative: a weighted mean.

    Returns:
        Whether it was that, and is emitted.
    """
    top, bottom = node.input
    maker = walk.makers.get(top)
    if {walk.tensors[name].kind for name in node.input} != {"at_end"} or maker is None or maker.op_type != "ReduceSum":
        return False
    product = maker.input[0]
    if not is_whole(walk, product) or walk.facts.time_axis(product) not in read_axes(walk, maker):
        return False
    weight, values = split(walk, product, bottom)
    if not weight or not values:
        return False
    dims = walk.facts.dims(product)
    weight_part, values_part = (part_of(walk, factor, len(dims)) for factor in (weight, values))
    weights = TimeWeights(
        weight=weight_part, values=values_part, divisor=divisor_of(walk, bottom), bounds=range_of(walk, weight)
    )
    total = expanded(walk, summed_so_far(walk, plain(node.name), weights, walk.dtype(product)), dims)
    (reduced,) = emit_again(walk, maker, total.step)
    walk.set_output(node, node.output[0], walk.emit_like(node, 0, i0=reduced).output[0], "at_end")
    return True


def split(walk: StreamingWalk, name: str, total: str) -> tuple[str, str]:
    """Return the factor of a tensor that `total` is the sum over time of, and the other one.

    Either is empty where there is none. Only a factor that is never negative counts: a sum of others may be near zero.
    """
    summed = divisor_of(walk, total)
    if is_weight(walk, name, summed):
        return name, ""
    maker = walk.makers.get(name)
    if maker is not None and maker.op_type == "Mul":
        for weight, values in (maker.input, maker.input[::-1]):
            if is_weight(walk, weight, summed) and is_beside(walk, values):
                return weight, values
    return "", name


def is_weight(walk: StreamingWalk, name: str, summed: str) -> bool:
    """Whether a tensor has the numbers of `summed`, and none of them is negative."""
    is_summed = bool(summed) and source(walk, name) == summed and np.dtype(walk.dtype(name)).kind == "f"
    return is_summed and is_whole(walk, name) and range_of(walk, name)[0] >= 0


def divisor_of(walk: StreamingWalk, name: str) -> str:
    """Return what a tensor has the sum over time of, but for small constants; empty: it has none."""
    while (maker := walk.makers.get(name)) is not None:
        if maker.op_type == "ReduceSum":
            summed = maker.input[0]
            return source(walk, summed) if walk.facts.time_axis(summed) in read_axes(walk, maker) else ""
        rest = [given for given in maker.input if given and walk.tensors[given].kind != "constant"]
        if maker.op_type not in _OVER_A_SUM or len(rest) != 1:
            return ""
        name = rest[0]
    return ""


def source(walk: StreamingWalk, name: str) -> str:
    """Return the tensor that another one is a copy of, in another layout or type."""
    while (maker := walk.makers.get(name)) is not None and maker.op_type in COPYING:
        name = maker.input[0]
    return name


# ---------------------------------------------------------------- factors


def softmax(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Softmax, LogSoftmax: over time they are weights, which every later timestep changes."""
    name, out = node.input[0], node.output[0]
    axis = int(attributes(node).get("axis", -1)) % max(len(walk.facts.dims(name)), 1)
    over_time = walk.opset >= 13 and walk.facts.time_axis(name) == axis and is_whole(walk, name)
    if not over_time:
        by_timestep(walk, node)
        return
    pointwise(walk, node)
    error = walk.refuse(node, "mixes timesteps: it is normalised over the time axis")
    try:
        check_causal(walk, node, out)
    except RefusedModelError as exc:  # not raised where scores are so far apart that one timestep has all the weight
        error = exc
    scores = WeightedPart(walk.operand(name, 0), walk.facts.dims(name))
    infinite = _is_infinite(walk, name)
    weights = TimeWeights(
        scores, is_log=node.op_type == "LogSoftmax", mask=_mask(walk, name), infinite=infinite,
        bounds=ANY if infinite else range_of(walk, name), is_uneven=_is_masked(walk, name),
    )  # fmt: skip
    walk.tensors[out] = StepTensor("refused", error=error, weights=weights)


def by_the_whole(walk: StreamingWalk, node: onnx.NodeProto) -> TimeWeights | None:
    """Mul, Div or Sub of a value of each timestep and an answer for the whole sequence; None: it is not that."""
    out = node.output[0]
    if node.op_type not in {"Mul", "Div", "Sub"} or walk.opset < 13 or not keeps_time(walk, out):
        return None
    if np.dtype(walk.dtype(out)).kind != "f":
        return None
    name, whole = node.input if is_whole(walk, node.input[0]) or node.op_type != "Mul" else node.input[::-1]
    if not is_whole(walk, name) or walk.tensors[whole].kind != "at_end":
        return None
    rank = len(walk.facts.dims(out))
    by = part_of(walk, whole, rank)
    if node.op_type == "Sub":
        return TimeWeights(part_of(walk, name, rank), shift=by, is_log=True, infinite=_is_infinite(walk, name))
    weight, values = split(walk, name, whole)
    return TimeWeights(
        weight=part_of(walk, weight, rank) if weight else None,
        values=part_of(walk, values, rank) if values else None,
        factor=_joined(walk, node, None, by),
        divisor=divisor_of(walk, whole),
        bounds=range_of(walk, weight) if weight else ANY,
    )


def _joined(walk: StreamingWalk, node: onnx.NodeProto, part: WeightedPart | None, by: WeightedPart) -> WeightedPart:
    """Return a part times or by another one; None: ones."""
    if part is None and node.op_type == "Mul":
        return by
    if part is None:  # not 1 / by: onnxruntime joins that with products, and fails where a state is a factor
        return WeightedPart(walk.graph.op("Reciprocal", by.step), by.dims)
    return WeightedPart(walk.graph.op(node.op_type, part.step, by.step), joint_dims(part.dims, by.dims))


def product(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Mul or Div with a value of each timestep, or with an answer for the whole sequence."""
    weights, out = walk.tensors[name].weights, node.output[0]
    other = node.input[1] if node.input[0] == name else node.input[0]
    is_final = walk.tensors[other].kind == "at_end"
    if weights is None or weights.is_log or not (is_final or is_beside(walk, other)) or not keeps_time(walk, out):
        return False
    if node.op_type == "Div" and node.input[0] != name:
        return False
    by, weights = side_by_side(walk, out, other, weights)
    if is_final:
        divisor = weights.divisor or divisor_of(walk, other)
        made = replace(weights, factor=_joined(walk, node, weights.factor, by), divisor=divisor)
    elif node.op_type == "Mul" and weights.weight is None and is_weight(walk, other, weights.divisor):
        bounds = weights.bounds if weights.scores else range_of(walk, other)
        made = replace(weights, weight=by, bounds=bounds, is_uneven=True)
    else:
        is_uneven = weights.is_uneven or is_gate(walk, other)
        made = replace(weights, values=_joined(walk, node, weights.values, by), is_uneven=is_uneven)
    return set_weights(walk, out, name, made)


def difference(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Sub of another answer for the whole sequence, as the logarithm of a sum of exponentials."""
    weights, (left, right), out = walk.tensors[name].weights, node.input, node.output[0]
    if weights is None or weights.shift is None or not weights.is_log or not keeps_time(walk, out):
        return False
    if left != name or walk.tensors[right].kind != "at_end":
        return False
    by, weights = side_by_side(walk, out, right, weights)
    assert weights.shift is not None
    shift = WeightedPart(walk.graph.op("Add", weights.shift.step, by.step), joint_dims(weights.shift.dims, by.dims))
    return set_weights(walk, out, name, replace(weights, shift=shift))


def exponential(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Exp of a logarithm of weights."""
    weights = walk.tensors[name].weights
    if weights is None or not weights.is_log:
        return False
    return set_weights(walk, node.output[0], name, replace(weights, is_log=False))


def masked(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Where that has zeros in the place of some weights: a product with zeros and ones."""
    weights, (kept, left, right), out = walk.tensors[name].weights, node.input, node.output[0]
    place, other = (0, right) if left == name else (1, left)
    zero = walk.known(other)
    if weights is None or weights.is_log or zero is None or any(np.any(value) for value in zero):
        return False
    if not is_beside(walk, kept) or not keeps_time(walk, out):
        return False
    if weights.shift is None and f"{source(walk, kept)} {place}" == weights.mask:
        weights = replace(weights, zero_of_nothing=True)
    elif weights.infinite:
        return False
    by, weights = side_by_side(walk, out, kept, weights)
    values = weights.values or ones(walk, by, walk.dtype(out))
    both = [walk.operand(other), values.step] if place else [values.step, walk.operand(other)]
    now = WeightedPart(walk.graph.op("Where", by.step, *both), joint_dims(by.dims, values.dims))
    return set_weights(walk, out, name, replace(weights, values=now, is_uneven=True))


def _is_infinite(walk: StreamingWalk, name: str) -> bool:
    return any(np.isneginf(value).any() for value in walk.facts.values(name))


def _is_masked(walk: StreamingWalk, name: str) -> bool:
    """Whether scores may be far below others: by a choice, or a large number that is added."""
    maker = walk.makers.get(source(walk, name))
    if maker is None or maker.op_type not in {"Add", "Sub", "Where"}:
        return False
    return maker.op_type == "Where" or any(is_far(walk, each) or _is_masked(walk, each) for each in maker.input)


def _mask(walk: StreamingWalk, name: str) -> str:
    """Return the condition of the Where that makes a tensor, and which of its values are kept; empty: none does."""
    maker = walk.makers.get(name)
    if maker is None or maker.op_type != "Where":
        return ""
    return f"{source(walk, maker.input[0])} {int(walk.tensors[maker.input[1]].kind == 'constant')}"
