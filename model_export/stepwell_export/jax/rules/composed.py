"""Primitives that are made of others: each is a function of `jax.numpy`, whose primitives have rules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from stepwell_export.graph.builder import NodeBuilder, element_type
from stepwell_export.jax.graph import JaxGraph, rule
from stepwell_export.jax.rules.pointwise import pointwise
from stepwell_export.jax.values import JaxValue, filled

Function = Callable[..., Any]


def _composed(*primitives: str) -> Callable[[Function], Function]:
    """Register a function of floats as the rule of primitives."""

    def register(function: Function) -> Function:
        def emit(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> list[JaxValue]:
            shapes = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in inputs]  # type: ignore[no-untyped-call]
            closed = jax.make_jaxpr(function)(*shapes)
            return graph.run(closed.jaxpr, closed.consts, inputs)

        rule(*primitives)(emit)
        return function

    return register


@_composed("logistic")
def _logistic(x: Any) -> Any:
    """Onnxruntime's Sigmoid rounds a row by the rows around it."""
    return 1 / (jnp.exp(-x) + 1)


@_composed("expm1")
def _expm1(x: Any) -> Any:
    """exp(x) - 1, by a hyperbolic tangent where the difference would lose the digits of a small number."""
    half = jnp.tanh(jnp.minimum(x, 1) * 0.5)
    return jnp.where(x > 1, jnp.exp(x) - 1, 2 * half / (1 - half))


@_composed("log1p")
def _log1p(x: Any) -> Any:
    """log(1 + x), multiplied by what rounding took from the sum; source: W. Kahan, HP-15C Advanced Functions, 1982."""
    total = x + 1
    counted = total - 1
    return jnp.where(counted == 0, x, jnp.log(total) * jnp.where(counted == x, 1.0, x / counted))


@_composed("log2")
def _log2(x: Any) -> Any:
    return jnp.log(x) / math.log(2)


@_composed("polynomial")
def _polynomial(x: Any, *coefficients: Any) -> Any:
    """Horner's rule; the coefficients begin with that of x**0."""
    total = coefficients[-1]
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


@_composed("one_minus_square")
def _one_minus_square(x: Any) -> Any:
    return (1 + x) * (1 - x)


@_composed("atan2")
def _atan2(y: Any, x: Any) -> Any:
    """The arc tangent of the smaller operand by the larger one, so that neither 0 nor infinity divides."""
    wide, high = jnp.abs(x), jnp.abs(y)
    least, most = jnp.minimum(wide, high), jnp.maximum(wide, high)
    ratio = jnp.where(least == most, 1.0, least / jnp.where(most == 0, 1.0, most))  # both may be infinite
    angle = jnp.arctan(jnp.where(most == 0, 0.0, ratio))
    angle = jnp.where(high > wide, math.pi / 2 - angle, angle)
    angle = jnp.where(jnp.signbit(x), math.pi - angle, angle)
    angle = jnp.where(jnp.isnan(x + y) & (least != most), x + y, angle)
    return jnp.where(jnp.signbit(y), -angle, angle)


@_composed("cbrt")
def _cbrt(x: Any) -> Any:
    """The cube root, with one step of Newton's method: 1/3 as a float32 is not exact enough for a large logarithm."""
    size = jnp.abs(x)
    root = size ** (1 / 3)
    mended = root - (root - size / (root * root)) / 3
    return jnp.sign(x) * jnp.where((root > 0) & jnp.isfinite(root), mended, root)


# Source: Numerical Recipes 3.2, 6.2.2, `erfcc`: off by at most 1.2e-7 of the value, everywhere.
_ERFC = [
    0.17087277, -0.82215223, 1.48851587, -1.13520398, 0.27886807, -0.18628806, 0.09678418, 0.37409196, 1.00002368,
    -1.26551223,
]  # fmt: skip


@rule("erfc")
def _erfc(graph: JaxGraph, _equation: Any, inputs: list[JaxValue]) -> JaxValue:
    """1 - erf(x), which has digits of its own where erf(x) rounds to 1; in float64, of whose exponent none are lost."""
    [x] = inputs
    wide = graph.op("Cast", graph.small(x), to=element_type("float64"))

    def number(value: float) -> str:
        return NodeBuilder.constant(graph, value, "float64")

    size, one = graph.op("Abs", wide), number(1)
    t = graph.op("Reciprocal", graph.op("Add", one, graph.op("Mul", size, number(0.5))))
    exponent = number(_ERFC[0])
    for factor in _ERFC[1:]:
        exponent = graph.op("Add", graph.op("Mul", exponent, t), number(factor))
    tail = graph.op("Mul", t, graph.op("Exp", graph.op("Sub", exponent, graph.op("Mul", size, size))))
    found = graph.op("Where", graph.op("Less", wide, number(0)), graph.op("Sub", number(2), tail), tail)
    return JaxValue(x.shape, x.dtype, graph.cast(found, "float32"), ones=x.ones)


# ---------------------------------------------------------------- whole numbers


@rule("div", "rem")
def _division(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    """Divide; whole numbers in 64 bits, in which no quotient overflows.

    ONNX's operator fails for a whole batch where one divisor is 0. JAX has a quotient of -1 there, and a rest of all.
    """
    is_rest = equation.primitive.name == "rem"
    x, y = inputs
    if "int" not in x.dtype:
        return pointwise(graph, "Mod", x, y, fmod=1) if is_rest else pointwise(graph, "Div", x, y)
    wide_x, wide_y = (pointwise(graph, "Cast", value, dtype="int64", to=element_type("int64")) for value in inputs)
    may_be_zero = y.known is None or y.is_sizes or not np.all(y.known)
    is_zero = pointwise(graph, "Equal", wide_y, filled(0, wide_y), dtype="bool") if may_be_zero else None
    divisor = (
        wide_y if is_zero is None else pointwise(graph, "Where", is_zero, filled(1, wide_y), wide_y, dtype="int64")
    )
    made = pointwise(graph, "Mod", wide_x, divisor, fmod=1) if is_rest else pointwise(graph, "Div", wide_x, divisor)
    if is_zero is not None:
        other = wide_x if is_rest else filled(-1, wide_y)
        made = pointwise(graph, "Where", is_zero, other, made, dtype="int64")
    return pointwise(graph, "Cast", made, dtype=x.dtype, to=element_type(x.dtype))


@rule("pow")
def _pow(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> JaxValue:
    if "int" in inputs[0].dtype:
        raise graph.refuse(equation, "raises whole numbers to a power", "Cast them to float32 first.")
    return pointwise(graph, "Pow", *inputs)
