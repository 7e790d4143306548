"""Rules of activations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.support.broadcast import constant_beside
from model_export.keras.support.tracing import is_activation
from model_export.keras.value import Value

_Emit = Callable[[Call, str], str]


def _op(kind: str, **attributes: Any) -> _Emit:
    return lambda call, x: call.op(kind, x, **attributes)


def _clip(low: float, high: float) -> _Emit:
    return lambda call, x: call.op("Clip", x, call.constant(low), call.constant(high))


def _times(gate: _Emit) -> _Emit:
    return lambda call, x: call.op("Mul", x, gate(call, x))


def _softplus(call: Call, x: str) -> str:
    return call.op("Softplus", x)


def _sparsemax(call: Call, x: str) -> str:
    """Keras' own formula: the threshold comes of the sum of the sums so far."""
    last, width = call.constant(-1, "int64"), call.op("Shape", x, start=-1)
    ordered, _ = call.graph.split_op("TopK", x, width, outputs=2, at=call.path, axis=-1)
    so_far = call.op("CumSum", ordered, last)
    place = call.op("CumSum", call.op("Expand", call.constant(1.0), width), call.constant(0, "int64"))
    beyond = call.op("Div", call.op("Sub", so_far, call.constant(1.0)), place)
    kept = call.op("Greater", ordered, beyond)
    count = call.op("ReduceSum", call.cast(kept, "float32"), call.graph.ints([-1]))
    total = call.op("ReduceSum", call.op("Where", kept, so_far, call.constant(0.0)), call.graph.ints([-1]))
    bound = call.op("Div", call.op("Sub", total, call.constant(1.0)), count)
    return call.op("Relu", call.op("Sub", x, bound))


_HARD_SIGMOID = _op("HardSigmoid", alpha=1 / 6, beta=0.5)

# Names in `keras.activations`. Source: keras.activations and the ONNX operators of the same names.
ACTIVATIONS: dict[str, _Emit] = {
    "linear": lambda _call, x: x,
    "relu": _op("Relu"),
    "relu6": _clip(0, 6),
    "sigmoid": _op("Sigmoid"),
    "tanh": _op("Tanh"),
    "hard_sigmoid": _HARD_SIGMOID,
    "hard_tanh": _clip(-1, 1),
    "hard_silu": _times(_HARD_SIGMOID),
    "silu": _times(_op("Sigmoid")),
    "mish": _times(lambda call, x: call.op("Tanh", _softplus(call, x))),
    "softplus": _softplus,
    "softsign": _op("Softsign"),
    "log_sigmoid": lambda call, x: call.op("Neg", _softplus(call, call.op("Neg", x))),
    "exponential": _op("Exp"),
    "elu": _op("Elu", alpha=1.0),
    "celu": _op("Celu", alpha=1.0),
    "selu": _op("Selu", alpha=1.6732632423543772, gamma=1.0507009873554805),
    "gelu": _op("Gelu", approximate="none"),
    "leaky_relu": _op("LeakyRelu", alpha=0.2),
    "softmax": _op("Softmax", axis=-1),
    "log_softmax": _op("LogSoftmax", axis=-1),
    "sparsemax": _sparsemax,
}


def activate(call: Call, function: Any, value: Value) -> Value:
    """Apply an activation: a function of `keras.activations`, a layer, or any function of `keras.ops`."""
    if function is None:
        return value
    name = getattr(function, "__name__", "")
    if name in ACTIVATIONS and is_activation(function):
        if not value.row and name.endswith("max"):
            raise call.refuse(f"it takes {name} over time: a timestep's row has no axis here")
        return value.like(ACTIVATIONS[name](call, value.name))
    if isinstance(function, keras.Layer):
        results: list[Value] = call.walk.visit(function, f"{call.path}.", value)
        return results[0]
    inner = Call(call.walk, function, call.path, (value,), {})
    return call.walk.trace(inner, function)[0]


@op_rule("ActivationFunction")
def activation_function(call: Call) -> Value:
    """A function of `keras.activations` that a layer has as an attribute."""
    return activate(call, call.layer.function, call.as_float(call.value))


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
    slope = constant_beside(call, x, to_array(call.layer.alpha))
    return x.like(call.op("PRelu", x, slope))


@rule("Softmax")
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
    """Probabilities along one axis."""
    x = call.as_float(call.value)
    return x.like(call.op(call.kind(["LogSoftmax", "Softmax"]), x, axis=call.axis(x, call.layer.axis)))


@op_rule("Glu")
def glu(call: Call) -> Value:
    """One half of a feature axis, gated by the other."""
    x = call.as_float(call.value)
    axis = call.axis(x, call.layer.axis)
    row = tuple(call.size(x, axis) // 2 if i == axis else dim for i, dim in enumerate(x.row, 1))
    half, gate = call.graph.split_op("Split", x.name, outputs=2, at=call.path, axis=axis, num_outputs=2)
    return x.like(call.op("Mul", half, call.op("Sigmoid", gate)), row=row)
