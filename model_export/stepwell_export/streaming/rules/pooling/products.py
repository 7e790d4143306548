"""MatMul and Einsum of values of each timestep with what a weight over time weighs: attention pooling as a product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.streaming.known_values import reshaped
from stepwell_export.streaming.rules.pooling.parts import expanded, is_beside, ones, part_of, times
from stepwell_export.streaming.rules.pooling.ranges import is_gate
from stepwell_export.streaming.rules.pooling.sums import summed_so_far
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.tensor import ONE, WeightedPart
from stepwell_export.streaming.walk import StreamingWalk

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def matmul(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """MatMul, as an Einstein sum."""
    ranks = [len(walk.facts.dims(given)) for given in node.input]
    rows = _LETTERS[: max(*ranks, 2) - 2]
    left = (rows + "xy")[-ranks[0] :] if ranks[0] > 1 else "y"
    right = (rows + "yz")[-ranks[1] :] if ranks[1] > 1 else "y"
    kept = ("x" if ranks[0] > 1 else "") + ("z" if ranks[1] > 1 else "")
    return _einstein(walk, node, name, [left, right], rows + kept)


def einsum(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
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
    """Emit an Einstein sum of weights and other operands, all of them with time on the same letter.

    Args:
        walk: The walk.
        node: The product.
        name: The operand that has the weights.
        terms: The letters of each operand's axes.
        result: The letters of the result's axes.
    """
    weights, out, graph = walk.tensors[name].weights, node.output[0], walk.graph
    others = {place: given for place, given in enumerate(node.input) if given != name}
    if weights is None or weights.is_log or not others or len(others) != len(node.input) - 1:
        return False
    own = terms[list(node.input).index(name)]
    axis = walk.facts.time_axis(name)
    assert axis is not None
    time = own[axis]
    for place, given in others.items():
        dims = walk.facts.dims(given)
        if not is_beside(walk, given) or any(
            dim.has_time != (letter == time) for dim, letter in zip(dims, terms[place], strict=True)
        ):
            return False
    kept = result.replace(time, "")
    order = kept + "".join(letter for letter in dict.fromkeys("".join(terms)) if letter not in kept + time)

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
        repeated = weights.values or ones(walk, weights.parts[0], walk.dtype(name))
        weights = replace(weights, values=expanded(walk, repeated, whole))
    weights = weights.mapped(lambda part: spread(part, own))
    factors = [spread(part_of(walk, given, len(terms[place])), terms[place]) for place, given in others.items()]
    values = reduce(lambda left, right: times(walk, left, right), [*filter(None, [weights.values]), *factors])
    gone = range(len(kept), len(order))
    weighing = [part for part in (weights.scores, weights.shift, weights.weight, weights.factor) if part]
    early = [axis for axis in gone if values.varies(axis) and not any(part.varies(axis) for part in weighing)]
    if early:
        dims = tuple(ONE if axis in early else dim for axis, dim in enumerate(values.dims))
        values = WeightedPart(graph.op("ReduceSum", values.step, graph.ints(early), keepdims=1), dims)
    is_uneven = weights.is_uneven or any(is_gate(walk, given) for given in others.values())
    weights = replace(weights, values=values, is_uneven=is_uneven)
    if time not in result:
        total = summed_so_far(walk, plain(node.name), weights, walk.dtype(out)).step
        total = graph.op("ReduceSum", total, graph.ints(gone), keepdims=0) if gone else total
        walk.set_output(node, out, total, "at_end")
        return True
    if any(part.varies(axis) for part in weights.parts for axis in gone):
        return False
    place = result.index(time)

    def with_time(part: WeightedPart) -> WeightedPart:
        dims = (*part.dims[:place], ONE, *part.dims[place : len(kept)])
        return WeightedPart(reshaped(graph, part.step, dims), dims)

    walk.tensors[out] = replace(walk.tensors[name], weights=weights.mapped(with_time))
    return True
