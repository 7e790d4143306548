"""Rules of `keras.ops` that work element by element, as functional models and traced code call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from model_export.keras.registry import Call, op_rule, to_array
from model_export.keras.rules.activations import ACTIVATIONS
from model_export.keras.support.broadcast import broadcast, common_dtype, joined
from model_export.keras.value import Value

_Emit = str | Callable[[Call, str], str]
"""An ONNX operator, or what emits several for a tensor."""

_BINARY = {"Add": "Add", "Subtract": "Sub", "Multiply": "Mul", "Maximum": "Max", "Minimum": "Min"}
_OF_TRUTHS = {"Add": "Or", "Mul": "And", "Max": "Or", "Min": "And"}
_BINARY_FLOAT = {"Divide": "Div", "TrueDivide": "Div", "Power": "Pow"}
_COMPARISONS = {
    "Equal": "Equal", "Greater": "Greater", "GreaterEqual": "GreaterOrEqual", "Less": "Less",
    "LessEqual": "LessOrEqual",
}  # fmt: skip
_LOGIC = {"LogicalAnd": "And", "LogicalOr": "Or", "LogicalXor": "Xor"}


@op_rule("StopGradient", "ConvertToTensor", "Copy", "Array", "Real", "Conjugate")
def same(call: Call) -> Value:
    """Operations that change no value; like all operations, they drop the mask."""
    return call.value.like(call.value.name)


@op_rule("Cast", "SaturateCast")
def cast(call: Call) -> Value:
    """Another dtype; every float is float32 in the graph."""
    dtype = float32_for(keras.backend.standardize_dtype(call.layer.dtype))
    x = call.value
    return x.like(x.name if x.dtype == dtype else call.cast(x, dtype), dtype=dtype)


def float32_for(dtype: str) -> str:
    """Return the dtype that the graph computes in for one of Keras'."""
    return "float32" if dtype in {"float16", "bfloat16", "float64"} else dtype


# ---------------------------------------------------------------- one operand


def _where_above(call: Call, x: str, bound: float, above: str, other: str) -> str:
    return call.op("Where", call.op("Greater", x, call.constant(bound)), above, other)


def _soft_shrink(call: Call, x: str) -> str:
    by = float(call.layer.threshold)
    return call.op("Shrink", x, bias=by, lambd=by)


def _threshold(call: Call, x: str) -> str:
    return _where_above(call, x, float(call.layer.threshold), x, call.constant(call.layer.default_value))


def _sparse_plus(call: Call, x: str) -> str:
    one = call.constant(1.0)
    raised = call.op("Max", call.op("Add", x, one), call.constant(0.0))
    return _where_above(call, x, 1.0, x, call.op("Div", call.op("Mul", raised, raised), call.constant(4.0)))


def _squareplus(call: Call, x: str) -> str:
    root = call.op("Sqrt", call.op("Add", call.op("Mul", x, x), call.constant(float(call.layer.b))))
    return call.op("Mul", call.op("Add", x, root), call.constant(0.5))


def _times(factor: float) -> Callable[[Call, str], str]:
    return lambda call, x: call.op("Mul", x, call.constant(factor))


def _log_to(base: float) -> Callable[[Call, str], str]:
    return lambda call, x: call.op("Mul", call.op("Log", x), call.constant(1 / np.log(base)))


def _alpha(kind: str, attribute: str = "alpha") -> _Emit:
    return lambda call, x: call.op(kind, x, alpha=float(getattr(call.layer, attribute)))


def _round(call: Call, x: str) -> str:
    scale = 10.0 ** int(getattr(call.layer, "decimals", 0))
    if scale == 1:
        return call.op("Round", x)
    return call.op("Div", call.op("Round", call.op("Mul", x, call.constant(scale))), call.constant(scale))


def _trunc(call: Call, x: str) -> str:
    return call.op("Mul", call.op("Sign", x), call.op("Floor", call.op("Abs", x)))


def _cbrt(call: Call, x: str) -> str:
    return call.op("Mul", call.op("Sign", x), call.op("Pow", call.op("Abs", x), call.constant(1 / 3)))


def _sinc(call: Call, x: str) -> str:
    angle = call.op("Mul", x, call.constant(np.pi))
    at_zero = call.op("Equal", x, call.constant(0.0))
    safe = call.op("Where", at_zero, call.constant(1.0), angle)
    return call.op("Where", at_zero, call.constant(1.0), call.op("Div", call.op("Sin", safe), safe))


