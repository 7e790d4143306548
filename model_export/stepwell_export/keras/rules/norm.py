"""Rules that normalise or scale, in every timestep by itself."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from stepwell_export.keras.rule_registry import Call, op_rule, rule, to_array
from stepwell_export.keras.support.broadcast import constant_beside
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array


@rule("LayerNormalization")
def layer_normalization(call: Call) -> Value:
    """`ops.layer_normalization`, which the layer calls since Keras 3.11."""
    layer = call.layer
    if layer.rms_scaling:
        raise call.refuse("rms_scaling=True is deprecated", "Use keras.layers.RMSNormalization.")
    return _standardized(call, call.value, layer.axis, layer.epsilon, scale=layer.gamma, offset=layer.beta)


@op_rule("LayerNorm")
def layer_norm(call: Call) -> Value:
    """Zero mean and unit variance over feature axes."""
    epsilon = keras.config.epsilon() if call.layer.epsilon is None else float(call.layer.epsilon)
    scale, offset = (call.optional_weights(place, name) for place, name in ((1, "gamma"), (2, "beta")))
    return _standardized(call, call.value, call.layer.axis, epsilon, scale=scale, offset=offset)


def _standardized(
    call: Call, value: Value, axis: Any, epsilon: float, *, scale: Any = None, offset: Any = None
) -> Value:
    """Return zero mean and unit variance over axes, in one operator: each row comes out as it does alone."""
    x = call.as_float(value)
    axes = sorted(call.axis(x, axis) for axis in keras.tree.flatten(axis))
    shape = [call.size(x, axis) for axis in axes]
    scale = np.ones(shape) if scale is None else scale
    weights = [call.constant(np.broadcast_to(to_array(w), shape)) for w in (scale, offset) if w is not None]
    order = [*(axis for axis in range(x.rank) if axis not in axes), *axes]
    last = {"axis": x.rank - len(axes), "epsilon": epsilon}
    if order == list(range(x.rank)):
        return x.like(call.op("LayerNormalization", x, *weights, **last))
    y = call.op("LayerNormalization", call.op("Transpose", x, perm=order), *weights, **last)
    return x.like(call.op("Transpose", y, perm=np.argsort(order).tolist()))


@op_rule("BatchNorm")
def batch_norm(call: Call) -> Value:
    """Scales by the moving statistics of the training, along one feature axis."""
    x, mean, variance = call.as_float(call.value), call.weights(1), call.weights(2)
    offset, factor = (call.optional_weights(place, name) for place, name in ((3, "offset"), (4, "scale")))
    axis = call.axis(x, call.layer.axis)
    scale = 1 / np.sqrt(variance.astype(np.float64) + call.layer.epsilon)
    scale = scale if factor is None else scale * factor
    shift = -mean * scale if offset is None else offset - mean * scale
    call.size(x, axis)  # a stream has no statistics of its own for each timestep
    scaled = call.op("Mul", x, call.constant(_along(scale, x, axis)))
    return x.like(call.op("Add", scaled, call.constant(_along(shift, x, axis))))


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
    axes = [place for place in range(1, len(split) + 1) if place != axis]
    y = call.reshaped(_standardized(call, call.reshaped(x, split), axes, layer.epsilon), x.row)
    for kind, weights in (("Mul", layer.gamma if layer.scale else None), ("Add", layer.beta if layer.center else None)):
        if weights is not None:
            y = y.like(call.op(kind, y, call.constant(_along(to_array(weights), x, axis))))
    return y


def _along(weights: Array, x: Value, axis: int) -> Array:
    """Return weights of one axis so that they broadcast against the row."""
    return weights.reshape([-1 if place == axis else 1 for place in range(1, x.rank)])


@rule("PReLU")
def prelu(call: Call) -> Value:
    """A line with a learned slope below zero, in one operator."""
    x = call.as_float(call.value)
    return x.like(call.op("PRelu", x, constant_beside(call, x, to_array(call.layer.alpha))))
