"""Rules of concatenation: of features, and of timesteps in front of a sequence."""

from __future__ import annotations

from functools import reduce
from typing import Any

import keras

from model_export.keras.registry import Call, op_rule, rule
from model_export.keras.support import time_padding
from model_export.keras.support.broadcast import broadcast
from model_export.keras.support.shifts import concat_over_time
from model_export.keras.support.window import handles_padding
from model_export.keras.value import Value


@rule("Concatenate", masks=True)
@handles_padding
def concatenate(call: Call) -> Value:
    """Side by side along one feature axis; over time, constants in front of a sequence."""
    return _concatenated(call, call.values, call.layer.axis)


@op_rule("Concatenate", "Append", "Hstack")
@handles_padding
def concatenate_operation(call: Call) -> Value:
    """Side by side along one feature axis; over time, constants in front of a sequence."""
    kind = call.kind(["Concatenate", "Append", "Hstack"])
    parts = call.args[:2] if kind == "Append" else call.args[0]
    axis = 1 if kind == "Hstack" else call.layer.axis
    if axis is None:
        raise call.refuse("it flattens batch and time", "Name a feature axis.")
    return _concatenated(call, list(parts), axis)


def _concatenated(call: Call, parts: list[Any], axis: int) -> Value:
    """Join values and constants along an axis of the original."""
    timed = [part for part in parts if isinstance(part, Value) and part.time]
    if timed and axis % timed[0].rank == 1:
        return concat_over_time(call, parts)

    def features(inner: Call) -> Value:
        return _side_by_side(inner, keras.tree.flatten(inner.args)[: len(parts)], axis)

    side_by_side: Value = time_padding.apply(call, features)[0]
    return side_by_side


def _side_by_side(call: Call, parts: list[Any], axis: int) -> Value:
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
