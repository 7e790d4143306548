"""Rules that normalise or scale, in every timestep by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.support.broadcast import constant_beside
from model_export.keras.value import Value
from model_export.manifest import Array


@rule("LayerNormalization")
def layer_normalization(call: Call) -> Value:
    """`ops.layer_normalization`, which the layer calls since Keras 3.11."""
    layer = call.layer
    if layer.rms_scaling:
        raise call.refuse("rms_scaling=True is deprecated", "Use keras.layers.RMSNormalization.")
    return _standardized(call, layer.axis, layer.epsilon, layer.gamma, layer.beta)


@op_rule("LayerNorm")
def layer_norm(call: Call) -> Value:
    """Zero mean and unit variance over feature axes."""
    epsilon = keras.config.epsilon() if call.layer.epsilon is None else float(call.layer.epsilon)
    scale, offset = (call.optional_weights(place, name) for place, name in ((1, "gamma"), (2, "beta")))
    return _standardized(call, call.layer.axis, epsilon, scale, offset)


def _standardized(call: Call, axis: Any, epsilon: float, scale: Any, offset: Any) -> Value:
    x = call.as_float(call.value)
    axes = sorted(call.axis(x, axis) for axis in keras.tree.flatten(axis))
    if (
        axes == list(range(axes[0], x.rank)) and None not in x.row[axes[0] - 1 :]
    ):  # in one operator each row comes out as it does alone
        shape = [call.size(x, axis) for axis in axes]
        scale = np.ones(shape) if scale is None else scale
        weights = [call.constant(np.broadcast_to(to_array(w), shape)) for w in (scale, offset) if w is not None]
        return x.like(call.op("LayerNormalization", x, *weights, axis=axes[0], epsilon=epsilon))
    return _scaled(call, x.like(_divided_by_deviation(call, x, axes, epsilon)), axes, scale, offset)


def _scaled(call: Call, x: Value, axes: list[int], scale: Any, offset: Any) -> Value:
    """Return values times a scale, plus an offset, along some axes; each may be None."""
    for kind, weights in (("Mul", scale), ("Add", offset)):
        if weights is not None:
            x = x.like(call.op(kind, x, call.constant(_along(call, to_array(weights), x, axes))))
    return x


def _divided_by_deviation(call: Call, x: Value, axes: list[int], epsilon: float) -> str:
    _, centred, variance = centred_over(call, x, axes)
    return call.op("Div", centred, call.op("Sqrt", call.op("Add", variance, call.constant(epsilon))))


def centred_over(call: Call, x: Value, axes: list[int]) -> tuple[str, str, str]:
    """Return the mean over axes, the values without it, and the variance; all keep their axes."""
    at = call.graph.ints(axes)
    mean = call.op("ReduceMean", x, at, keepdims=1)
    centred = call.op("Sub", x, mean)
    return mean, centred, call.op("ReduceMean", call.op("Mul", centred, centred), at, keepdims=1)


@op_rule("Moments")
def moments(call: Call) -> list[Value]:
    """The mean and the variance over feature axes."""
    x, layer = call.as_float(call.value), call.layer
    axes = sorted(call.axis(x, axis) for axis in keras.tree.flatten(layer.axes))
    row = [1 if i in axes else dim for i, dim in enumerate(x.row, 1) if layer.keepdims or i not in axes]
    mean, _, variance = centred_over(call, x, axes)
    if layer.keepdims:
        return [x.like(name, row=tuple(row)) for name in (mean, variance)]
    return [x.like(call.op("Squeeze", name, call.graph.ints(axes)), row=tuple(row)) for name in (mean, variance)]


@op_rule("RMSNorm")
def rms_norm(call: Call) -> Value:
    """A mean square of one over feature axes."""
    x, layer = call.as_float(call.value), call.layer
    axes = call.graph.ints(sorted(call.axis(x, axis) for axis in keras.tree.flatten(layer.axis)))
    epsilon, scale = float(layer.epsilon or keras.config.epsilon()), call.optional_weights(1, "scale")
    square = call.op("ReduceMean", call.op("Mul", x, x), axes, keepdims=1)
    y = call.op("Div", x, call.op("Sqrt", call.op("Add", square, call.constant(epsilon))))
    return x.like(y if scale is None else call.op("Mul", y, call.constant(scale)))


@rule("BatchNormalization")
def batch_normalization(call: Call) -> Value:
    """`ops.batch_normalization`, which cannot be traced with an offset and without a scale."""
    layer = call.layer
    return _by_statistics(call, layer.axis, [layer.moving_mean, layer.moving_variance], layer.gamma, layer.beta)


@op_rule("BatchNorm")
def batch_norm(call: Call) -> Value:
    """Scales by the moving statistics of the training, along one feature axis."""
    offset, scale = (call.optional_weights(place, name) for place, name in ((3, "offset"), (4, "scale")))
    return _by_statistics(call, call.layer.axis, [call.weights(1), call.weights(2)], scale, offset)


def _by_statistics(call: Call, axis: int, statistics: Sequence[Any], factor: Any, offset: Any) -> Value:
    x = call.as_float(call.value)
    mean, variance = map(to_array, statistics)
    place = call.axis(x, axis)
    scale = 1 / np.sqrt(variance.astype(np.float64) + call.layer.epsilon)
    if factor is not None:
        scale *= to_array(factor)
    shift = -mean * scale
    if offset is not None:
        shift += to_array(offset)
    return _affine(call, x, _along(call, scale, x, [place]), _along(call, shift, x, [place]))


@rule("Rescaling")
def rescaling(call: Call) -> Value:
    """Times scale, plus offset."""
    return _affine(call, call.as_float(call.value), to_array(call.layer.scale), to_array(call.layer.offset))


@rule("Normalization")
def normalization(call: Call) -> Value:
    """Zero mean and unit variance by statistics that were learned once."""
    layer, x = call.layer, call.as_float(call.value)
    mean, variance = to_array(layer.mean), to_array(layer.variance)
    spread = np.maximum(np.sqrt(variance), keras.config.epsilon())
    centre, width = constant_beside(call, x, mean), constant_beside(call, x, spread)
    if layer.invert:
        return x.like(call.op("Add", call.op("Mul", x, width), centre))
    return x.like(call.op("Div", call.op("Sub", x, centre), width))


def _affine(call: Call, x: Value, scale: Array, shift: Array) -> Value:
    scaled = call.op("Mul", x, constant_beside(call, x, scale))
    return x.like(call.op("Add", scaled, constant_beside(call, x, shift)))


@rule("GroupNormalization")
def group_normalization(call: Call) -> Value:
    """Zero mean and unit variance over the positions and the channels of each group, inside one timestep."""
    layer, x = call.layer, call.as_float(call.value)
    if None in x.row:
        raise call.refuse(
            "it normalises over the time axis as well, so it needs timesteps that have not come yet",
            "Put it into TimeDistributed(GroupNormalization(...)), or use LayerNormalization.",
        )
    axis = call.axis(x, layer.axis)
    channels = call.size(x, axis)
    groups = channels if layer.groups == -1 else layer.groups
    split = [*x.row[: axis - 1], groups, channels // groups, *x.row[axis:]]
    grouped = call.reshaped(x, split)
    axes = [place for place in range(1, len(split) + 1) if place != axis]
    y = x.like(call.reshape(_divided_by_deviation(call, grouped, axes, layer.epsilon), x.row))
    return _scaled(call, y, [axis], layer.gamma if layer.scale else None, layer.beta if layer.center else None)


def _along(call: Call, weights: Array, x: Value, axes: list[int]) -> Array:
    """Return weights of some axes so that they broadcast against the row."""
    return weights.reshape([call.size(x, axis) if axis in axes else 1 for axis in range(1, x.rank)])
