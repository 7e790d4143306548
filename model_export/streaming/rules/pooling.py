"""Attention pooling: sums over time that are weighted by a softmax over time, of the timesteps so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import onnx

from model_export.errors import RefusedModelError
from model_export.graph.nodes import attributes, uses
from model_export.streaming.axes.measured_shapes import Dim
from model_export.streaming.causality import check_causal
from model_export.streaming.rules.elementwise import pointwise
from model_export.streaming.rules.reductions import is_whole, read_axes
from model_export.streaming.step_graph import plain
from model_export.streaming.tensor import StepTensor, TimeWeights
from model_export.streaming.walk import Rule, StreamingWalk


def softmax(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Softmax: over time its answers change with every new timestep; a step has those of a sum that they weigh."""
    name, out = node.input[0], node.output[0]
    axis = int(attributes(node).get("axis", -1)) % max(len(walk.facts.dims(name)), 1)
    over_time = walk.opset >= 13 and walk.facts.time_axis(name) == axis and is_whole(walk, name)
    pointwise(walk, node)
    if not over_time:
        return
    try:
        check_causal(walk, node, out)
    except RefusedModelError as exc:
        weights = TimeWeights(out, walk.operand(name, 0))
        walk.tensors[out] = StepTensor("unsupported", error=exc, weights=weights)


def with_weights(operator: str, otherwise: Rule) -> Rule:
    """Return the rule of an operator that may take a softmax over time; `otherwise` is its rule without one."""

    def rule(walk: StreamingWalk, node: onnx.NodeProto) -> None:
        waiting = [name for name in uses(node) if walk.tensors[name].weights is not None]
        if not waiting:
            otherwise(walk, node)
        elif len(waiting) > 1 or not WEIGHTED[operator](walk, node, waiting[0]):
            walk.need(*waiting)

    return rule


def _layout(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Transpose, Squeeze, Unsqueeze: the same of this timestep's score."""
    weights = walk.tensors[name].weights
    if weights is None or weights.values:
        return False
    out = node.output[0]
    moved = TimeWeights(out, walk.emit_like(node, 0, i0=weights.scores).output[0])
    walk.tensors[out] = replace(walk.tensors[name], weights=moved)
    return True


def _product(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """Mul with a value of each timestep."""
    weights = walk.tensors[name].weights
    values = node.input[node.input[0] == name]
    axes = walk.facts.time_axis(name), walk.facts.time_axis(values)
    ranks = len(walk.facts.dims(name)), len(walk.facts.dims(values))
    if weights is None or weights.values or len({*axes}) > 1 or len({*ranks}) > 1 or not is_whole(walk, values):
        return False
    weighed = replace(weights, values=walk.operand(values, 0))
    walk.tensors[node.output[0]] = replace(walk.tensors[name], weights=weighed)
    return True


def _sum(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """ReduceSum of such a product over time."""
    weights, axis = walk.tensors[name].weights, walk.facts.time_axis(name)
    if weights is None or not weights.values or axis not in read_axes(walk, node):
        return False
    dims = list(walk.facts.dims(name))
    dims[axis] = Dim(Fraction(1))
    pooled = _pooled(walk, node, weights, dims, lambda weight: walk.graph.op("Mul", weight, weights.values))
    walk.set_output(node, node.output[0], walk.emit_like(node, 0, i0=pooled).output[0], "final")
    return True


def _matmul(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """MatMul with values of each timestep that sums over time."""
    weights = walk.tensors[name].weights
    left = node.input[0] == name
    values = node.input[left]
    if weights is None or weights.values or not is_whole(walk, values):
        return False
    places = [(len(walk.facts.dims(given)), walk.facts.time_axis(given)) for given in node.input]
    if [rank - (axis or 0) for rank, axis in places] != [1, 2]:
        return False
    now = walk.operand(values, 0)

    def weigh(weight: str) -> str:
        return walk.graph.op("MatMul", *((weight, now) if left else (now, weight)))

    out = node.output[0]
    walk.set_output(node, out, _pooled(walk, node, weights, list(walk.facts.dims(out)), weigh), "final")
    return True


WEIGHTED: dict[str, Callable[[StreamingWalk, onnx.NodeProto, str], bool]] = {
    "MatMul": _matmul, "Mul": _product, "ReduceSum": _sum, "Squeeze": _layout, "Transpose": _layout,
    "Unsqueeze": _layout,
}  # fmt: skip
"""What operators make of a softmax over time; False: nothing that a step can have."""


def _pooled(
    walk: StreamingWalk, node: onnx.NodeProto, weights: TimeWeights, dims: list[Dim], weigh: Callable[[str], str]
) -> str:
    """Emit the weighted mean of the timesteps so far.

    Scores may be large, so all exponentials are relative to the largest score so far; when that grows, what was summed
    up before is scaled down.
    """
    graph, label, dtype = walk.graph, plain(node.name), walk.dtype(weights.name)
    of_scores = list(walk.facts.dims(weights.name))
    of_scores[walk.facts.time_axis(weights.name) or 0] = Dim(Fraction(1))
    largest, largest_spec = graph.state_like(f"{label}.largest_score", of_scores, dtype, None)
    divisor, divisor_spec = graph.state_like(f"{label}.weights", of_scores, dtype, None)
    total, total_spec = graph.state_like(f"{label}.sum", dims, dtype, None)
    seen = walk.has_seen(1, of_scores)
    new_largest = graph.op("Where", seen, graph.op("Max", largest, weights.scores), weights.scores)
    decay = graph.op("Exp", graph.op("Sub", graph.op("Where", seen, largest, weights.scores), new_largest))
    weight = graph.op("Exp", graph.op("Sub", weights.scores, new_largest))
    new_divisor = graph.op("Add", graph.op("Mul", divisor, decay), weight)
    new_total = graph.op("Add", graph.op("Mul", total, decay), weigh(weight))
    graph.next_state_like(largest_spec, new_largest, of_scores)
    graph.next_state_like(divisor_spec, new_divisor, of_scores)
    graph.next_state_like(total_spec, new_total, dims)
    return graph.op("Div", new_total, new_divisor)
