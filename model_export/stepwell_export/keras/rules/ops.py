"""Rules of `keras.ops` that work element by element, as functional models and traced code call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from stepwell_export.keras.rule_registry import Call, op_rule, to_array
from stepwell_export.keras.support.broadcast import broadcast, common_dtype, joined
from stepwell_export.keras.value import Value

_BINARY = {"Add": "Add", "Subtract": "Sub", "Multiply": "Mul", "Maximum": "Max", "Minimum": "Min"}
_OF_TRUTHS = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}
_BINARY_FLOAT = {"Divide": "Div", "TrueDivide": "Div"}
_COMPARISONS = {
    "Equal": "Equal", "Greater": "Greater", "GreaterEqual": "GreaterOrEqual", "Less": "Less",
    "LessEqual": "LessOrEqual",
}  # fmt: skip
_LOGIC = {"LogicalAnd": "And", "LogicalOr": "Or", "LogicalXor": "Xor"}


@op_rule("StopGradient", "Copy", "Real", "Conjugate")
def same(call: Call) -> Value:
    """Operations that change no value; like all operations, they drop the mask."""
    return call.value.like(call.value.name)


@op_rule("Cast", "SaturateCast", "ConvertToTensor", "Array")
def cast(call: Call) -> Value:
    """Another dtype, if one is given; every float is float32 in the graph."""
    x, dtype = call.value, getattr(call.layer, "dtype", None)
    x = x if dtype is None else call.in_dtype(x, float32_for(keras.backend.standardize_dtype(dtype)))
    return x.like(x.name)


def float32_for(dtype: str) -> str:
    """Return the dtype that the graph computes in for one of Keras'."""
    return "float32" if dtype in {"float16", "bfloat16", "float64"} else dtype


# ---------------------------------------------------------------- one operand


# Source of these tables: keras.ops and the ONNX operators of the same names.
_OF_ANY_NUMBER = {"Absolute": "Abs", "Negative": "Neg", "Relu": "Relu", "Sign": "Sign"}
_TRUTHS = {"Isnan": "IsNaN", "Isinf": "IsInf"}
_OF_A_FLOAT = {
    "Arccos": "Acos", "Arccosh": "Acosh", "Arcsin": "Asin", "Arcsinh": "Asinh", "Arctan": "Atan", "Arctanh": "Atanh",
    "Ceil": "Ceil", "Cos": "Cos", "Cosh": "Cosh", "Erf": "Erf", "Exp": "Exp", "Fabs": "Abs", "Floor": "Floor",
    "Log": "Log", "Reciprocal": "Reciprocal", "Sin": "Sin", "Sinh": "Sinh", "Softplus": "Softplus",
    "Softsign": "Softsign", "Sqrt": "Sqrt", "Tan": "Tan", "Tanh": "Tanh",
}  # fmt: skip
_WITH_ATTRIBUTES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "Gelu": lambda operation: {"approximate": "tanh" if operation.approximate else "none"},
    "HardShrink": lambda operation: {"lambd": float(operation.threshold)},
    "HardSigmoid": lambda _: {"alpha": 1 / 6, "beta": 0.5},
    "LeakyRelu": lambda operation: {"alpha": float(operation.negative_slope)},
    "SoftShrink": lambda operation: {"bias": float(operation.threshold), "lambd": float(operation.threshold)},
    "SparseSigmoid": lambda _: {"alpha": 0.5, "beta": 0.5},
}
_NAMED_OTHERWISE = {"HardShrink": "Shrink", "SoftShrink": "Shrink", "SparseSigmoid": "HardSigmoid"}


@op_rule(*_OF_ANY_NUMBER, *_TRUTHS, *_OF_A_FLOAT)
def of_one(call: Call) -> Value:
    """One operand, of any dtype or as a float; some are a truth about it."""
    table = {**_OF_ANY_NUMBER, **_TRUTHS, **_OF_A_FLOAT}
    kind, x = call.kind(table), call.value
    if kind == "Absolute" and x.dtype == "bool":
        return x.like(x.name)
    x = call.as_number(x) if kind in _OF_ANY_NUMBER else call.as_float(x)
    return x.like(call.op(table[kind], x), dtype="bool" if kind in _TRUTHS else x.dtype)


@op_rule(*_WITH_ATTRIBUTES)
def with_attributes(call: Call) -> Value:
    """One operand as a float, in an operator with attributes."""
    kind, x = call.kind(_WITH_ATTRIBUTES), call.as_float(call.value)
    return x.like(call.op(_NAMED_OTHERWISE.get(kind, kind), x, **_WITH_ATTRIBUTES[kind](call.layer)))


@op_rule("Round")
def rounded(call: Call) -> Value:
    """To a number of decimals; a whole number is one already."""
    x, scale = call.value, 10.0 ** int(getattr(call.layer, "decimals", 0))
    if scale >= 1 and "int" in x.dtype:
        return x.like(x.name)
    x = call.as_float(x)
    if scale == 1:
        return x.like(call.op("Round", x))
    factor = call.constant(scale)
    return x.like(call.op("Div", call.op("Round", call.op("Mul", x, factor)), factor))


