"""Primitives of elements: their operands broadcast, so an axis of equal elements stays one of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepwell_export.graph.builder import element_type
from stepwell_export.jax.graph import JaxGraph, Rule, function_rule, rule
from stepwell_export.jax.values import Dim, JaxValue, constant, filled, is_one

_OPERATORS = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min", "neg": "Neg",
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "sqrt": "Sqrt", "abs": "Abs", "sign": "Sign",
    "floor": "Floor", "ceil": "Ceil", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos",
    "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "erf": "Erf",
    "pow": "Pow", "eq": "Equal", "lt": "Less", "gt": "Greater", "le": "LessOrEqual", "ge": "GreaterOrEqual",
    "lt_to": "Less",
}  # fmt: skip


def pointwise(graph: JaxGraph, kind: str, *inputs: JaxValue, dtype: str = "", **attributes: Any) -> JaxValue:
    """Emit an operator of elements.

    Args:
        graph: The graph.
        kind: The ONNX operator.
        inputs: Its operands: of one shape but for axes of length 1, or scalars.
        dtype: That of the result; the first operand's by default.
        attributes: The operator's attributes.
    """
    shape = broadcast_shape(inputs)
    small = frozenset.intersection(*(value.ones_of(len(shape)) for value in inputs))
    tensor = graph.op(kind, *map(graph.small, inputs), **attributes)
    ones = frozenset(axis for axis in small if not is_one(shape[axis]))
    return JaxValue(shape, dtype or inputs[0].dtype, tensor, ones=ones)


def broadcast_shape(values: Sequence[JaxValue]) -> tuple[Dim, ...]:
    """Return the shape of an operation of elements: of one shape, but for axes of length 1, and scalars."""
    shapes = [value.shape for value in values if value.shape]
    return tuple(next((n for n in sizes if not is_one(n)), 1) for sizes in zip(*shapes, strict=True))


def _operator(kind: str) -> Rule:
    def emit(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
        return pointwise(graph, kind, *inputs, dtype=str(equation.outvars[0].aval.dtype))

    return emit


for _name, _kind in _OPERATORS.items():
    rule(_name)(_operator(_kind))


@rule("stop_gradient", "copy", "copy_p", "optimization_barrier", "reduce_precision", "sharding_constraint")
def _identity(_graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> list[JaxValue]:
    return inputs


@rule("ne")
def _not_equal(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    return pointwise(graph, "Not", pointwise(graph, "Equal", *inputs, dtype="bool"))


@rule("and", "or", "xor", "not")
def _bits(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    kind = equation.primitive.name.capitalize()
    return pointwise(graph, kind if inputs[0].dtype == "bool" else f"Bitwise{kind}", *inputs)


@rule("logistic")
def _logistic(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    """Return 1 / (1 + exp(-x)): onnxruntime's Sigmoid rounds a row by the rows around it."""
    exp = pointwise(graph, "Exp", pointwise(graph, "Neg", *inputs))
    return pointwise(graph, "Reciprocal", pointwise(graph, "Add", exp, filled(1, exp)))