def _nan_to_num(call: Call, x: str) -> str:
    layer, most = call.layer, float(np.finfo(np.float32).max)
    high = most if layer.posinf is None else float(to_array(layer.posinf))
    low = -most if layer.neginf is None else float(to_array(layer.neginf))
    x = call.op("Where", call.op("IsNaN", x), call.constant(float(to_array(layer.nan))), x)
    x = call.op("Where", call.op("IsInf", x, detect_negative=0), call.constant(high), x)
    return call.op("Where", call.op("IsInf", x, detect_positive=0), call.constant(low), x)


# Source of these tables: keras.ops and the ONNX operators of the same names.
_OF_ANY_DTYPE: dict[str, _Emit] = {
    "Absolute": "Abs", "Fabs": "Abs", "Ceil": "Ceil", "Floor": "Floor", "Negative": "Neg", "Sign": "Sign",
    "Square": lambda call, x: call.op("Mul", x, x),
}  # fmt: skip
_TRUTHS: dict[str, _Emit] = {
    "Isnan": "IsNaN", "Isinf": "IsInf", "Signbit": lambda call, x: call.op("Less", x, call.constant(0.0)),
    "Isfinite": lambda call, x: call.op("Not", call.op("Or", call.op("IsNaN", x), call.op("IsInf", x))),
}  # fmt: skip
_PLAIN = (
    "relu", "relu6", "sigmoid", "tanh", "silu", "softplus", "softsign", "hard_sigmoid", "hard_silu", "hard_tanh",
    "log_sigmoid", "selu",
)  # fmt: skip
_OF_A_FLOAT: dict[str, _Emit] = {
    **{name.title().replace("_", ""): ACTIVATIONS[name] for name in _PLAIN},
    "Celu": _alpha("Celu"), "Elu": _alpha("Elu"), "LeakyRelu": _alpha("LeakyRelu", "negative_slope"),
    "Gelu": lambda call, x: call.op("Gelu", x, approximate="tanh" if call.layer.approximate else "none"),
    "Arccos": "Acos", "Arccosh": "Acosh", "Arcsin": "Asin", "Arcsinh": "Asinh", "Arctan": "Atan", "Arctanh": "Atanh",
    "Cos": "Cos", "Cosh": "Cosh", "Erf": "Erf", "Exp": "Exp", "Log": "Log", "Reciprocal": "Reciprocal", "Sin": "Sin",
    "Sinh": "Sinh", "Sqrt": "Sqrt", "Tan": "Tan",
    "Cbrt": _cbrt,
    "Deg2rad": _times(np.pi / 180),
    "Erfc": lambda call, x: call.op("Sub", call.constant(1.0), call.op("Erf", x)),
    "Exp2": lambda call, x: call.op("Pow", call.constant(2.0), x),
    "Expm1": lambda call, x: call.op("Sub", call.op("Exp", x), call.constant(1.0)),
    "HardShrink": lambda call, x: call.op("Shrink", x, lambd=float(call.layer.threshold)),
    "Log10": _log_to(10),
    "Log1p": lambda call, x: call.op("Log", call.op("Add", x, call.constant(1.0))),
    "Log2": _log_to(2),
    "NanToNum": _nan_to_num,
    "Rad2deg": _times(180 / np.pi),
    "Round": _round,
    "Rsqrt": lambda call, x: call.op("Reciprocal", call.op("Sqrt", x)),
    "Sinc": _sinc,
    "SoftShrink": _soft_shrink,
    "SparsePlus": _sparse_plus,
    "SparseSigmoid": lambda call, x: call.op("HardSigmoid", x, alpha=0.5, beta=0.5),
    "Squareplus": _squareplus,
    "TanhShrink": lambda call, x: call.op("Sub", x, call.op("Tanh", x)),
    "Threshold": _threshold,
    "Trunc": _trunc,
}  # fmt: skip


@op_rule(*_OF_ANY_DTYPE, *_TRUTHS, *_OF_A_FLOAT)
def of_one(call: Call) -> Value:
    """One operand, of any dtype or as a float; some are a truth about it."""
    table = {**_OF_ANY_DTYPE, **_TRUTHS, **_OF_A_FLOAT}
    kind = call.kind(table)
    x, emit = call.value if kind in _OF_ANY_DTYPE else call.as_float(call.value), table[kind]
    name = call.op(emit, x) if isinstance(emit, str) else emit(call, x.name)
    return x.like(name, dtype="bool" if kind in _TRUTHS else x.dtype)


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
    return x.like(call.op("Min", call.op("Max", x, low), high))