@op_rule("LogicalNot")
def logical_not(call: Call) -> Value:
    """The opposite truth."""
    x = call.as_truth(call.value)
    return x.like(call.op("Not", x))


@op_rule("Clip")
def clip(call: Call) -> Value:
    """Between two bounds."""
    bounds = call.layer.x_min, call.layer.x_max
    x = call.in_dtype(call.value, common_dtype([call.value, *bounds]))
    low, high = (call.constant(to_array(bound), x.dtype) for bound in bounds)
    if all(to_array(bound).ndim == 0 for bound in bounds):
        return x.like(call.op("Clip", x, low, high))
    return x.like(call.op("Min", call.op("Max", x, low), high))


@op_rule("ZerosLike", "OnesLike", "FullLike")
def filled(call: Call) -> Value:
    """A constant with the shape of a value."""
    x = call.value
    dtype = getattr(call.layer, "dtype", None) or call.kwargs.get("dtype")  # older versions of Keras: in the call
    dtype = float32_for(keras.backend.standardize_dtype(dtype or x.dtype))
    kind = call.kind(["ZerosLike", "OnesLike", "FullLike"])
    given: Any = call.args[1] if kind == "FullLike" else kind == "OnesLike"
    if isinstance(given, Value):
        raise call.refuse("its fill is computed; expected a number", "Multiply by ones_like instead.")
    fill = call.constant(to_array(given), dtype)
    shape = call.op("Shape", x)
    if x.row and None not in x.row:  # what has its shape, but nothing of its timesteps
        rows = call.op("Shape", call.graph.cut_from.get(x.name, x.name), start=0, end=1)
        shape = call.op("Concat", rows, call.graph.ints([size or 0 for size in x.row]), axis=0)
    return x.like(call.op("Expand", fill, shape), dtype=dtype)


# ---------------------------------------------------------------- several operands


@op_rule(*_BINARY, *_BINARY_FLOAT, *_COMPARISONS, "Fmax", "Fmin")
def binary(call: Call) -> Value:
    """Two operands, the smaller one broadcast."""
    known = {**_BINARY, **_BINARY_FLOAT, **_COMPARISONS, "Fmax": "Max", "Fmin": "Min"}
    name = call.kind(known)
    if name == "Add" and (biased := _with_bias(call)) is not None:
        return biased
    values = broadcast(call, call.args[:2])
    if name in _BINARY_FLOAT:
        values = [call.as_float(value) for value in values]
    elif values[0].dtype == "bool" and known[name] in _OF_TRUTHS:
        return joined(values, call.op(_OF_TRUTHS[known[name]], *values))
    elif name != "Equal":
        values = [call.as_number(value) for value in values]
    return joined(values, call.op(known[name], *values), dtype="bool" if name in _COMPARISONS else None)


def _with_bias(call: Call) -> Value | None:
    """Return the sum of a convolution or product and its bias, added by itself; None: the operands are others."""
    x, bias = call.args[:2] if isinstance(call.args[0], Value) else call.args[1::-1]
    if isinstance(bias, Value):
        return None
    name = call.graph.with_bias(x.name, to_array(bias), at=call.path)
    return None if name is None else x.like(name)


@op_rule(*_LOGIC)
def logic(call: Call) -> Value:
    """Two truths."""
    values = broadcast(call, call.args[:2], truths=2)
    return joined(values, call.op(_LOGIC[call.kind(_LOGIC)], *values), dtype="bool")


@op_rule("Where")
def where(call: Call) -> Value:
    """A choice between two operands."""
    condition, *choices = broadcast(call, call.args[:3], truths=1)
    if choices[0].dtype == "bool":  # onnxruntime chooses between numbers
        number = call.op("Where", condition, *map(call.as_number, choices))
        return joined([condition, *choices], call.cast(number, "bool"))
    return joined([condition, *choices], call.op("Where", condition, *choices))


# Source: Numerical Recipes 3.2, 6.2.2, `erfcc`: off by at most 1.2e-7 of the value, everywhere.
_ERFC = [
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    -1.26551223,
]  # fmt: skip


@op_rule("Erfc")
def complementary_error(call: Call) -> Value:
    """1 - erf(x), which has digits of its own where erf(x) rounds to 1; in float64, of whose exponent none are lost."""
    x = call.as_float(call.value)
    wide = call.cast(x, "float64")
    size, one = call.op("Abs", wide), call.constant(1, "float64")
    t = call.op("Reciprocal", call.op("Add", one, call.op("Mul", size, call.constant(0.5, "float64"))))
    exponent = call.constant(_ERFC[0], "float64")
    for factor in _ERFC[1:]:
        exponent = call.op("Add", call.op("Mul", exponent, t), call.constant(factor, "float64"))
    exponent = call.op("Sub", exponent, call.op("Mul", size, size))
    tail = call.op("Mul", t, call.op("Exp", exponent))
    below = call.op("Less", wide, call.constant(0, "float64"))
    found = call.op("Where", below, call.op("Sub", call.constant(2, "float64"), tail), tail)
    return x.like(call.cast(found, "float32"))
