"""Attention pooling: what a sum over time weighs by a softmax over time.

Such a weight changes for all timesteps with each new one. A value that it weighs has an answer for the timesteps so far
only once it is summed over them; until then the parts of this timestep, its scores and its value, are kept, and go
through the nodes together.

Before and after:

    s (B, T, 1)    x (B, T, 4)             s (B, 1, 1)   x (B, 1, 4)   largest, weight, mean so far
       | Softmax over T  |                       largest' = Max (largest, s)
       Mul --------------+            ->         w = exp(s - largest')
        | ReduceSum over T                       weight' = weight * exp(largest - largest') + w
    y (B, 4)                               y (B, 4): mean' = mean + (x - mean) * w / weight'

A running sum loses digits in a long stream, where each new value is small beside it; a mean does not. Where scores may
be large, all exponentials are relative to the largest score so far; when that grows, the sum of the weights is scaled
down. All states stay finite, whatever is masked by scores of minus infinity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import reduce
from itertools import zip_longest

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.known_values import reshaped, shape_at_one_step
from stepwell_export.streaming.rules.elementwise import by_timestep, pointwise
from stepwell_export.streaming.rules.ranges import range_of
from stepwell_export.streaming.rules.reductions import count_so_far, is_whole, over_time, read_axes
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.walk import (
    ANY,
    ONE,
    ByPosition,
    Known,
    PerStep,
    Static,
    StreamingWalk,
    TimeWeights,
    Total,
    Weighted,
    WeightedPart,
    WeightRule,
    check_causal,
    joint_dims,
)

_LETTERS = "abcdefghijklmnopqrstuvwxyz"

_SMALL = 30
"""Scores that cannot be larger have exponentials that float32 adds up for as long as a stream may be."""


def softmax(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Softmax: over time it gives weights, which every later timestep changes."""
    name, out = node.input[0], node.output[0]
    axis = int(attributes(node).get("axis", -1)) % max(len(walk.facts.dims(name)), 1)
    over_timesteps = walk.facts.time_axis(name) == axis and is_whole(walk, name)
    if not over_timesteps:
        by_timestep(walk, node)
        return
    pointwise(walk, node)
    error = walk.refuse(node, "mixes timesteps: it is normalised over the time axis")
    try:
        check_causal(walk, node, out)
    except RefusedModelError as exc:  # not raised where scores are so far apart that one timestep has all the weight
        error = exc
    infinite = any(np.isneginf(value).any() for value in walk.facts.values(name))
    scores = WeightedPart(walk.operand(name, 0), walk.facts.dims(name))
    weights = TimeWeights(scores, bounds=ANY if infinite else range_of(walk, name))
    walk.tensors[out] = Weighted(error=error, weights=weights)


# ---------------------------------------------------------------- products with values of each timestep


