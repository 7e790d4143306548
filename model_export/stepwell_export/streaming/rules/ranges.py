"""Between which numbers a tensor of the sequence graph lies, by the operators that make it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.graph.operators import PICKING, RESHAPING, RNN
from stepwell_export.streaming.walk import ANY, ByPosition, Known, PerStep, Range, Scores, StreamingWalk

_COPYING = RESHAPING | {"Cast", "Expand", "Tile"}
"""Operators that give the same numbers in another layout or type."""

_FAR = 1e30
"""Models compute with smaller numbers; a larger one, as a mask has, counts as infinite."""

_FINITE: Range = (-_FAR, _FAR)
_POSITIVE: Range = (0, math.inf)

_BY_KIND: Mapping[str, Range] = {"b": (0, 1), "u": _POSITIVE}
"""By the kind of NumPy types that have no negative numbers."""

_BY_OPERATOR: Mapping[str, Range] = {
    **dict.fromkeys(("Cos", "Erf", "Sin", "Softsign", "Tanh"), (-1, 1)),
    **dict.fromkeys(("HardSigmoid", "Sigmoid", "Softmax"), (0, 1)),
    **dict.fromkeys(("Conv", "Einsum", "Gemm"), _FINITE), "Softplus": _POSITIVE,
}  # fmt: skip
_BY_OPERANDS: Mapping[str, Callable[..., Range]] = {
    "Abs": lambda a: (max(a[0], -a[1], 0), max(-a[0], a[1])),
    "Add": lambda a, b: (a[0] + b[0], a[1] + b[1]),
    "Div": lambda a, b: (
        _hull(x / y for x in a for y in b) if b[0] * b[1] > 0 else _POSITIVE if min(*a, *b) >= 0 else ANY
    ),
    "Exp": lambda a: (math.exp(min(a[0], 99)), math.exp(min(a[1], 99))),
    "LeakyRelu": lambda _: ANY,
    "Max": lambda *each: (max(low for low, _ in each), max(high for _, high in each)),
    "Mul": lambda a, b: _hull(0 if 0 in {x, y} else x * y for x in a for y in b),
    "Neg": lambda a: (-a[1], -a[0]),
    "ReduceSum": lambda a, *_: (0 if a[0] >= 0 else -math.inf, 0 if a[1] <= 0 else math.inf),
    "Relu": lambda a: (max(a[0], 0), max(a[1], 0)),
    "Sqrt": lambda a: (0, math.sqrt(a[1])),
    "Sub": lambda a, b: (a[0] - b[1], a[1] - b[0]),
    "Trilu": lambda a, *_: _hull((*a, 0)),
    "Where": lambda _, a, b: _hull((*a, *b)),
}


def range_of(walk: StreamingWalk, name: str) -> Range:
    """Return the least and the largest number that a tensor may have; infinite where no operator sets a bound.

    Numbers beyond 1e30 count as infinite. What sums and products make of others is taken to be nearer to zero, as in a
    model that computes in float32.
    """
    if name not in walk.ranges and (name not in walk.makers or isinstance(walk.tensors[name], Known)):
        walk.ranges[name] = _of_values(walk, name)
    if name not in walk.ranges:
        for node in walk.model.graph.node:
            new = [out for out in node.output if out and out not in walk.ranges]
            walk.ranges |= {out: _of_node(walk, node, out) for out in new}
            if name in node.output:
                break
    return walk.ranges[name]


def _of_values(walk: StreamingWalk, name: str) -> Range:
    """Return the range of a constant, or of an input; texts and lists of tensors have none."""
    value = walk.facts.value(name)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        return ANY
    if not isinstance(walk.tensors[name], Known):
        return _BY_KIND.get(value.dtype.kind, _FINITE)
    return _near((float(value.min()), float(value.max())), is_finite=False) if value.size else (0, 0)


def _of_node(walk: StreamingWalk, node: onnx.NodeProto, out: str) -> Range:
    kind, value = node.op_type, walk.facts.value(out)
    if isinstance(walk.tensors[out], Known):
        return _of_values(walk, out)
    if not isinstance(value, np.ndarray):
        return ANY
    if value.dtype.kind in _BY_KIND:
        return _BY_KIND[value.dtype.kind]
    if kind in _BY_OPERATOR:
        return _BY_OPERATOR[kind]
    if kind in _COPYING | PICKING:
        return _of_operand(walk, node.input[0], out)
    if kind in RNN:
        return _of_recurrence(walk, node, out)
    if kind in {"LayerNormalization", "MatMul"}:
        return _of_product(walk, node)
    if kind not in _BY_OPERANDS:
        return ANY
    ranges = [_of_operand(walk, each, out) for each in node.input]
    if kind == "Sqrt" and ranges[0][0] < 0:
        return ANY  # as NaN
    may_overflow = kind == "Exp" or (kind == "Div" and ranges[1][0] * ranges[1][1] <= 0)
    is_finite = not may_overflow and all(abs(bound) <= _FAR for each in ranges[kind == "Where" :] for bound in each)
    return _near(_BY_OPERANDS[kind](*ranges), is_finite=is_finite)


def _of_operand(walk: StreamingWalk, name: str, out: str) -> Range:
    """Return the range of what a node takes: scores are made of windows too, which begin with zeros."""
    bounds = range_of(walk, name)
    may_be_window = isinstance(walk.tensors[out], Scores) and isinstance(walk.tensors[name], PerStep | ByPosition)
    return _hull((*bounds, 0)) if may_be_window else bounds


def _of_recurrence(walk: StreamingWalk, node: onnx.NodeProto, out: str) -> Range:
    """Return the range of what an LSTM, GRU or RNN gives; the cell state of an LSTM may be large."""
    gates, activations = {"HardSigmoid", "Sigmoid"}, list(attributes(node).get("activations") or [])
    is_within = {*gates, "Softsign", "Tanh"}.issuperset(activations) and out in node.output[:2]
    if node.op_type == "GRU":  # its gate weighs what is new and what was before, so that neither grows
        is_within = is_within and gates.issuperset(activations[::2]) and _most(walk, *node.input[5:6]) <= 1
    return (-1, 1) if is_within else _FINITE


def _of_product(walk: StreamingWalk, node: onnx.NodeProto) -> Range:
    """Return the range of a product with weights, or of normalised features, whose variance is 1."""
    left, right, *bias = node.input
    is_weight = [isinstance(walk.tensors[name], Known) for name in (left, right)]
    most = _FAR
    if node.op_type == "LayerNormalization":
        most = math.sqrt(np.size(walk.facts.value(right))) * _most(walk, right) + _most(walk, *bias)
    elif any(is_weight):
        data, weight, axis = (left, right, -2) if is_weight[1] else (right, left, -1)
        value = np.abs(np.asarray(walk.facts.value(weight)))
        most = _most(walk, data) * float(np.max(value.sum(axis if value.ndim > 1 else None, dtype=np.float64)))
    return _near((-most, most), is_finite=True)


def _most(walk: StreamingWalk, *names: str) -> float:
    """Return the largest magnitude of a tensor; 0 without one."""
    return max((abs(bound) for name in names if name for bound in range_of(walk, name)), default=0.0)


def _hull(bounds: Iterable[float]) -> Range:
    every = list(bounds)
    return min(every), max(every)


def _near(bounds: Range, *, is_finite: bool) -> Range:
    """Return a range with bounds beyond 1e30 at that number, or at infinity where operands may be there."""
    if any(map(math.isnan, bounds)):
        return ANY
    low, high = (
        bound if abs(bound) <= _FAR else math.copysign(_FAR if is_finite else math.inf, bound) for bound in bounds
    )
    return low, high
