"""Primitives of elements: their operands broadcast, so an axis of equal elements stays one of length 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stepwell_export.graph.builder import element_type
from stepwell_export.jax.graph import JaxGraph, Rule, function_rule, rule
from stepwell_export.jax.values import Dim, JaxValue, constant, filled, is_one

_OPERATORS = {
    "add": "Add", "add_any": "Add", "sub": "Sub", "mul": "Mul", "max": "Max", "min": "Min", "neg": "Neg",
    "exp": "Exp", "log": "Log", "tanh": "Tanh", "sqrt": "Sqrt", "abs": "Abs", "sign": "Sign",
    "floor": "Floor", "ceil": "Ceil", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos",
    "atan": "Atan", "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh", "erf": "Erf",
    "eq": "Equal", "lt": "Less", "gt": "Greater", "le": "LessOrEqual", "ge": "GreaterOrEqual",
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


@rule("square")
def _square(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    return pointwise(graph, "Mul", *inputs, *inputs)


@rule("integer_pow")
def _integer_pow(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    [x], power = inputs, equation.params["y"]
    made = x if power else filled(1, x)
    for _ in range(abs(power) - 1):
        made = pointwise(graph, "Mul", made, x)
    return pointwise(graph, "Reciprocal", made) if power < 0 else made


@rule("rsqrt")
def _rsqrt(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    return pointwise(graph, "Reciprocal", pointwise(graph, "Sqrt", *inputs))


@rule("exp2")
def _exp2(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    return pointwise(graph, "Pow", filled(2, inputs[0]), inputs[0])


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
    """Emit a Cast; a float that an integer cannot hold becomes the nearest one, and NaN 0."""
    [x], dtype = inputs, str(np.dtype(equation.params["new_dtype"]))
    if x.dtype == dtype:
        return x
    if "float" not in x.dtype or "int" not in dtype:
        made = pointwise(graph, "Cast", x, dtype=dtype, to=element_type(graph.dtype(dtype)))
        if x.dtype == "bool":
            graph.truths.add(made.tensor)
        if "int" in x.dtype and "float" in dtype:
            graph.whole_numbers[made.tensor] = x
        return made
    if (source := graph.whole_numbers.get(x.tensor)) is not None and source.dtype == dtype:
        return source  # an integer that was a float in between
    ends = np.iinfo(dtype)
    number = pointwise(graph, "Where", pointwise(graph, "IsNaN", x, dtype="bool"), filled(0, x), x, dtype=x.dtype)
    number = pointwise(graph, "Max", pointwise(graph, "Min", number, filled(ends.max, x)), filled(ends.min, x))
    wide = pointwise(graph, "Cast", number, dtype="int64", to=element_type("int64"))
    if dtype == "int64":
        return wide
    wide = pointwise(graph, "Min", wide, filled(ends.max, wide))  # as a float32 it may be one more
    return pointwise(graph, "Cast", wide, dtype=dtype, to=element_type(dtype))


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
    text = str(jaxpr)
    is_left = "side=left" in text or "le_to" in text  # of JAX 0.12, and as the comparison of earlier ones
    is_right = "side=right" in text or "lt_to" in text
    if is_left == is_right or bounds.known is None or bounds.is_sizes or bounds.known.ndim != 1:
        return None
    wide = JaxValue((*x.shape, 1), x.dtype, graph.op("Unsqueeze", graph.whole(x), graph.ints([len(x.shape)])))
    limits = constant(bounds.known.reshape((1,) * len(x.shape) + (-1,)))
    is_above = pointwise(graph, "LessOrEqual" if is_left else "Less", wide, limits, dtype="bool")
    counted = graph.cast(graph.op("Not", graph.whole(is_above)), "int32")
    return JaxValue(x.shape, "int32", graph.op("ReduceSum", counted, graph.ints([len(x.shape)]), keepdims=0))
