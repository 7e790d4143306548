"""Rules of concatenation: of features, and of timesteps in front of a sequence."""

from __future__ import annotations

from functools import reduce
from typing import Any

import keras
import numpy as np

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.support import time_padding
from model_export.keras.support.broadcast import broadcast
from model_export.keras.support.window import put_in_front, resolve_padding
from model_export.keras.value import Value
from model_export.manifest import Array


@rule("Concatenate", masks=True, handles="padding")
@op_rule("Concatenate", "Append", "Hstack", handles="padding")
def concatenate(call: Call) -> Value:
    """Side by side along one feature axis; over time, constants in front of a sequence."""
    kind = call.kind(["Concatenate", "Append", "Hstack"])
    parts = list(call.args[:2] if kind == "Append" else call.args[0])
    axis = 1 if kind == "Hstack" else call.layer.axis
    timed = [part for part in parts if isinstance(part, Value) and part.time]
    if timed and axis is not None and axis % timed[0].rank == 1:
        return _over_time(call, parts)

    def features(inner: Call) -> Value:
        return _side_by_side(inner, keras.tree.flatten(inner.args)[: len(parts)], axis)

    side_by_side: Value = time_padding.apply(call, features)[0]
    return side_by_side


def _side_by_side(call: Call, parts: list[Any], axis: int | None) -> Value:
    values = broadcast(call, parts)
    first = values[0]
    step_axis = call.axis(first, axis)
    row = list(first.row)
    row[step_axis - 1] = sum(value.row[step_axis - 1] for value in values)
    name = call.op("Concat", *(value.name for value in values), axis=step_axis)
    return first.like(name, row=tuple(row), mask=_any_unmasked(call))


def _any_unmasked(call: Call) -> str | None:
    """Join masks as Keras does: a timestep counts where any of the inputs counts.

    One input without a mask ends the mask: of a sum because Keras does so, of a concatenation because an
    unmasked input always counts.
    """
    masks = [value.mask for value in call.values]
    present = [mask for mask in masks if mask is not None]
    if not present or len(present) < len(masks):
        return None
    return reduce(lambda left, right: left if left == right else call.op("Or", left, right), present)


def _over_time(call: Call, parts: list[Any]) -> Value:
    """Put timesteps in front of a sequence: as many as were cut off, or more as padding.

    Raises:
        RefusedModelError: Something else than a sequence stands last, or what stands in front is not known at the
            first timestep.
    """
    *before, x = parts
    if not isinstance(x, Value) or not x.time or any(isinstance(part, Value) and part.time for part in before):
        raise call.refuse(
            "it works along the time axis, so it needs timesteps that have not come yet",
            "Only constants, x[:, :1] and what comes of static inputs may stand in front of one sequence; or use a "
            "recurrent layer over time.",
        )
    rows = [row for part in before for row in _rows(call, part, x)]
    front, back = (x.padding.front, x.padding.back) if x.padding else (0, 0)
    lacking, fill = max(-front, 0), np.zeros(x.row)
    if len(rows) > lacking:
        fill = _padding(call, [known for _, known in rows], front)
    there = rows[max(len(rows) - lacking, 0) :]
    y = put_in_front(call, x, [name for name, _ in there], lacking - len(there))
    return resolve_padding(call, y, front + len(rows), back, fill)


def _rows(call: Call, part: Any, x: Value) -> list[tuple[str, Array | None]]:
    """Return the tensor of each timestep that is put in front of a sequence, and what it is if that is a constant."""
    if not isinstance(part, Value):
        array = to_array(part)
        if array.shape[0] != 1:
            raise call.refuse(f"it has a constant for each of {array.shape[0]} rows of the batch")
        known = np.broadcast_to(array[0], (array.shape[1], *x.row))
        return [(call.constant(row, x.dtype), row) for row in known]
    fill = call.graph.uniform_values.get(part.name)
    if fill is None and not call.graph.is_static(part.name):
        raise call.refuse(
            "it puts an answer for the whole sequence in front of the first timestep",
            "Put constants, x[:, :1] or what comes of static inputs there.",
        )
    name = part.name if part.dtype == x.dtype else call.cast(part, x.dtype)
    row = None if fill is None else np.full(x.row, fill)
    return [(call.op("Gather", name, call.constant(place, "int64"), axis=1), row) for place in range(part.row[0])]


def _padding(call: Call, rows: list[Array | None], front: int) -> Array:
    """Return what each timestep is that is put in front of the stream's first: the same constant."""
    first = rows[0]
    if front > 0 or first is None or any(row is None or not np.array_equal(row, first) for row in rows):
        raise call.refuse(
            f"it puts {len(rows)} timesteps in front, more than were cut off, and they are not the same constant",
            "Cut as many off behind, x[:, :-1]; or pad with ops.pad.",
        )
    return first
