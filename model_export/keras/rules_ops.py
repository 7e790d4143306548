"""Rules of `keras.ops` operations, as functional models and traced custom layers call them."""

from __future__ import annotations

from itertools import pairwise

import keras
import numpy as np

from model_export.keras.activations import ACTIVATIONS
from model_export.keras.broadcast import broadcast, joined
from model_export.keras.emit import Value
from model_export.keras.registry import Call, op_rule, to_array
from model_export.keras.rules_merge import concat

_UNARY = {
    "Absolute": "Abs", "Ceil": "Ceil", "Cos": "Cos", "Erf": "Erf", "Exp": "Exp", "Floor": "Floor", "Log": "Log",
    "Negative": "Neg", "Reciprocal": "Reciprocal", "Round": "Round", "Sign": "Sign", "Sin": "Sin", "Sqrt": "Sqrt",
}  # fmt: skip
_BINARY = {
    "Add": "Add", "Subtract": "Sub", "Multiply": "Mul", "Divide": "Div", "TrueDivide": "Div", "Power": "Pow",
    "Maximum": "Max", "Minimum": "Min", "LogicalAnd": "And", "LogicalOr": "Or", "LogicalXor": "Xor",
    "Equal": "Equal", "Greater": "Greater", "GreaterEqual": "GreaterOrEqual", "Less": "Less",
    "LessEqual": "LessOrEqual",
}  # fmt: skip
_TRUTHS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"}
_FLOAT_ONLY = {"Div", "Pow", "Exp", "Log", "Sqrt", "Sin", "Cos", "Erf", "Reciprocal"}
_REDUCTIONS = {
    "Sum": "ReduceSum", "Mean": "ReduceMean", "Max": "ReduceMax", "Min": "ReduceMin", "Prod": "ReduceProd",
}  # fmt: skip
_ACTIVATIONS = {
    "Relu": "relu", "Relu6": "relu6", "Sigmoid": "sigmoid", "Tanh": "tanh", "Silu": "silu", "Softplus": "softplus",
    "Softsign": "softsign", "HardSigmoid": "hard_sigmoid", "HardSilu": "hard_silu", "HardTanh": "hard_tanh",
    "LogSigmoid": "log_sigmoid", "Selu": "selu",
}  # fmt: skip


@op_rule("StopGradient", "ConvertToTensor", "Copy")
def same(call: Call) -> Value:
    """Operations that change no value; like all operations, they drop the mask."""
    return call.value.like(call.value.name)


@op_rule("Cast", "SaturateCast")
def cast(call: Call) -> Value:
    """Another dtype."""
    dtype = keras.backend.standardize_dtype(call.layer.dtype)
    return call.value.like(call.graph.cast(call.value.name, dtype, at=call.path), dtype=dtype)


# ---------------------------------------------------------------- element by element


@op_rule(*_UNARY)
def unary(call: Call) -> Value:
    """One operand."""
    kind = _UNARY[call.kind(_UNARY)]
    x = call.as_float(call.value) if kind in _FLOAT_ONLY else call.value
    return x.like(call.op(kind, x.name))


@op_rule(*_ACTIVATIONS)
def activation(call: Call) -> Value:
    """An activation without parameters."""
    x = call.as_float(call.value)
    return x.like(ACTIVATIONS[_ACTIVATIONS[call.kind(_ACTIVATIONS)]](call, x.name))


@op_rule("Elu", "Celu", "LeakyRelu", "Gelu")
def shaped_activation(call: Call) -> Value:
    """An activation with one parameter."""
    x, layer = call.as_float(call.value), call.layer
    kind = call.kind(["Elu", "Celu", "LeakyRelu", "Gelu"])
    if kind == "Gelu":
        return x.like(call.op("Gelu", x.name, approximate="tanh" if layer.approximate else "none"))
    return x.like(call.op(kind, x.name, alpha=float(layer.negative_slope if kind == "LeakyRelu" else layer.alpha)))


@op_rule("Square")
def square(call: Call) -> Value:
    """x²."""
    return call.value.like(call.op("Mul", call.value.name, call.value.name))


@op_rule("Rsqrt")
def rsqrt(call: Call) -> Value:
    """1 / √x."""
    x = call.as_float(call.value)
    return x.like(call.op("Reciprocal", call.op("Sqrt", x.name)))


@op_rule("Log1p", "Expm1")
def near_one(call: Call) -> Value:
    """log(1 + x) or eˣ − 1."""
    x, one = call.as_float(call.value), call.constant(1.0)
    if call.kind(["Log1p", "Expm1"]) == "Log1p":
        return x.like(call.op("Log", call.op("Add", x.name, one)))
    return x.like(call.op("Sub", call.op("Exp", x.name), one))


