"""Rules of layers that join several values: sums, products, concatenation."""

from __future__ import annotations

from functools import reduce
from typing import Any

import keras

from model_export.keras.registry import Call, rule
from model_export.keras.support import time_padding
from model_export.keras.support.broadcast import broadcast, joined
from model_export.keras.support.deferred import deferred_scale
from model_export.keras.support.shifts import concat_over_time
from model_export.keras.support.window import handles_padding
from model_export.keras.value import Value

_ONNX = {
    "Add": "Add", "Subtract": "Sub", "Multiply": "Mul", "Average": "Add", "Maximum": "Max", "Minimum": "Min",
}  # fmt: skip


@rule(*_ONNX, masks=True)
def merge(call: Call) -> Value:
    """Element by element, the smaller one broadcast."""
    values = call.values
    if call.kind(_ONNX) == "Multiply" and len(values) == 2 and (y := deferred_scale(call, "Mul", values)) is not None:
        return y
    y = join(call, call.kind(_ONNX), values)
    return y.like(y.name, mask=_any_unmasked(call))


def join(call: Call, kind: str, values: list[Value]) -> Value:
    """Join values element by element, as the merge layer of that name does."""
    values = broadcast(call, values)
    if kind == "Average":
        values = [call.as_float(value) for value in values]
    total = reduce(lambda left, right: call.op(_ONNX[kind], left, right), [value.name for value in values])
    if kind == "Average":
        total = call.op("Div", total, call.constant(len(values)))
    return joined(values, total)


@rule("Concatenate", masks=True)
@handles_padding
def concatenate(call: Call) -> Value:
    """Side by side along one feature axis; over time, constants in front of a sequence."""
    return concat(call, call.values, call.layer.axis)


def concat(call: Call, parts: list[Any], axis: int) -> Value:
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
