"""Rules of activations, in every timestep by itself; a softmax over time becomes weights for a sum."""

from __future__ import annotations

import re

import keras

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.support.activations import ACTIVATIONS, activate
from model_export.keras.support.deferred import handles_deferred, softmax_over_time
from model_export.keras.support.window import handles_padding
from model_export.keras.value import Value

_PLAIN = (
    "Relu", "Relu6", "Sigmoid", "Tanh", "Silu", "Softplus", "Softsign", "HardSigmoid", "HardSilu", "HardTanh",
    "LogSigmoid", "Selu",
)  # fmt: skip


@op_rule("ActivationFunction")
def activation_function(call: Call) -> Value:
    """A function of `keras.activations` that a layer has as an attribute."""
    return activate(call, call.layer.function, call.as_float(call.value))


@op_rule(*_PLAIN)
def activation(call: Call) -> Value:
    """An activation without parameters."""
    x, name = call.as_float(call.value), re.sub(r"(?<=[a-z])(?=[A-Z])", "_", call.kind(_PLAIN)).lower()
    return x.like(ACTIVATIONS[name](call, x.name))


@op_rule("Elu", "Celu", "LeakyRelu", "Gelu")
def shaped_activation(call: Call) -> Value:
    """An activation with one parameter."""
    x, layer = call.as_float(call.value), call.layer
    kind = call.kind(["Elu", "Celu", "LeakyRelu", "Gelu"])
    if kind == "Gelu":
        return x.like(call.op("Gelu", x, approximate="tanh" if layer.approximate else "none"))
    return x.like(call.op(kind, x, alpha=float(layer.negative_slope if kind == "LeakyRelu" else layer.alpha)))


@op_rule("ReLU")
def relu(call: Call) -> Value:
    """max(x, 0), with slope below a threshold and a ceiling."""
    layer, x = call.layer, call.as_float(call.value)
    slope, threshold = float(layer.negative_slope or 0), float(layer.threshold or 0)
    most = None if layer.max_value is None else call.constant(float(layer.max_value))
    if threshold == 0:
        y = call.op("LeakyRelu", x.name, alpha=slope) if slope else call.op("Relu", x.name)
        return x.like(y if most is None else call.op("Min", y, most))
    zero, bound = call.constant(0.0), call.constant(threshold)
    y = call.op("Where", call.op("Greater", x.name, bound), x.name, zero)
    if most is not None:
        y = call.op("Clip", y, zero, most)
    if slope:
        below = call.op("Relu", call.op("Sub", bound, x.name))
        y = call.op("Sub", y, call.op("Mul", below, call.constant(slope)))
    return x.like(y)


@rule("PReLU")
def prelu(call: Call) -> Value:
    """A line with a learned slope below zero."""
    x = call.as_float(call.value)
    slope = call.constant_beside(x, to_array(call.layer.alpha))
    return x.like(call.op("PRelu", x, slope))


@rule("Softmax")
@handles_padding
@handles_deferred
def softmax_layer(call: Call) -> Value:
    """`ops.softmax` along one axis; over several, or with a mask, the layer's code is not traced."""
    axes = keras.tree.flatten(call.layer.axis)
    if len(axes) != 1:
        raise call.refuse(f"it works over several axes at once ({axes}); expected one")
    if call.mask is not None or len(call.args) > 1:
        raise call.refuse("it takes a mask over its features", "Use keras.layers.Activation('softmax').")
    return call.walk.trace(call, call.layer.call)[0]


@op_rule("Softmax", "LogSoftmax")
def softmax(call: Call) -> Value:
    """Probabilities along one feature axis; over time they are weights that wait for a sum."""
    x = call.as_float(call.value)
    if call.kind(["LogSoftmax", "Softmax"]) == "Softmax" and x.time and call.layer.axis % x.rank == 1:
        return softmax_over_time(call, x)
    return x.like(call.op(call.kind(["LogSoftmax", "Softmax"]), x, axis=call.axis(x, call.layer.axis)))


@op_rule("Glu")
def glu(call: Call) -> Value:
    """One half of a feature axis, gated by the other."""
    x = call.as_float(call.value)
    axis = call.axis(x, call.layer.axis)
    row = tuple(dim // 2 if i == axis else dim for i, dim in enumerate(x.row, 1))
    half, gate = call.graph.split_op("Split", x.name, outputs=2, at=call.path, axis=axis, num_outputs=2)
    return x.like(call.op("Mul", half, call.op("Sigmoid", gate)), row=row)
