"""Which axes of each tensor of a step graph its nodes need, whatever the length of these is."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import onnx

from stepwell_export.graph.forms import Sizes, wide_axes
from stepwell_export.graph.nodes import attributes
from stepwell_export.graph.operators import RNN

LAYOUT = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}
ELEMENTWISE = {
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod",
    "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip
ALONG = {"Softmax": -1, "LogSoftmax": -1, "Concat": 0, "Gather": 0, "Split": 0, "LayerNormalization": -1}
"""Operators along an axis that is an attribute, and which it is where there is none."""

LIKE_FIRST = {"LayerNormalization", "LogSoftmax", "Softmax"}
"""Those of them whose output has the axes of the first input."""

OF_ONE = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"}
"""Reductions that leave a single element as it is."""

AXES_INPUT = {"Slice": 3, **dict.fromkeys((*OF_ONE, "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"), 1)}
"""Operators whose axes are an input, and which one."""


def needed_axes(
    nodes: Sequence[onnx.NodeProto], constants: Container[str], known: Mapping[str, Sizes]
) -> dict[str, set[int]]:
    """Return the axes of each tensor that the nodes which take it need, or nodes behind these.

    Args:
        nodes: In order.
        constants: Names of tensors that have each form without a node.
        known: The sizes of tensors.
    """
    needed: dict[str, set[int]] = {}
    for node in reversed(nodes):
        for name in filter(None, node.input):
            if name not in constants and known.get(name) is not None:
                needed.setdefault(name, set()).update(_needed(node, name, needed, known))
    return needed


def is_joint(node: onnx.NodeProto, known: Mapping[str, Sizes]) -> bool:
    """Whether several products of one row each, as of heads that share their keys, are one product of several rows."""
    left, right = (known.get(name) or () for name in node.input)
    if not len(left) == len(right) > 3 or left[-2] != (1, 1) or right[-3] != (1, 1):
        return False
    heads, same = left[-3]
    return heads == same > 1  # and not the rows, each of which has to come out as it does alone


def _needed(node: onnx.NodeProto, name: str, needed: Mapping[str, set[int]], known: Mapping[str, Sizes]) -> set[int]:
    """Return the axes of an operand that a node and those behind it need."""
    out, rank = known.get(node.output[0]), len(known[name])
    if out is None or node.domain not in {"", "ai.onnx"}:
        return set(range(rank))
    behind = needed.get(node.output[0], set()).union(wide_axes(out))
    if node.op_type in ELEMENTWISE or (node.op_type in LIKE_FIRST and name == node.input[0]):
        own = [attributes(node).get("axis", -1)] if node.op_type in LIKE_FIRST else []
        return {axis + rank - len(out) for axis in behind if axis + rank >= len(out)} | {axis % rank for axis in own}
    if node.op_type == "Transpose":
        perm = attributes(node).get("perm") or range(rank)[::-1]
        places = [perm[axis] for axis in sorted(behind)]
        return set(places if places == sorted(places) else (perm[axis] for axis in wide_axes(out)))
    if node.op_type == "Concat":
        return behind | {attributes(node)["axis"] % rank}
    if node.op_type == "MatMul":
        if name == node.input[0] and is_joint(node, known):
            return {rank - 3, rank - 1}
        return {rank - 2, rank - 1} if len(known.get(node.input[1]) or ()) > 2 else {rank - 1}
    if node.op_type in RNN:
        return {rank - 2, rank - 1}  # of rows and features: they are written out without the others
    is_free = node.op_type in {*LAYOUT, *ALONG, *AXES_INPUT}
    return set() if is_free else set(range(rank))
