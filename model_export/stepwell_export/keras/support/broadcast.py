"""Brings operands of one operation together: one dtype, and as many timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from stepwell_export.keras.graph import TRIAL
from stepwell_export.keras.rule_registry import Call, to_array
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array


def broadcast(call: Call, operands: Sequence[Any], *, truths: int = 0) -> list[Value]:
    """Return operands that ONNX broadcasts as the original does.

    Args:
        call: The operation, for its name in an error.
        operands: Values, or numbers, arrays and variables, which become constants.
        truths: How many of them, the first ones, are read as truths.

    Returns:
        One value per operand; those behind the truths are of one dtype.

    Raises:
        RefusedModelError: Axes of different meaning would meet, such as the batch of one and the time of another.
    """
    values = [operand for operand in operands if isinstance(operand, Value)]
    dtype = common_dtype(operands[truths:])
    longest = max(values, key=lambda value: (value.rank, sum(size is None for size in value.row)))
    for value in values:
        if value.rank != longest.rank:
            raise call.refuse(
                f"it joins values of {value.rank} and {longest.rank} axes, so the batch axis would mix with others"
            )
    return [
        as_long_as(call, call.in_dtype(operand, one), longest)
        if isinstance(operand, Value)
        else constant_beside(call, longest, to_array(operand), one)
        for place, operand in enumerate(operands)
        for one in ["bool" if place < truths else dtype]
    ]


def joined(values: Sequence[Value], name: str, *, dtype: str | None = None) -> Value:
    """Return the tensor that came of broadcast values, with the row that follows from theirs."""
    return Value(name, _row_of(values), dtype or values[-1].dtype, time=any(value.time for value in values))


def _row_of(values: Sequence[Value]) -> tuple[int | None, ...]:
    longest = max(len(value.row) for value in values)
    rows = [(1,) * (longest - len(value.row)) + value.row for value in values]
    return tuple(next((size for size in sizes if size != 1), 1) for sizes in zip(*rows, strict=True))


def common_dtype(operands: Sequence[Any]) -> str:
    """Return the dtype of what comes of values and constants, as Keras has it; every float is float32 in the graph."""
    kinds = {"b": bool, "i": int, "u": int, "f": float}
    found = [o.dtype if isinstance(o, Value) else kinds[to_array(o).dtype.kind] for o in operands]
    dtype: str = keras.backend.result_type(*found) if found else "bool"
    return "float32" if "float" in dtype else dtype


def as_long_as(call: Call, value: Value, like: Value, *, but: int | None = None) -> Value:
    """Return a value with as many timesteps as another one, where it was made for the declared number of them.

    Args:
        call: The operation, for its name in an error.
        value: The value.
        like: The other one.
        but: The axis along which they are joined; one entry in the place of all timesteps is repeated then. None: they
            are not, and it broadcasts.

    Raises:
        RefusedModelError: It has another number of entries where the other one has timesteps.
    """
    for place, size in enumerate(value.row, len(like.row) - len(value.row)):
        axis = place + value.rank - len(like.row)
        if like.row[place] is not None or size is None or axis == but or (size == 1 and but is None):
            continue
        source = value.name if size == 1 else call.graph.repeated.get(value.name)
        if size not in {1, call.graph.length, TRIAL} or (size == TRIAL and source is None):
            raise call.refuse(
                f"it joins a value with a time axis and one with {size} entries in its place",
                "Give the static part as an input of every timestep, or join them behind return_sequences=False.",
            )
        steps = call.op("Shape", like, start=place + 1, end=place + 2)
        value = _cut(call, value, axis, steps, source)
    return value


def _cut(call: Call, value: Value, axis: int, steps: str, source: str | None) -> Value:
    """Return the first entries along an axis, as many as timesteps; `source` is one of them where all are equal."""
    row = tuple(None if place == axis else size for place, size in enumerate(value.row, 1))
    if source is not None:
        shape = [steps if place == axis else call.graph.ints([1]) for place in range(value.rank)]
        return value.like(call.op("Expand", source, call.op("Concat", *shape, axis=0)), row=row)
    call.graph.bounded = True
    ints = call.graph.ints
    return value.like(call.op("Slice", value, ints([0]), steps, ints([axis])), row=row)


def constant_beside(call: Call, value: Value, array: Array, dtype: str = "float32") -> Value:
    """Return a constant that broadcasts against a value; of one with an entry for each timestep, those that there are.

    Args:
        call: The layer or operation.
        value: The value that it is combined with.
        array: It broadcasts against `(batch, *row)`.
        dtype: NumPy name.

    Raises:
        RefusedModelError: It has one entry for each row of the batch, or for another number of timesteps than the
            model declares.
    """
    if array.ndim > value.rank:
        raise call.refuse(
            f"it has a constant of {array.ndim} axes beside a value of {value.rank}, whose batch would move"
        )
    if array.ndim == value.rank and array.shape[0] != 1:
        raise call.refuse(f"it has a constant for each of {array.shape[0]} rows of the batch")
    if array.ndim == value.rank:
        array = array[0]
    beside = value.row[len(value.row) - array.ndim :] if array.ndim else ()
    for axis, size in enumerate(beside):
        if size is None and np.all(array == array.take([0], axis)):  # made for as many timesteps as code was tried on
            array = array.take([0], axis)
    steps = [n for n, size in zip(array.shape, beside, strict=True) if size is None and n > 1]
    if steps and call.graph.length is None:
        raise call.refuse(
            f"it has a constant of its own for each timestep, and the model declares no number of timesteps "
            f"({steps[0]} were tried)",
            "Share it over time, or declare the number of timesteps: keras.Input((T, ...)).",
        )
    if any(n != call.graph.length for n in steps):
        raise call.refuse(
            f"it has {dtype} weights or constants of its own for each of {steps[0]} timesteps, in a model of "
            f"{call.graph.length or 'any number of'} timesteps",
            f"Share them over time, or declare the number of timesteps: keras.Input(({steps[0]}, ...)).",
        )
    if not steps:
        return Value(call.constant(array, dtype), array.shape, dtype, time=value.time)
    wide = array.reshape((1, *array.shape))
    return as_long_as(call, Value(call.constant(wide, dtype), array.shape, dtype), value)


def constant_result(call: Call, array: Array) -> Value:
    """Return a constant that code gives as a result; one row of several axes is static, and the same for each row."""
    first, dtype = call.operands[0], common_dtype([array])
    if array.ndim < 2 or array.shape[0] != 1 or array.shape[1] in {call.graph.length, TRIAL}:
        return constant_beside(call, first, array, dtype)
    row = array.shape[1:]
    return Value(call.graph.for_each_row(call.constant(array, dtype), row, first.name, at=call.path), row, dtype)