def _product(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Mul with a value of each timestep."""
    weights, out = _weighted(walk, name).weights, node.output[0]
    other = node.input[1] if node.input[0] == name else node.input[0]
    if not _is_beside(walk, other) or not _keeps_time(walk, out):
        return False
    rank = len(walk.facts.dims(out))
    weights = weights.mapped(lambda part: _ranked(walk, part, rank))
    return _set(walk, out, name, replace(weights, values=_times(walk, weights.values, _part_of(walk, other, rank))))


def _masked(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Where that has zeros in the place of some weights, as Keras' Softmax with a mask: zeros for their values."""
    weights, (kept, left, right), out = _weighted(walk, name).weights, node.input, node.output[0]
    place, other = (0, right) if left == name else (1, left)
    zero = walk.known(other)
    if zero is None or any(np.any(value) for value in zero):
        return False
    if weights.bounds[0] == -math.inf:  # where no score counts, the softmax is NaN, and zeros are none
        return False
    if not _is_beside(walk, kept) or not _keeps_time(walk, out):
        return False
    rank = len(walk.facts.dims(out))
    by, weights = _part_of(walk, kept, rank), weights.mapped(lambda part: _ranked(walk, part, rank))
    values = weights.values or _ones(walk, by, walk.dtype(out))
    both = [walk.operand(other), values.step] if place else [values.step, walk.operand(other)]
    now = WeightedPart(walk.graph.op("Where", by.step, *both), joint_dims(by.dims, values.dims))
    return _set(walk, out, name, replace(weights, values=now))


def _matmul(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """MatMul, as an Einstein sum."""
    ranks = [len(walk.facts.dims(given)) for given in node.input]
    rows = _LETTERS[: max(*ranks, 2) - 2]
    left = (rows + "xy")[-ranks[0] :] if ranks[0] > 1 else "y"
    right = (rows + "yz")[-ranks[1] :] if ranks[1] > 1 else "y"
    kept = ("x" if ranks[0] > 1 else "") + ("z" if ranks[1] > 1 else "")
    return _einstein(walk, node, name, [left, right], rows + kept)


def _einsum(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Einsum with its result written out."""
    equation = str(attributes(node)["equation"]).replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        return False
    if "." in equation:
        pairs = zip(node.input, terms, strict=True)
        hidden = [len(walk.facts.dims(given)) - len(term.replace("...", "")) for given, term in pairs]
        dots = "".join(letter for letter in _LETTERS if letter not in equation)[: max(hidden)]
        terms = [term.replace("...", dots[len(dots) - count :]) for term, count in zip(terms, hidden, strict=True)]
        result = result.replace("...", dots)
    return all(len(set(term)) == len(term) for term in terms) and _einstein(walk, node, name, terms, result)


def _einstein(walk: StreamingWalk, node: onnx.NodeProto, name: str, terms: Sequence[str], result: str) -> bool:
    """Emit an Einstein sum over time of weights and other operands, all of them with time on the same letter.

    Args:
        walk: The walk.
        node: The product.
        name: The operand that has the weights.
        terms: The letters of each operand's axes.
        result: The letters of the result's axes.
    """
    weights, out, graph = _weighted(walk, name).weights, node.output[0], walk.graph
    others = {place: given for place, given in enumerate(node.input) if given != name}
    axis = walk.facts.time_axis(name)
    assert axis is not None
    own = terms[list(node.input).index(name)]
    time = own[axis]
    if len(others) != len(node.input) - 1 or not others or time in result:
        return False
    for place, given in others.items():
        dims = walk.facts.dims(given)
        if not _is_beside(walk, given) or any(
            dim.has_time != (letter == time) for dim, letter in zip(dims, terms[place], strict=True)
        ):
            return False
    order = result + "".join(letter for letter in dict.fromkeys("".join(terms)) if letter not in result + time)

    def spread(part: WeightedPart, term: str) -> WeightedPart:
        """Give a part one axis for each letter but time, in order."""
        axes = [term.index(letter) for letter in order if letter in term]
        step = part.step
        if axes != sorted(axes):
            step = graph.op("Transpose", step, perm=[*axes, *(axis for axis in range(len(term)) if axis not in axes)])
        dims = tuple(part.dims[term.index(letter)] if letter in term else ONE for letter in order)
        return WeightedPart(reshaped(graph, step, dims), dims)

    whole = walk.facts.dims(name)
    if any(a.at_one_step() != b.at_one_step() for a, b in zip(weights.dims, whole, strict=True)):
        repeated = weights.values or _ones(walk, weights.scores, walk.dtype(name))
        weights = replace(weights, values=_expanded(walk, repeated, whole))
    weights = weights.mapped(lambda part: spread(part, own))
    factors = [spread(_part_of(walk, given, len(terms[place])), terms[place]) for place, given in others.items()]
    values = reduce(lambda left, right: _times(walk, left, right), [*filter(None, [weights.values]), *factors])
    gone = range(len(result), len(order))
    early = [axis for axis in gone if values.varies(axis) and not weights.scores.varies(axis)]
    if early:
        dims = tuple(ONE if axis in early else dim for axis, dim in enumerate(values.dims))
        values = WeightedPart(graph.op("ReduceSum", values.step, graph.ints(early), keepdims=1), dims)
    weights = replace(weights, values=values)
    total = _summed_so_far(walk, plain(node.name), weights, walk.dtype(out)).step
    total = graph.op("ReduceSum", total, graph.ints(gone), keepdims=0) if gone else total
    walk.set_at_end(node, out, total)
    return True


# ---------------------------------------------------------------- layouts: both parts are brought along


def _repeated(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Identity and what is none: Cast to the same type, Dropout; Expand and Tile along axes of length 1."""
    out, weights = node.output[0], _weighted(walk, name).weights
    if walk.dtype(out) != walk.dtype(name) or any(node.output[1:]):
        return False
    rank = len(walk.facts.dims(out))
    pairs = zip_longest(walk.facts.dims(name)[::-1], walk.facts.dims(out)[::-1], fillvalue=ONE)
    if not _keeps_time(walk, out) or any(a != b and a.at_one_step() != (1, 0) for a, b in pairs):
        return False
    return _set(walk, out, name, weights.mapped(lambda part: _ranked(walk, part, rank)))


def _permuted(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Transpose of both parts."""
    weights, rank = _weighted(walk, name).weights, len(walk.facts.dims(name))
    perm = attributes(node).get("perm") or list(range(rank))[::-1]

    def moved(part: WeightedPart) -> WeightedPart:
        made = walk.emit_like(node, 0, i0=part.step)
        made.name = walk.graph.unique(node.name)
        made.output[0] = walk.graph.unique(node.output[0])
        return WeightedPart(made.output[0], tuple(part.dims[axis] for axis in perm))

    return weights is not None and _set(walk, node.output[0], name, weights.mapped(moved))


def _refolded(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Squeeze, Unsqueeze, Reshape, Flatten that leave the order of the numbers in front of time, and behind it."""
    weights, out = _weighted(walk, name).weights, node.output[0]
    if not _keeps_time(walk, out):
        return False
    axes = [walk.facts.time_axis(given) or 0 for given in (name, out)]
    for before, after in zip(walk.facts.values(name), walk.facts.values(out), strict=True):
        if np.prod(before.shape[: axes[0]]) != np.prod(after.shape[: axes[1]]):
            return False
    whole, dims = walk.facts.dims(name), walk.facts.dims(out)

    def changed(part: WeightedPart) -> WeightedPart:
        return WeightedPart(reshaped(walk.graph, _expanded(walk, part, whole).step, dims), dims)

    return _set(walk, out, name, weights.mapped(changed))


# ---------------------------------------------------------------- parts


def _set(walk: StreamingWalk, out: str, name: str, weights: TimeWeights) -> bool:
    """Set the weights of an output, which is refused for other uses as `name` is."""
    walk.tensors[out] = replace(_weighted(walk, name), weights=weights)
    return True


def _weighted(walk: StreamingWalk, name: str) -> Weighted:
    tensor = walk.tensors[name]
    assert isinstance(tensor, Weighted)
    return tensor


def _is_beside(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has its value for each timestep of the sequence as that comes, or one for all."""
    tensor = walk.tensors[name]
    equal = isinstance(tensor, PerStep) and tensor.offset is None
    return equal or isinstance(tensor, Known | Static | ByPosition) or is_whole(walk, name)


def _keeps_time(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has one axis of the timesteps, and nothing else on it."""
    return [dim for dim in walk.facts.dims(name) if dim.has_time] == [Dim(Fraction(0), steps=Fraction(1))]


def _part_of(walk: StreamingWalk, name: str, rank: int) -> WeightedPart:
    """Return a tensor at this timestep, with axes in front of its own where it has fewer than `rank`."""
    return _ranked(walk, WeightedPart(walk.operand(name, 0), walk.facts.dims(name)), rank)


def _ranked(walk: StreamingWalk, part: WeightedPart, rank: int) -> WeightedPart:
    """Return a part with axes of length 1 in front of its own where it has fewer than `rank`."""
    if len(part.dims) >= rank:
        return part
    dims = (ONE,) * (rank - len(part.dims)) + part.dims
    return WeightedPart(reshaped(walk.graph, part.step, dims), dims)


def _expanded(walk: StreamingWalk, part: WeightedPart, dims: tuple[Dim, ...]) -> WeightedPart:
    """Return a part with all elements of these axes."""
    if [dim.at_one_step() for dim in part.dims] == [dim.at_one_step() for dim in dims]:
        return part
    return WeightedPart(walk.graph.op("Expand", part.step, shape_at_one_step(walk.graph, dims)), dims)


def _ones(walk: StreamingWalk, like: WeightedPart, dtype: str) -> WeightedPart:
    """Return ones, with as many axes as a part has."""
    shape = (1,) * len(like.dims)
    return WeightedPart(walk.graph.constant(np.ones(shape, dtype)), (ONE,) * len(shape))


def _times(walk: StreamingWalk, part: WeightedPart | None, other: WeightedPart) -> WeightedPart:
    """Return the product of two parts; None: ones."""
    if part is None:
        return other
    return WeightedPart(walk.graph.op("Mul", part.step, other.step), joint_dims(part.dims, other.dims))


# ---------------------------------------------------------------- the sums so far


def _sum(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """ReduceSum or ReduceMean over time."""
    weights, dims, out = _weighted(walk, name).weights, walk.facts.dims(name), node.output[0]
    if walk.facts.time_axis(name) not in read_axes(walk, node):
        return False
    total = _expanded(walk, _summed_so_far(walk, plain(node.name), weights, walk.dtype(name)), dims)
    made = walk.emit_like(node, 0, i0=total.step).output[0]
    if node.op_type == "ReduceMean":
        made = walk.graph.op("Div", made, count_so_far(walk, walk.facts.dims(out), walk.dtype(out)))
    walk.set_at_end(node, out, made)
    return True


def _summed_so_far(walk: StreamingWalk, label: str, weights: TimeWeights, dtype: str) -> WeightedPart:
    """Emit the sum over the timesteps so far; both parts have as many axes as the result, whose time axis has length 1.

    Args:
        walk: The walk.
        label: What its states are named after.
        weights: What is summed up.
        dtype: NumPy name of its type.
    """
    graph, so_far = walk.graph, _total(walk, label, weights, dtype)
    mean = None if weights.values is None else _mean(walk, label, weights.values, so_far, dtype)
    if mean is not None and weights.bounds[0] > -math.inf:
        return mean
    # their sum is at least 1, unless all scores so far are minus infinity: then the answer is NaN
    some = graph.op("Min", so_far.total.step, graph.constant(np.asarray(1, dtype)))
    result = mean or WeightedPart(some, weights.scores.dims)
    return WeightedPart(graph.op("Div", result.step, some), result.dims)


@over_time
def log_sum_exp(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """ReduceLogSumExp: that of the timesteps so far."""
    name = node.input[0]
    if not is_whole(walk, name):
        pointwise(walk, node)
        return
    scores = WeightedPart(walk.operand(name, 0), walk.facts.dims(name))
    so_far = _total(walk, plain(node.name), TimeWeights(scores), walk.dtype(name))
    result = walk.graph.op("Add", so_far.largest, walk.graph.op("Log", so_far.total.step))
    walk.set_at_end(node, node.output[0], walk.emit_like(node, 0, i0=result).output[0])


def _total(walk: StreamingWalk, label: str, weights: TimeWeights, dtype: str) -> Total:
    """Emit the sum of weights so far, once for all sums that they apply to.

    Args:
        walk: The walk.
        label: What its states are named after.
        weights: What they are, and between which numbers their scores lie.
        dtype: NumPy name of their type.
    """
    graph, scores = walk.graph, weights.scores
    low, high = weights.bounds
    is_small = max(-low, high) <= _SMALL and dtype != "float16"
    has_some = low > -math.inf
    key = f"{scores.step} {is_small} {has_some}"
    if key not in walk.totals:
        before, spec = graph.state_like(f"{label}.weights", scores.dims, dtype, None)
        now, highest = scores.step, ""
        if is_small:
            now = graph.op("Exp", now)
        else:
            lowest = np.asarray(np.finfo(dtype).min, dtype)
            row = np.full([fixed or per_row for fixed, per_row in (dim.at_one_step() for dim in scores.dims)], lowest)
            largest, largest_spec = graph.state_like(f"{label}.largest_score", scores.dims, dtype, row)
            # also of the lowest: scores, or a stored state of fewer bits, may be minus infinity
            highest = graph.op("Max", largest, now, *([] if has_some else [graph.constant(lowest)]))
            graph.next_state_like(largest_spec, highest, scores.dims)
            now = graph.op("Exp", graph.op("Sub", now, highest))
            before = graph.op("Mul", before, graph.op("Exp", graph.op("Sub", largest, highest)))
        total = divisor = graph.op("Add", before, now)
        graph.next_state_like(spec, total, scores.dims)
        if not has_some:
            divisor = graph.op("Max", total, graph.constant(np.asarray(np.finfo(dtype).tiny, dtype)))
        walk.totals[key] = Total(WeightedPart(total, scores.dims), graph.op("Div", now, divisor), highest)
    return walk.totals[key]


def _mean(walk: StreamingWalk, label: str, values: WeightedPart, so_far: Total, dtype: str) -> WeightedPart:
    """Move the mean so far towards this timestep's values, by its share of all weight."""
    graph, dims = walk.graph, joint_dims(values.dims, so_far.total.dims)
    state, spec = graph.state_like(f"{label}.mean", dims, dtype, None)
    mean = graph.op("Add", state, graph.op("Mul", graph.op("Sub", values.step, state), so_far.share))
    graph.next_state_like(spec, mean, dims)
    return WeightedPart(mean, dims)


WEIGHTED: dict[str, WeightRule] = {
    **dict.fromkeys(("Cast", "Dropout", "Expand", "Identity", "Tile"), _repeated),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), _refolded),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _sum),
    "Einsum": _einsum, "MatMul": _matmul, "Mul": _product, "Transpose": _permuted,
    "Where": _masked,
}  # fmt: skip
"""What operators make of a weight over time; False: nothing that a step can have."""