@op_rule("LogicalNot")
def logical_not(call: Call) -> Value:
    """The opposite truth."""
    return call.value.like(call.op("Not", call.value.name))


@op_rule("Clip")
def clip(call: Call) -> Value:
    """Between two bounds."""
    x = call.value
    low, high = (call.constant(to_array(bound), x.dtype) for bound in (call.layer.x_min, call.layer.x_max))
    return x.like(call.op("Min", call.op("Max", x.name, low), high))


@op_rule(*_BINARY)
def binary(call: Call) -> Value:
    """Two operands, the smaller one broadcast."""
    kind = _BINARY[call.kind(_BINARY)]
    values = broadcast(call, call.args[:2])
    if kind in _FLOAT_ONLY:
        values = [call.as_float(value) for value in values]
    return joined(values, call.op(kind, *(value.name for value in values)), dtype="bool" if kind in _TRUTHS else None)


@op_rule("NotEqual")
def not_equal(call: Call) -> Value:
    """Where two operands differ."""
    values = broadcast(call, call.args[:2])
    return joined(values, call.op("Not", call.op("Equal", *(value.name for value in values))), dtype="bool")


@op_rule("Where")
def where(call: Call) -> Value:
    """A choice between two operands."""
    condition, *choices = broadcast(call, call.args[:3])
    if condition.dtype != "bool":
        condition = condition.like(call.graph.cast(condition.name, "bool", at=call.path), dtype="bool")
    return joined([condition, *choices], call.op("Where", condition.name, *(value.name for value in choices)))


@op_rule("ZerosLike", "OnesLike")
def filled(call: Call) -> Value:
    """A constant with the shape of a value."""
    x = call.value
    asked = getattr(call.layer, "dtype", None) or call.kwargs.get("dtype")  # older versions of Keras: in the call
    dtype = keras.backend.standardize_dtype(asked or x.dtype)
    fill = call.constant(call.kind(["ZerosLike", "OnesLike"]) == "OnesLike", dtype)
    return x.like(call.op("Expand", fill, call.op("Shape", x.name)), dtype=dtype)


# ---------------------------------------------------------------- along axes


@op_rule(*_REDUCTIONS)
def reduction(call: Call) -> Value:
    """A sum, mean, maximum, minimum or product over feature axes."""
    kind = _REDUCTIONS[call.kind(_REDUCTIONS)]
    x = call.as_float(call.value) if kind == "ReduceMean" else call.value
    return _reduce(call, kind, x)


@op_rule("Var", "Std")
def spread(call: Call) -> Value:
    """The variance or standard deviation over feature axes."""
    x = call.as_float(call.value)
    axes = call.graph.ints(_axes(call, x))
    centred = call.op("Sub", x.name, call.op("ReduceMean", x.name, axes, keepdims=1))
    variance = _reduce(call, "ReduceMean", x.like(call.op("Mul", centred, centred)))
    return variance if call.kind(["Var", "Std"]) == "Var" else variance.like(call.op("Sqrt", variance.name))


@op_rule("Any", "All")
def truth(call: Call) -> Value:
    """Whether any, or all, along feature axes."""
    x = call.value.like(call.graph.cast(call.value.name, "int32", at=call.path), dtype="int32")
    result = _reduce(call, "ReduceMax" if call.kind(["Any", "All"]) == "Any" else "ReduceMin", x)
    return result.like(call.graph.cast(result.name, "bool", at=call.path), dtype="bool")


def _axes(call: Call, x: Value) -> list[int]:
    axes = call.layer.axis
    wanted = range(x.rank) if axes is None else keras.tree.flatten(axes)
    return sorted(call.axis(x, axis) for axis in wanted)


def _reduce(call: Call, kind: str, x: Value) -> Value:
    axes, keep = _axes(call, x), bool(call.layer.keepdims)
    row = [1 if i in axes else dim for i, dim in enumerate(x.row, 1) if keep or i not in axes]
    return x.like(call.op(kind, x.name, call.graph.ints(axes), keepdims=int(keep)), row=tuple(row))


@op_rule("Softmax", "LogSoftmax")
def softmax(call: Call) -> Value:
    """Probabilities along one feature axis."""
    x = call.as_float(call.value)
    return x.like(call.op(call.kind(["LogSoftmax", "Softmax"]), x.name, axis=call.axis(x, call.layer.axis)))


@op_rule("Concatenate")
def concatenate(call: Call) -> Value:
    """Side by side along one feature axis."""
    return concat(call, call.values, call.layer.axis)