@rule("square")
def _square(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    return pointwise(graph, "Mul", *inputs, *inputs)


@rule("integer_pow")
def _integer_pow(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    [x], power = inputs, equation.params["y"]
    made = x
    for _ in range(abs(power) - 1):
        made = pointwise(graph, "Mul", made, x)
    return pointwise(graph, "Reciprocal", made) if power < 0 else made


@rule("rsqrt")
def _rsqrt(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    return pointwise(graph, "Reciprocal", pointwise(graph, "Sqrt", *inputs))


@rule("exp2")
def _exp2(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    return pointwise(graph, "Pow", filled(2, inputs[0]), inputs[0])


@rule("expm1")
def _expm1(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    """Return tanh(x / 2) (exp(x) + 1): exp(x) - 1 loses what is small."""
    [x] = inputs
    tanh = pointwise(graph, "Tanh", pointwise(graph, "Mul", x, filled(0.5, x)))
    return pointwise(graph, "Mul", tanh, pointwise(graph, "Add", pointwise(graph, "Exp", x), filled(1, x)))


@rule("log1p")
def _log1p(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    """Return log(u) - ((u - 1) - x) / u with u = 1 + x, which gives back what rounding took from u.

    Source: D. Goldberg, What every computer scientist should know about floating-point arithmetic, theorem 4.
    """
    x, one = inputs[0], filled(1, inputs[0])
    u = pointwise(graph, "Add", x, one)
    lost = pointwise(graph, "Div", pointwise(graph, "Sub", pointwise(graph, "Sub", u, one), x), u)
    is_large = pointwise(graph, "Greater", pointwise(graph, "Abs", x), filled(1e6, x), dtype="bool")
    lost = pointwise(graph, "Where", is_large, filled(0, x), lost, dtype=x.dtype)  # of an infinite u it is none
    return pointwise(graph, "Sub", pointwise(graph, "Log", u), lost)


@rule("erfc")
def _erfc(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    return pointwise(graph, "Sub", filled(1, inputs[0]), pointwise(graph, "Erf", *inputs))


@rule("atan2")
def _atan2(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    """Return atan(y / x), moved by half a turn where x is negative."""
    y, x = inputs
    zero, pi = filled(0, x), filled(np.pi, x)
    angle = pointwise(graph, "Atan", pointwise(graph, "Div", y, x))
    is_below = pointwise(graph, "Less", y, zero, dtype="bool")
    turn = pointwise(graph, "Where", is_below, filled(-np.pi, x), pi, dtype=x.dtype)
    is_left = pointwise(graph, "Less", x, zero, dtype="bool")
    moved = pointwise(graph, "Where", is_left, pointwise(graph, "Add", angle, turn), angle, dtype=x.dtype)
    neither = pointwise(
        graph, "And", *(pointwise(graph, "Equal", one, zero, dtype="bool") for one in (y, x))
    )  # 0 / 0 is no number, and the angle of nothing is 0
    return pointwise(graph, "Where", neither, zero, moved, dtype=x.dtype)


@rule("cbrt")
def _cbrt(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    size = pointwise(graph, "Pow", pointwise(graph, "Abs", *inputs), filled(1 / 3, inputs[0]))
    return pointwise(graph, "Mul", pointwise(graph, "Sign", *inputs), size)


@rule("rem")
def _rem(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    """Return the remainder with the sign of the dividend, as C has it."""
    return pointwise(graph, "Mod", *inputs, fmod=1)


@rule("round")
def _round(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    if int(equation.params["rounding_method"]) == 1:  # halves to even, as ONNX has it
        return pointwise(graph, "Round", *inputs)
    x = inputs[0]
    size = pointwise(graph, "Abs", x)
    down = pointwise(graph, "Floor", size)
    is_up = pointwise(graph, "GreaterOrEqual", pointwise(graph, "Sub", size, down), filled(0.5, x), dtype="bool")
    up = pointwise(graph, "Add", down, filled(1, x))
    return pointwise(
        graph, "Mul", pointwise(graph, "Sign", x), pointwise(graph, "Where", is_up, up, down, dtype=x.dtype)
    )


@rule("is_finite")
def _is_finite(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    nan = pointwise(graph, "IsNaN", *inputs, dtype="bool")
    return pointwise(graph, "Not", pointwise(graph, "Or", nan, pointwise(graph, "IsInf", *inputs, dtype="bool")))


@rule("clamp")
def _clamp(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    low, x, high = inputs
    return pointwise(graph, "Min", pointwise(graph, "Max", x, low), high)


@rule("convert_element_type")
def _convert(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    dtype = str(np.dtype(equation.params["new_dtype"]))
    return inputs[0] if inputs[0].dtype == dtype else pointwise(
        graph, "Cast", *inputs, dtype=dtype, to=element_type(dtype)
    )  # fmt: skip


@rule("select_n")
def _select(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    which, *cases = inputs
    if len(cases) != 2:
        raise graph.refuse(equation, f"selects one of {len(cases)} arrays", "Use two at a time, as jnp.where does.")
    if which.dtype != "bool":
        which = pointwise(graph, "Cast", which, dtype="bool", to=element_type("bool"))
    if cases[0].dtype != "bool":
        return pointwise(graph, "Where", which, cases[1], cases[0], dtype=cases[0].dtype)
    yes = pointwise(graph, "And", which, cases[1])  # onnxruntime has no Where of booleans
    return pointwise(graph, "Or", yes, pointwise(graph, "And", pointwise(graph, "Not", which), cases[0]))


@rule("random_bits", "random_wrap", "random_unwrap", "random_seed", "threefry2x32", "rng_bit_generator", "rng_uniform")
def _random(graph: JaxGraph, equation: Any, _inputs: list[JaxValue]) -> JaxValue:
    raise graph.refuse(
        equation,
        "draws random numbers, so that no retry could get the same answer",
        "Give the mean outside training, or draw where the answer arrives.",
    )


@function_rule("signbit")
def _signbit(graph: JaxGraph, _jaxpr: Any, inputs: list[JaxValue]) -> JaxValue | None:
    """Return whether a number is below zero, or its reciprocal is, as that of -0."""
    [x] = inputs
    if not x.dtype.startswith("float"):
        return None
    below = pointwise(graph, "Less", x, filled(0, x), dtype="bool")
    turned = pointwise(graph, "Less", pointwise(graph, "Reciprocal", x), filled(0, x), dtype="bool")
    return pointwise(graph, "Or", below, turned)


@function_rule("searchsorted")
def _searchsorted(graph: JaxGraph, jaxpr: Any, inputs: list[JaxValue]) -> JaxValue | None:
    """Return how many bounds are not above a number, for each number."""
    bounds, x = inputs
    if bounds.known is None or bounds.is_sizes or bounds.known.ndim != 1:
        return None
    wide = JaxValue((*x.shape, 1), x.dtype, graph.op("Unsqueeze", graph.whole(x), graph.ints([len(x.shape)])))
    limits = constant(bounds.known.reshape((1,) * len(x.shape) + (-1,)))
    kind = "LessOrEqual" if "le_to" in str(jaxpr) else "Less"  # from the left, or from the right
    is_above = pointwise(graph, kind, wide, limits, dtype="bool")
    counted = graph.cast(graph.op("Not", graph.whole(is_above)), "int32")
    return JaxValue(x.shape, "int32", graph.op("ReduceSum", counted, graph.ints([len(x.shape)]), keepdims=0))