@op_rule("ZerosLike", "OnesLike", "FullLike")
def filled(call: Call) -> Value:
    """A constant with the shape of a value."""
    x = call.value
    asked = getattr(call.layer, "dtype", None) or call.kwargs.get("dtype")  # older versions of Keras: in the call
    dtype = float32_for(keras.backend.standardize_dtype(asked or x.dtype))
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
    """Return the sum of a convolution and its bias in the convolution's operator; None: the operands are others."""
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


@op_rule("NotEqual")
def not_equal(call: Call) -> Value:
    """Where two operands differ."""
    values = broadcast(call, call.args[:2])
    return joined(values, call.op("Not", call.op("Equal", *values)), dtype="bool")


def _floor_division(call: Call, x: Value, y: Value) -> str:
    return call.op("Floor", call.op("Div", x, y))


def _modulo(call: Call, x: Value, y: Value) -> str:
    return call.op("Sub", x, call.op("Mul", _floor_division(call, x, y), y))


def _hypotenuse(call: Call, x: Value, y: Value) -> str:
    return call.op("Sqrt", call.op("Add", call.op("Mul", x, x), call.op("Mul", y, y)))


def _logaddexp(call: Call, x: Value, y: Value) -> str:
    gap = call.op("Neg", call.op("Abs", call.op("Sub", x, y)))
    return call.op("Add", call.op("Max", x, y), call.op("Log", call.op("Add", call.op("Exp", gap), call.constant(1.0))))


def _divide_no_nan(call: Call, x: Value, y: Value) -> str:
    nothing = call.op("Equal", y, call.constant(0.0))
    safe = call.op("Where", nothing, call.constant(1.0), y)
    return call.op("Where", nothing, call.constant(0.0), call.op("Div", x, safe))


def _heaviside(call: Call, x: Value, y: Value) -> str:
    above = call.cast(call.op("Greater", x, call.constant(0.0)), "float32")
    return call.op("Where", call.op("Equal", x, call.constant(0.0)), y, above)


def _arctan2(call: Call, y: Value, x: Value) -> str:
    zero, half = call.constant(0.0), call.constant(np.pi / 2)
    sign = call.op("Where", call.op("Less", y, zero), call.constant(-1.0), call.constant(1.0))
    on_axis = call.op("Equal", x, zero)
    angle = call.op("Atan", call.op("Div", y, call.op("Where", on_axis, call.constant(1.0), x)))
    turned = call.op("Add", angle, call.op("Mul", sign, call.constant(np.pi)))
    angle = call.op("Where", call.op("Less", x, zero), turned, angle)
    upright = call.op("Where", call.op("Equal", y, zero), zero, call.op("Mul", sign, half))
    return call.op("Where", on_axis, upright, angle)


_OF_TWO_FLOATS: dict[str, Callable[[Call, Value, Value], str]] = {
    "Arctan2": _arctan2,
    "DivideNoNan": _divide_no_nan,
    "FloorDivide": _floor_division,
    "Fmod": lambda call, x, y: call.op("Mod", x, y, fmod=1),
    "Heaviside": _heaviside,
    "Hypot": _hypotenuse,
    "Logaddexp": _logaddexp,
    "Mod": _modulo,
}


@op_rule(*_OF_TWO_FLOATS)
def of_two_floats(call: Call) -> Value:
    """Two operands in more than one node; whole numbers stay whole."""
    found = broadcast(call, call.args[:2])
    values = [call.as_float(value) for value in found]
    result = joined(values, _OF_TWO_FLOATS[call.kind(_OF_TWO_FLOATS)](call, *values))
    dtype = found[0].dtype
    if np.dtype(dtype).kind in "iu" and call.kind(_OF_TWO_FLOATS) in {"FloorDivide", "Fmod", "Mod"}:
        return result.like(call.cast(result, dtype), dtype=dtype)
    return result


@op_rule("Where")
def where(call: Call) -> Value:
    """A choice between two operands."""
    condition, *choices = broadcast(call, call.args[:3], truths=1)
    if choices[0].dtype == "bool":  # onnxruntime chooses between numbers
        number = call.op("Where", condition, *map(call.as_number, choices))
        return joined([condition, *choices], call.cast(number, "bool"))
    return joined([condition, *choices], call.op("Where", condition, *choices))