@op_rule("Split")
def split(call: Call) -> list[Value]:
    """Equal or given parts along one feature axis."""
    x, cuts = call.value, call.layer.indices_or_sections
    axis = call.axis(x, call.layer.axis)
    size = x.row[axis - 1]
    ends = [*cuts, size] if isinstance(cuts, list | tuple) else [size // cuts * (i + 1) for i in range(cuts)]
    return [_slice(call, x, axis, slice(start, end)) for start, end in pairwise([0, *ends])]


@op_rule("Matmul")
def matmul(call: Call) -> Value:
    """A product with a constant matrix over the last feature axis."""
    left, right = call.args[:2]
    if not isinstance(left, Value) or isinstance(right, Value) or to_array(right).ndim != 2 or not left.row:
        raise call.refuse("it is a product of two computed values; expected a value and a weight matrix")
    x, weights = call.as_float(left), to_array(right)
    kind = "Gemm" if len(x.row) == 1 else "MatMul"
    return x.like(call.op(kind, x.name, call.constant(weights)), row=(*x.row[:-1], weights.shape[1]))


# ---------------------------------------------------------------- shapes


@op_rule("ExpandDims")
def expand_dims(call: Call) -> Value:
    """New axes of length 1 among the features."""
    x = call.value
    row = list(x.row)
    axes = keras.tree.flatten(call.layer.axis)
    rank = x.rank + len(axes)
    places = sorted(axis % rank for axis in axes)
    if places[0] < 1 + x.time:
        raise call.refuse("it puts a new axis before the features, where batch and time belong")
    for place in places:
        row.insert(place - 1 - x.time, 1)
    return x.like(call.graph.reshape(x.name, row, at=call.path), row=tuple(row))


@op_rule("Squeeze")
def squeeze(call: Call) -> Value:
    """Drops feature axes of length 1."""
    x, axes = call.value, call.layer.axis
    if axes is None:
        raise call.refuse("it drops every axis of length 1, which may be batch or time", "Name the axis.")
    gone = {call.axis(x, axis) for axis in keras.tree.flatten(axes)}
    row = [dim for i, dim in enumerate(x.row, 1) if i not in gone]
    return x.like(call.graph.reshape(x.name, row, at=call.path), row=tuple(row))


@op_rule("Transpose")
def transpose(call: Call) -> Value:
    """Another order of the feature axes."""
    x, order = call.value, call.layer.axes
    fixed = 1 + x.time
    if order is None or [axis % x.rank for axis in order[:fixed]] != list(range(fixed)):
        raise call.refuse(f"its order {order} moves the batch or time axis")
    perm = [0, *(axis % x.rank - x.time for axis in order[fixed:])]
    return x.like(call.op("Transpose", x.name, perm=perm), row=tuple(x.row[axis - 1] for axis in perm[1:]))


@op_rule("GetItem")
def get_item(call: Call) -> Value:
    """A slice of the features, or the last timestep.

    `x[:, -1]` is the answer for the timesteps so far, so it becomes the value of this timestep.
    """
    x, key = call.value, call.args[1]
    keys = list(key) if isinstance(key, tuple | list) else [key]
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    filler = [slice(None)] * (x.rank - len([k for k in keys if k is not Ellipsis]))
    keys = keys[:at] + filler + keys[at + 1 :]
    if any(not isinstance(k, int | np.integer | slice) for k in keys):
        raise call.refuse(f"its index {key} is not made of numbers and slices")
    if keys.pop(0) != slice(None):
        raise call.refuse("it picks rows of the batch, which mixes streams")
    if x.time and (first := keys.pop(0)) != slice(None):
        if first != -1:
            raise call.refuse(f"it picks timesteps ({first}); a stream only has the newest one", "Use x[:, -1].")
        x = x.like(x.name, time=False)
    dropped = []
    for axis, k in enumerate(keys, 1):
        if isinstance(k, slice):
            if k != slice(None):
                x = _slice(call, x, axis, k)
        else:
            index = int(k) % x.row[axis - 1]
            x = _slice(call, x, axis, slice(index, index + 1))
            dropped.append(axis)
    row = tuple(dim for axis, dim in enumerate(x.row, 1) if axis not in dropped)
    return x.like(call.graph.reshape(x.name, row, at=call.path), row=row) if dropped else x.like(x.name)


def _slice(call: Call, x: Value, axis: int, part: slice) -> Value:
    row = list(x.row)
    start, end, step = part.indices(row[axis - 1])
    row[axis - 1] = len(range(start, end, step))
    ints = call.graph.ints
    if step < 0:
        raise call.refuse("it reverses an axis with a negative step")
    return x.like(call.op("Slice", x.name, ints([start]), ints([end]), ints([axis]), ints([step])), row=tuple(row))
