"""Brings operands of one operation together: one dtype, and axes that mean the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model_export.keras.registry import Call, to_array
from model_export.keras.value import Value


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
        value = value.like(call.graph.cast(value.name, like.dtype, at=call.path), dtype=like.dtype)
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
    return call.constant_beside(like, array, "bool" if array.dtype.kind == "b" else like.dtype)
