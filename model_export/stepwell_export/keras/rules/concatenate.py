"""Rules of concatenation: along any axis, in front of a sequence too."""

from __future__ import annotations

from typing import Any

from stepwell_export.keras.rule_registry import Call, op_rule, to_array
from stepwell_export.keras.support.broadcast import as_long_as, broadcast, common_dtype
from stepwell_export.keras.value import Value


@op_rule("Concatenate")
def concatenate(call: Call) -> Value:
    """Side by side along one axis."""
    parts, axis = list(call.args[0]), call.axis(call.value, call.layer.axis)
    values = _behind_each_other(call, parts) if any(v.row[axis - 1] is None for v in call.values) else None
    values = values or _side_by_side(call, parts, axis)
    sizes = [value.row[axis - 1] for value in values]
    row = list(values[0].row)
    row[axis - 1] = None if None in sizes else sum(size or 0 for size in sizes)
    name = call.op("Concat", *values, axis=axis)
    return values[0].like(name, row=tuple(row))


def _side_by_side(call: Call, parts: list[Any], axis: int) -> list[Value]:
    """Return values of one dtype, and as many timesteps where they are not joined."""
    like = max(call.values, key=lambda value: sum(size is None for size in value.row))
    found = []
    for part, value in zip(parts, broadcast(call, parts), strict=True):
        whole = value if isinstance(part, Value) else _for_each_row(call, value, like, axis)
        found.append(as_long_as(call, whole, like, but=axis))
    return found


def _behind_each_other(call: Call, parts: list[Any]) -> list[Value]:
    """Return timesteps as values of one dtype, constants among them for each row of the batch."""
    like, dtype = next(value for value in call.values if value.is_sequence), common_dtype(parts)
    found = []
    for part in parts:
        if isinstance(part, Value):
            found.append(call.in_dtype(part, dtype))
            continue
        array = to_array(part)
        if array.shape[0] != 1:
            raise call.refuse(f"it has a constant for each of {array.shape[0]} rows of the batch")
        constant = Value(call.constant(array, dtype), array.shape[1:], dtype)
        found.append(_for_each_row(call, constant, like, 1))
    return found


def _for_each_row(call: Call, constant: Value, like: Value, axis: int) -> Value:
    """Return a constant of one row for each row of the batch, as long as another value but along one axis."""
    sizes = [call.op("Shape", like, start=place, end=place + 1) for place in range(like.rank)]
    sizes[axis] = call.graph.ints([constant.row[axis - 1] or 1])
    row = tuple(constant.row[axis - 1] if place == axis else size for place, size in enumerate(like.row, 1))
    return constant.like(call.op("Expand", constant, call.op("Concat", *sizes, axis=0)), row=row)
