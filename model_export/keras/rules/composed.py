"""Operations that are made of others: each is a function of `keras.ops`, whose operations have rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from string import ascii_lowercase
from typing import Any

import keras
import numpy as np
from keras import ops

from model_export.keras.registry import Call, op_rule
from model_export.keras.value import Value

# ---------------------------------------------------------------- element by element


def _arctan2(_: Any, y: Any, x: Any) -> Any:
    sign = ops.where(y < 0, -1.0, 1.0)
    angle = ops.arctan(y / ops.where(x == 0, 1.0, x))
    angle = ops.where(x < 0, angle + sign * math.pi, angle)
    return ops.where(x == 0, ops.where(y == 0, 0.0, sign * (math.pi / 2)), angle)


def _whole(result: Any, *operands: Any) -> Any:
    """Return a result as a whole number, where all operands are."""
    dtype = keras.backend.result_type(*(getattr(operand, "dtype", type(operand)) for operand in operands))
    return ops.cast(result, dtype) if "int" in dtype else result


def _nan_to_num(operation: Any, x: Any) -> Any:
    most = float(np.finfo(np.float32).max)
    high = most if operation.posinf is None else operation.posinf
    low = -most if operation.neginf is None else operation.neginf
    x = ops.where(ops.isnan(x), operation.nan, x)
    return ops.where(ops.isinf(x), ops.where(x > 0, high, low), x)


def _sinc(_: Any, x: Any) -> Any:
    angle = x * math.pi
    return ops.where(x == 0, 1.0, ops.sin(angle) / ops.where(x == 0, 1.0, angle))


def _sparsemax(operation: Any, x: Any) -> Any:
    """Keras' own formula: the threshold comes of the sum of the sums so far."""
    axis, shape = operation.axis, [1] * len(x.shape)
    shape[axis] = -1
    is_last = axis in {-1, len(shape) - 1}
    ordered = ops.top_k(x, x.shape[axis])[0] if is_last else ops.flip(ops.sort(x, axis=axis), axis=axis)
    so_far = ops.cumsum(ordered, axis=axis)
    kept = ordered > (so_far - 1) / np.arange(1, x.shape[axis] + 1, dtype=np.float32).reshape(shape)
    total = ops.sum(ops.where(kept, so_far, 0.0), axis=axis, keepdims=True)
    return ops.relu(x - (total - 1) / ops.sum(ops.cast(kept, "float32"), axis=axis, keepdims=True))


_ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Cbrt": lambda _, x: ops.sign(x) * ops.power(ops.abs(x), 1 / 3),
    "Deg2rad": lambda _, x: x * (math.pi / 180),
    "Erfc": lambda _, x: 1 - ops.erf(x),
    "Exp2": lambda _, x: ops.power(2.0, x),
    "Expm1": lambda _, x: ops.exp(x) - 1,
    "HardSilu": lambda _, x: x * ops.hard_sigmoid(x),
    "Isfinite": lambda _, x: ops.logical_not(ops.logical_or(ops.isnan(x), ops.isinf(x))),
    "Log10": lambda _, x: ops.log(x) * (1 / math.log(10)),
    "Log1p": lambda _, x: ops.log(x + 1),
    "Log2": lambda _, x: ops.log(x) * (1 / math.log(2)),
    "LogSigmoid": lambda _, x: -ops.softplus(-x),
    "Mish": lambda _, x: x * ops.tanh(ops.softplus(x)),
    "NanToNum": _nan_to_num,
    "Rad2deg": lambda _, x: x * (180 / math.pi),
    "ReLU": lambda operation, x: operation.call(x),
    "Rsqrt": lambda _, x: ops.reciprocal(ops.sqrt(x)),
    "Signbit": lambda _, x: x < 0,
    "Silu": lambda _, x: x * ops.sigmoid(x),
    "Sinc": _sinc,
    "SparsePlus": lambda _, x: ops.where(x > 1, x, ops.square(ops.maximum(x + 1, 0)) / 4),
    "Sparsemax": _sparsemax,
    "Square": lambda _, x: x * x,
    "Squareplus": lambda operation, x: (x + ops.sqrt(ops.square(x) + operation.b)) * 0.5,
    "TanhShrink": lambda _, x: x - ops.tanh(x),
    "Threshold": lambda operation, x: ops.where(x > operation.threshold, x, operation.default_value),
    "Trunc": lambda _, x: ops.sign(x) * ops.floor(ops.abs(x)),
    "Arctan2": _arctan2,
    "DivideNoNan": lambda _, x, y: ops.where(y == 0, 0.0, x / ops.where(y == 0, 1.0, y)),
    "FloorDivide": lambda _, x, y: _whole(ops.floor(x / y), x, y),
    "HardTanh": lambda _, x: ops.clip(x, -1, 1),
    "Relu6": lambda _, x: ops.clip(x, 0, 6),
    "Heaviside": lambda _, x, y: ops.where(x == 0, y, ops.cast(x > 0, "float32")),
    "Hypot": lambda _, x, y: ops.sqrt(ops.square(x) + ops.square(y)),
    "Logaddexp": lambda _, x, y: ops.maximum(x, y) + ops.log(ops.exp(-ops.abs(x - y)) + 1),
    "Mod": lambda _, x, y: _whole(x - ops.floor(x / y) * y, x, y),
    "NotEqual": lambda _, x, y: ops.logical_not(ops.equal(x, y)),
}

