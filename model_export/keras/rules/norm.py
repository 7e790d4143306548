"""Rules of layers that normalise or scale, in every timestep by itself."""

from __future__ import annotations

import keras
import numpy as np

from model_export.keras.registry import Call, rule, to_array
from model_export.keras.value import Value
from model_export.manifest import Array


@rule("LayerNormalization")
def layer_normalization(call: Call) -> Value:
    """Zero mean and unit variance over feature axes, in every timestep by itself."""
    layer, x = call.layer, call.as_float(call.value)
    if layer.rms_scaling:
        raise call.refuse("rms_scaling=True is deprecated", "Use keras.layers.RMSNormalization.")
    axes = sorted(call.axis(x, axis) for axis in keras.tree.flatten(layer.axis))
    if axes == list(range(axes[0], len(x.row) + 1)):  # in one operator each row comes out as it does alone
        scale = np.ones(x.row[axes[0] - 1 :]) if layer.gamma is None else layer.gamma
        weights = [call.constant(w) for w in (scale, layer.beta) if w is not None]
        return x.like(call.op("LayerNormalization", x, *weights, axis=axes[0], epsilon=layer.epsilon))
    at = call.graph.ints(axes)
    centred = call.op("Sub", x.name, call.op("ReduceMean", x.name, at, keepdims=1))
    variance = call.op("ReduceMean", call.op("Mul", centred, centred), at, keepdims=1)
    y = call.op("Div", centred, call.op("Sqrt", call.op("Add", variance, call.constant(layer.epsilon))))
    if layer.gamma is not None:
        y = call.op("Mul", y, call.constant(_along(to_array(layer.gamma), x, axes)))
    if layer.beta is not None:
        y = call.op("Add", y, call.constant(_along(to_array(layer.beta), x, axes)))
    return x.like(y)


@rule("BatchNormalization")
def batch_normalization(call: Call) -> Value:
    """Scales by the moving statistics of the training."""
    layer, x = call.layer, call.as_float(call.value)
    axis = call.axis(x, layer.axis)
    renorm = bool(getattr(layer, "renorm", False))
    spread = to_array(layer.moving_stddev) ** 2 if renorm else to_array(layer.moving_variance)
    scale = 1 / np.sqrt(spread.astype(np.float64) + layer.epsilon)
    if layer.gamma is not None:
        scale *= to_array(layer.gamma)
    shift = -to_array(layer.moving_mean) * scale
    if layer.beta is not None:
        shift += to_array(layer.beta)
    return _affine(call, x, _along(scale, x, [axis]), _along(shift, x, [axis]))


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
    centre, width = call.constant_beside(x, mean), call.constant_beside(x, spread)
    if layer.invert:
        return x.like(call.op("Add", call.op("Mul", x, width), centre))
    return x.like(call.op("Div", call.op("Sub", x, centre), width))


def _affine(call: Call, x: Value, scale: Array, shift: Array) -> Value:
    scaled = call.op("Mul", x, call.constant_beside(x, scale))
    return x.like(call.op("Add", scaled, call.constant_beside(x, shift)))


@rule("GroupNormalization")
def group_normalization(call: Call) -> Value:
    """Zero mean and unit variance over the positions and the channels of each group, inside one timestep."""
    layer, x = call.layer, call.as_float(call.value)
    if x.time:
        raise call.refuse(
            "it normalises over the time axis as well, so it needs timesteps that have not come yet",
            "Put it into TimeDistributed(GroupNormalization(...)), or use LayerNormalization.",
        )
    axis = call.axis(x, layer.axis)
    channels = x.row[axis - 1]
    groups = channels if layer.groups == -1 else layer.groups
    split = [*x.row[: axis - 1], groups, channels // groups, *x.row[axis:]]
    axes = call.graph.ints([place for place in range(1, len(split) + 1) if place != axis])
    grouped = call.graph.reshape(x.name, split, at=call.path)
    centred = call.op("Sub", grouped, call.op("ReduceMean", grouped, axes, keepdims=1))
    variance = call.op("ReduceMean", call.op("Mul", centred, centred), axes, keepdims=1)
    y = call.op("Div", centred, call.op("Sqrt", call.op("Add", variance, call.constant(layer.epsilon))))
    y = call.graph.reshape(y, x.row, at=call.path)
    for kind, weights in (("Mul", layer.gamma if layer.scale else None), ("Add", layer.beta if layer.center else None)):
        if weights is not None:
            y = call.op(kind, y, call.constant(_along(to_array(weights), x, [axis])))
    return x.like(y)


def _along(weights: Array, x: Value, axes: list[int]) -> Array:
    """Return weights of some axes so that they broadcast against the row."""
    return weights.reshape([dim if i in axes else 1 for i, dim in enumerate(x.row, 1)])
