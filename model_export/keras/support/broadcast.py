"""Brings operands of one operation together: one dtype, and axes that mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model_export.keras.registry import Call, to_array
from model_export.keras.value import Value
from model_export.manifest import Array


def broadcast(call: Call, operands: Sequence[Any]) -> list[Value]:
    """Return operands that ONNX broadcasts as the original does.

    Args:
        call: The operation, for its name in an error.
        operands: Values, or numbers, arrays and variables, which become constants.

    Returns:
        One value per operand, all of one dtype (booleans are left alone).

    Raises:
        RefusedModelError: Axes of different meaning would meet, such as the batch of one and the time of another.
    """
    values = [operand for operand in operands if isinstance(operand, Value)]
    rank = max(value.rank for value in values)
    time = any(value.time for value in values)
    dtype = _common_dtype(operands)
    like = Value("", (0,) * (rank - 1 - time), dtype, time)
    return [
        _value(call, operand, like) if isinstance(operand, Value) else _constant(call, operand, like)
        for operand in operands
    ]


def joined(values: Sequence[Value], name: str, *, dtype: str | None = None) -> Value:
    """Return the tensor that came of broadcast values, with the row that follows from theirs."""
    row = tuple(int(dim) for dim in np.broadcast_shapes(*(value.row for value in values)))
    return Value(name, row, dtype or values[-1].dtype, any(value.time for value in values))


def _common_dtype(operands: Sequence[Any]) -> str:
    dtypes = {o.dtype for o in operands if isinstance(o, Value)} - {"bool"}
    constants = [to_array(o).dtype for o in operands if not isinstance(o, Value)]
    if len(dtypes) == 1 and not any(dtype.kind == "f" for dtype in constants):
        return dtypes.pop()
    return "float32" if dtypes or any(dtype.kind != "b" for dtype in constants) else "bool"


def _value(call: Call, value: Value, like: Value) -> Value:
    if value.dtype not in {like.dtype, "bool"}:
        value = value.like(call.cast(value, like.dtype), dtype=like.dtype)
    if value.rank != like.rank:
        raise call.refuse(
            f"it joins values of {value.rank} and {like.rank} axes, so the batch axis would mix with others"
        )
    if like.time and not value.time:
        if value.row[0] != 1 and not value.constant_over_time:
            raise call.refuse(
                f"it joins a value with a time axis and one without (row shape {list(value.row)})",
                "Give the static part as an input of every timestep, or join them behind return_sequences=False.",
            )
        if not call.graph.is_static(value.name):
            raise call.refuse(
                "it joins each timestep with an answer for the whole sequence, which needs timesteps that have not "
                "come yet",
                "Join the answer with x[:, -1], or use a recurrent layer over time.",
            )
        name = call.op("Gather", value.name, call.constant(0, "int64"), axis=1)
        return value.like(name, row=value.row[1:], time=True)
    return value


def _constant(call: Call, operand: Any, like: Value) -> Value:
    array = to_array(operand)
    return constant_beside(call, like, array, "bool" if array.dtype.kind == "b" else like.dtype)


def constant_beside(call: Call, value: Value, array: Array, dtype: str = "float32") -> Value:
    """Return a constant that broadcasts against a value of the original, as it does against the step's.

    One that differs from timestep to timestep is looked up by the position in the stream. Beyond the last
    timestep that it knows it is NaN, so that such a row fails alone and not its batch.

    Args:
        call: The layer or operation.
        value: The value that it is combined with.
        array: It broadcasts against `(batch, time, *row)`, or `(batch, *row)` where there is no time axis.
        dtype: NumPy name.

    Raises:
        RefusedModelError: It has one entry for each row of the batch, or for another number of timesteps
            than the model declares.
    """
    if array.ndim == value.rank:
        if array.shape[0] != 1:
            raise call.refuse(f"it has a constant for each of {array.shape[0]} rows of the batch")
        array = array[0]
    steps = array.shape[0] if value.time and array.ndim == value.rank - 1 else 0
    if steps > 1:
        return _of_this_timestep(call, array, dtype)
    array = array[0] if steps else array
    return Value(call.constant(array, dtype), array.shape, dtype, value.time)


def _of_this_timestep(call: Call, table: Array, dtype: str) -> Value:
    steps = len(table)
    if steps != call.graph.length or np.dtype(dtype).kind != "f":
        raise call.refuse(
            f"it has {dtype} weights or constants of its own for each of {steps} timesteps, in a model of "
            f"{call.graph.length or 'any number of'} timesteps",
            f"Share them over time, or declare the number of timesteps: keras.Input(({steps}, ...)).",
        )
    call.graph.bounded = True
    known = np.concatenate([table, np.full_like(table[:1], np.nan, dtype)])
    last = call.constant(steps, "int64")
    name = call.op("Gather", call.constant(known, dtype), call.op("Min", call.position(), last), axis=0)
    return Value(name, table.shape[1:], dtype, time=True)