# ---------------------------------------------------------------- along axes


def _average(operation: Any, x: Any, weights: Any = None) -> Any:
    if weights is None:
        return ops.mean(x, axis=operation.axis)
    if len(np.shape(weights)) == 1:
        shape = [1] * len(x.shape)
        shape[operation.axis] = -1
        weights = ops.reshape(weights, shape)
    return ops.sum(x * (weights / ops.sum(weights, axis=operation.axis, keepdims=True)), axis=operation.axis)


def _diff(operation: Any, x: Any) -> Any:
    front = (slice(None),) * (operation.axis % len(x.shape))
    for _ in range(operation.n):
        x = x[(*front, slice(1, None))] - x[(*front, slice(0, -1))]
    return x


def _glu(operation: Any, x: Any) -> Any:
    half, gate = ops.split(x, 2, axis=operation.axis)
    return half * ops.sigmoid(gate)


def _moments(operation: Any, x: Any) -> list[Any]:
    along = {"axis": operation.axes, "keepdims": operation.keepdims}
    return [ops.mean(x, **along), ops.var(x, **along)]


def _normalize(operation: Any, x: Any) -> Any:
    length = ops.norm(x, ord=operation.order, axis=operation.axis, keepdims=True)
    return x / ops.maximum(length, keras.config.epsilon() if operation.epsilon is None else operation.epsilon)


def _rms_norm(operation: Any, x: Any, scale: Any = None) -> Any:
    square = ops.mean(ops.square(x), axis=operation.axis, keepdims=True)
    y = x / ops.sqrt(square + (operation.epsilon or keras.config.epsilon()))
    return y if scale is None else y * scale


def _separable_conv(operation: Any, x: Any, kernel: Any, mixing: Any) -> Any:
    over = {"data_format": operation.data_format}
    moves = {name: getattr(operation, name) for name in ("strides", "padding", "dilation_rate")}
    return ops.conv(ops.depthwise_conv(x, kernel, **moves, **over), mixing, padding="valid", **over)


def _tensordot(operation: Any, x: Any, weights: Any) -> Any:
    axes, rank, its_rank = operation.axes, len(x.shape), len(np.shape(weights))
    if isinstance(axes, int):
        axes = [range(rank - axes, rank), range(axes)]
    mine, its = (list(side) if isinstance(side, Iterable) else [side] for side in axes)
    names = ascii_lowercase[:rank]
    other = list(ascii_lowercase[rank : rank + its_rank])
    for axis, its_axis in zip(mine, its, strict=True):
        other[its_axis] = names[axis]
    summed = {names[axis] for axis in mine}
    kept = "".join(name for name in (*names, *other) if name not in summed)
    return ops.einsum(f"{names},{''.join(other)}->{kept}", x, weights)


def _truths(x: Any) -> Any:
    return ops.cast(ops.cast(x, "bool"), "int32")


_ALONG_AXES: dict[str, Callable[..., Any]] = {
    "All": lambda operation, x: ops.cast(ops.min(_truths(x), operation.axis, operation.keepdims), "bool"),
    "Any": lambda operation, x: ops.cast(ops.max(_truths(x), operation.axis, operation.keepdims), "bool"),
    "Append": lambda operation, x, y: ops.concatenate([x, y], axis=operation.axis),
    "Average": _average,
    "CountNonzero": lambda operation, x: ops.sum(_truths(x), operation.axis),
    "Diff": _diff,
    "Dot": lambda _, x, weights: ops.tensordot(x, weights, axes=[[-1], [max(0, len(weights.shape) - 2)]]),
    "Glu": _glu,
    "Hstack": lambda _, parts: ops.concatenate(parts, axis=1),
    "Inner": lambda _, x, weights: ops.tensordot(x, weights, axes=[[-1], [-1]]),
    "Moments": _moments,
    "MultiHot": lambda operation, x: ops.max(ops.one_hot(x, operation.num_classes, dtype=operation.dtype), axis=1),
    "Normalize": _normalize,
    "RMSNorm": _rms_norm,
    "SeparableConv": _separable_conv,
    "Stack": lambda operation, parts: ops.concatenate(
        [ops.expand_dims(part, operation.axis) for part in parts], axis=operation.axis
    ),
    "Tensordot": _tensordot,
    "Unstack": lambda operation, x: [
        ops.take(x, place, axis=operation.axis) for place in range(operation.num or x.shape[operation.axis])
    ],
    "Std": lambda operation, x: ops.sqrt(ops.var(x, axis=operation.axis, keepdims=operation.keepdims)),
}


def _traced(function: Callable[..., Any], call: Call) -> list[Value]:
    return call.walk.trace(call, partial(function, call.layer))


for _name, _function in {**_ELEMENTWISE, **_ALONG_AXES}.items():
    op_rule(_name)(partial(_traced, _function))
