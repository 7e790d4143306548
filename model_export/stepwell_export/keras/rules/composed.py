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

from stepwell_export.keras.rule_registry import Call, op_rule
from stepwell_export.keras.value import Value

# ---------------------------------------------------------------- element by element


def _arctan2(_: Any, y: Any, x: Any) -> Any:
    """The arc tangent of the smaller operand by the larger one, so that neither 0 nor infinity divides."""
    x, y = ops.cast(x, "float32"), ops.cast(y, "float32")
    wide, high = ops.abs(x), ops.abs(y)
    least, most = ops.minimum(wide, high), ops.maximum(wide, high)
    ratio = ops.where(least == most, 1.0, least / ops.where(most == 0, 1.0, most))  # both may be infinite
    angle = ops.arctan(ops.where(most == 0, 0.0, ratio))
    angle = ops.where(high > wide, math.pi / 2 - angle, angle)
    angle = ops.where(ops.signbit(x), math.pi - angle, angle)
    angle = ops.where(ops.logical_and(ops.isnan(x + y), least != most), x + y, angle)
    return ops.where(ops.signbit(y), -angle, angle)


def _cbrt(_: Any, x: Any) -> Any:
    """The cube root, with one step of Newton's method: 1/3 as a float32 is not exact enough for a large logarithm."""
    size = ops.abs(x)
    root = ops.power(size, 1 / 3)
    mended = root - (root - size / ops.square(root)) / 3
    return ops.sign(x) * ops.where(ops.logical_and(root > 0, ops.isfinite(root)), mended, root)


def _expm1(_: Any, x: Any) -> Any:
    """exp(x) - 1, by a hyperbolic tangent where the difference would lose the digits of a small number."""
    return ops.where(x > 1, ops.exp(x) - 1, _below_zero(x))


def _below_zero(x: Any) -> Any:
    """Return exp(x) - 1 for numbers up to 1."""
    half = ops.tanh(x * 0.5)
    return 2 * half / (1 - half)


def _celu(operation: Any, x: Any) -> Any:
    alpha = float(operation.alpha)
    return ops.maximum(x, 0) + alpha * _below_zero(ops.minimum(x, 0) / alpha)


def _elu(operation: Any, x: Any) -> Any:
    return ops.maximum(x, 0) + float(operation.alpha) * _below_zero(ops.minimum(x, 0))


def _selu(_: Any, x: Any) -> Any:
    alpha, scale = 1.6732632423543772, 1.0507009873554805
    return scale * ops.maximum(x, 0) + scale * alpha * _below_zero(ops.minimum(x, 0))


def _log1p(_: Any, x: Any) -> Any:
    """log(1 + x), multiplied by what rounding took from the sum; source: W. Kahan, HP-15C Advanced Functions, 1982."""
    total = x + 1
    counted = total - 1
    return ops.where(counted == 0, x, ops.log(total) * ops.where(counted == x, 1.0, x / counted))


def _logaddexp(_: Any, x: Any, y: Any) -> Any:
    apart = x - y
    return ops.where(ops.isnan(apart), x + y, ops.maximum(x, y) + ops.log1p(ops.exp(-ops.abs(apart))))


def _hypot(_: Any, x: Any, y: Any) -> Any:
    """The longer side times a root between 1 and 2: squares of the sides alone may be too large, or too small."""
    x, y = ops.abs(ops.cast(x, "float32")), ops.abs(ops.cast(y, "float32"))
    most, least = ops.maximum(x, y), ops.minimum(x, y)
    ratio = least / ops.where(most == 0, 1.0, most)
    return ops.where(ops.isinf(most), most, most * ops.sqrt(1 + ops.square(ratio)))


def _heaviside(_: Any, x: Any, y: Any) -> Any:
    step = ops.where(x == 0, ops.cast(y, "float32"), ops.cast(x > 0, "float32"))
    return ops.where(ops.isnan(x), x, step)


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
    "Cbrt": _cbrt,
    "Celu": _celu,
    "Deg2rad": lambda _, x: x * (math.pi / 180),
    "Elu": _elu,
    "Exp2": lambda _, x: ops.power(2.0, x),
    "Expm1": _expm1,
    "HardSilu": lambda _, x: x * ops.hard_sigmoid(x),
    "Isfinite": lambda _, x: ops.logical_not(ops.logical_or(ops.isnan(x), ops.isinf(x))),
    "Log10": lambda _, x: ops.log(x) * (1 / math.log(10)),
    "Log1p": _log1p,
    "Log2": lambda _, x: ops.log(x) * (1 / math.log(2)),
    "LogSigmoid": lambda _, x: -ops.softplus(-x),
    "Mish": lambda _, x: x * ops.tanh(ops.softplus(x)),
    "NanToNum": _nan_to_num,
    "Rad2deg": lambda _, x: x * (180 / math.pi),
    "ReLU": lambda operation, x: operation.call(x),
    "Rsqrt": lambda _, x: ops.reciprocal(ops.sqrt(x)),
    "Selu": _selu,
    "Sigmoid": lambda _, x: ops.reciprocal(ops.exp(-x) + 1),
    "Signbit": lambda _, x: ops.logical_or(x < 0, ops.reciprocal(x) < 0),
    "Silu": lambda _, x: x * ops.sigmoid(x),
    "Sinc": _sinc,
    "SparsePlus": lambda _, x: ops.where(x > 1, x, ops.square(ops.maximum(x + 1, 0)) / 4),
    "Sparsemax": _sparsemax,
    "Square": lambda _, x: ops.multiply(*[ops.cast(x, "int32") if x.dtype == "bool" else x] * 2),
    "Squareplus": lambda operation, x: (x + ops.sqrt(ops.square(x) + operation.b)) * 0.5,
    "TanhShrink": lambda _, x: x - ops.tanh(x),
    "Threshold": lambda operation, x: ops.where(x > operation.threshold, x, operation.default_value),
    "Trunc": lambda _, x: x if "int" in x.dtype else ops.where(x < 0, ops.ceil(x), ops.floor(x)),
    "Arctan2": _arctan2,
    "DivideNoNan": lambda _, x, y: ops.where(y == 0, 0.0, x / ops.where(y == 0, 1.0, y)),
    "HardTanh": lambda _, x: ops.clip(x, -1, 1),
    "Relu6": lambda _, x: ops.clip(x, 0, 6),
    "Heaviside": _heaviside,
    "Hypot": _hypot,
    "Logaddexp": _logaddexp,
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
