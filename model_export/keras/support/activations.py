"""Activation functions as ONNX nodes; each sees one row at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from model_export.keras.registry import Call
from model_export.keras.support.deferred import softmax_over_time
from model_export.keras.support.tracing import is_activation
from model_export.keras.value import Value

Emit = Callable[[Call, str], str]


def _op(kind: str, **attributes: Any) -> Emit:
    return lambda call, x: call.op(kind, x, **attributes)


def _clip(low: float, high: float) -> Emit:
    return lambda call, x: call.op("Clip", x, call.constant(low), call.constant(high))


def _times(gate: Emit) -> Emit:
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
    count = call.op("ReduceSum", call.graph.cast(kept, "float32", at=call.path), call.graph.ints([-1]))
    total = call.op("ReduceSum", call.op("Where", kept, so_far, call.constant(0.0)), call.graph.ints([-1]))
    bound = call.op("Div", call.op("Sub", total, call.constant(1.0)), count)
    return call.op("Relu", call.op("Sub", x, bound))


_HARD_SIGMOID = _op("HardSigmoid", alpha=1 / 6, beta=0.5)

# Names in `keras.activations`. Source: keras.activations and the ONNX operators of the same names.
ACTIVATIONS: dict[str, Emit] = {
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
        if not value.row and value.time and name == "softmax":
            return softmax_over_time(call, value)
        if not value.row and name.endswith("max"):
            raise call.refuse(f"it takes {name} over time: a timestep's row has no axis here")
        return value.like(ACTIVATIONS[name](call, value.name))
    if isinstance(function, keras.Layer):
        results: list[Value] = call.walk.visit(function, f"{call.path}.", value)
        return results[0]
    inner = Call(call.walk, function, call.path, (value,), {})
    return call.walk.trace(inner, function)[0]
