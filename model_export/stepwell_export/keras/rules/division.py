"""Rules of division with a rest, and of powers of whole numbers: exact, as integers have to be.

A quotient in float32 has 24 bits: `ids % 1000` of ids above 16 million would be another number.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from keras import ops

from stepwell_export.keras.rule_registry import Call, op_rule, to_array
from stepwell_export.keras.support.broadcast import broadcast, common_dtype, joined
from stepwell_export.keras.value import Value


@op_rule("FloorDivide", "Mod", "Fmod")
def division(call: Call) -> Value:
    """A quotient rounded down, or what is left: with the sign of the divisor (Mod), or of what is divided (Fmod)."""
    kind = call.kind(["FloorDivide", "Mod", "Fmod"])
    if "float" not in common_dtype(call.args[:2]):
        return _of_integers(call, kind)
    if kind == "Fmod":
        x, y = broadcast(call, call.args[:2])
        return joined([x, y], call.op("Mod", x, y, fmod=1))
    return call.walk.trace(call, partial(_floor_divide if kind == "FloorDivide" else _mod))[0]


def _of_integers(call: Call, kind: str) -> Value:
    """Divide in 64 bits, in which no quotient overflows; the operator fails for a whole batch where one divisor is 0.

    Keras on JAX has a rest of 0 there, and a quotient of -2 (-1 of 0 and without sign), which are kept.
    """
    values = [call.as_number(value) for value in broadcast(call, call.args[:2])]
    dtype = values[0].dtype
    x, y = (call.cast(value, "int64") for value in values)
    zero, one = call.constant(0, "int64"), call.constant(1, "int64")
    divisor = call.args[1]
    may_be_zero = isinstance(divisor, Value) or not to_array(divisor).all()
    is_zero = call.op("Equal", y, zero) if may_be_zero else ""
    if may_be_zero:
        y = call.op("Where", is_zero, one, y)
    result = call.op("Mod", x, y, **({"fmod": 1} if kind == "Fmod" else {}))
    if kind == "FloorDivide":
        result = call.op("Div", call.op("Sub", x, result), y)
        if may_be_zero:
            least = call.constant(-1, "int64")
            other = call.constant(-1 if dtype.startswith("u") else -2, "int64")
            of_zero = call.op("Where", call.op("Equal", x, zero), least, other)
            result = call.op("Where", is_zero, of_zero, result)
    return joined(values, call.cast(result, dtype))


def _floor_divide(x: Any, y: Any) -> Any:
    """Return the floor of a quotient without its rest; that of a rounded quotient may be one too large."""
    rest = ops.fmod(x, y)
    quotient = ops.where(y == 0, x, x - rest) / y
    below = ops.logical_and(rest != 0, ops.sign(y) != ops.sign(rest))
    quotient = ops.where(below, quotient - 1, quotient)
    size = ops.abs(quotient)
    whole = ops.floor(size)  # a half, of a quotient above 2**22, is rounded away from zero
    return ops.sign(quotient) * ops.where(size - whole < 0.5, whole, whole + (size != whole))


def _mod(x: Any, y: Any) -> Any:
    rest = ops.fmod(x, y)
    return ops.where(ops.logical_and(rest != 0, ops.logical_xor(rest < 0, y < 0)), rest + y, rest)


@op_rule("Power")
def power(call: Call) -> Value:
    """One number to the power of another; of whole numbers by products, which overflow as Keras' do."""
    base, exponent = call.args[:2]
    if "float" in common_dtype([base, exponent]):
        values = [call.as_float(value) for value in broadcast(call, call.args[:2])]
        return joined(values, call.op("Pow", *values))
    counts = None if isinstance(exponent, Value) else to_array(exponent)
    if counts is None or counts.size != 1 or counts.item() < 0:
        raise call.refuse(
            "it raises whole numbers to a power that is computed, negative or not the same for all of them",
            "Cast them to float32 first: ops.cast(x, 'float32') ** y.",
        )
    values = broadcast(call, [base, np.zeros(counts.shape, "int32")])
    square, times = call.as_number(values[0]), int(counts.item())
    result = call.op("Where", call.op("Equal", square, square), call.constant(1, square.dtype), square)
    while times:
        if times % 2:
            result = call.op("Mul", result, square)
        times //= 2
        square = square.like(call.op("Mul", square, square)) if times else square
    return joined([square, *values[1:]], result, dtype=square.dtype)
