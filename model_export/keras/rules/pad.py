"""Rules of padding and cropping: of positions inside a timestep, and of time where the sequence stays causal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.support.window import handles_padding, put_in_front, resolve_padding
from model_export.keras.value import Value

Pairs = Sequence[tuple[int, int]]


@rule("ZeroPadding1D", "ZeroPadding2D", "ZeroPadding3D")
@handles_padding
def zero_padding(call: Call) -> Value:
    """Zeros around the positions; in front of the first timestep they are a layer's past."""
    return pad(call, call.value, _all_axes(call, call.layer.padding), 0)


@rule("Cropping1D", "Cropping2D", "Cropping3D")
@handles_padding
def cropping(call: Call) -> Value:
    """Fewer positions; over time it takes padding off, or makes a delay of it."""
    x = call.value
    pairs = _all_axes(call, call.layer.cropping)
    shape = [dim - low - high for dim, (low, high) in zip(x.row, pairs[1 + x.time :], strict=True)]
    keys = [slice(low, low + dim) for dim, (low, _) in zip(shape, pairs[1 + x.time :], strict=True)]
    y = _cut(call, x, keys)
    return cut_time(call, y, *pairs[1]) if x.time else y


@op_rule("Pad")
@handles_padding
def pad_operation(call: Call) -> Value:
    """`ops.pad` with a constant."""
    x, layer = call.value, call.layer
    if layer.mode != "constant":
        raise call.refuse(f"mode={layer.mode!r} repeats what is there; expected 'constant'")
    pairs = np.broadcast_to(to_array(layer.pad_width), (x.rank, 2)).tolist()
    value = call.kwargs.get("constant_values", call.args[1] if len(call.args) > 1 else None)
    return pad(call, x, pairs, float(to_array(0 if value is None else value)))


def pad(call: Call, x: Value, pairs: Pairs, value: float) -> Value:
    """Pad every axis of the original, batch and time included."""
    if tuple(pairs[0]) != (0, 0):
        raise call.refuse("it pads the batch axis, which adds streams")
    inside = list(pairs[1 + x.time :])
    y, margin = x, x.padding
    if any(tuple(pair) != (0, 0) for pair in inside):
        row = tuple(dim + low + high for dim, (low, high) in zip(x.row, inside, strict=True))
        ends = [0, *(low for low, _ in inside), 0, *(high for _, high in inside)]
        y = x.like(call.op("Pad", x.name, call.graph.ints(ends), call.constant(value, x.dtype)), row=row)
    if not x.time:
        return y
    front, back = pairs[1]
    fill = np.full(y.row, value)
    if margin and margin.front > 0:
        old = np.pad(np.broadcast_to(margin.pad_value, x.row), inside, constant_values=value)
        if front and not np.array_equal(old, fill):
            raise call.refuse("the sequence was padded with something else before", "Pad once.")
        fill = old
    before = (margin.front, margin.back) if margin else (0, 0)
    lacking = max(-before[0], 0)
    y = y.like(y.name, padding=margin)
    y = put_in_front(call, y, [call.constant(fill, y.dtype)] * min(front, lacking), max(lacking - front, 0))
    return resolve_padding(call, y, before[0] + front, before[1] + back, fill)


def cut_time(call: Call, x: Value, front: int, back: int) -> Value:
    """Drop timesteps of the original in front and behind; `x` may have padding over time."""
    margin = x.padding
    fill = margin.pad_value if margin else np.zeros(x.row)
    before = (margin.front, margin.back) if margin else (0, 0)
    return resolve_padding(call, x.like(x.name, padding=margin), before[0] - front, before[1] - back, fill)


def _cut(call: Call, x: Value, keys: Sequence[slice]) -> Value:
    if all(key == slice(0, dim) for key, dim in zip(keys, x.row, strict=True)):
        return x
    ints, axes = call.graph.ints, range(1, len(keys) + 1)
    name = call.op("Slice", x.name, ints([k.start for k in keys]), ints([k.stop for k in keys]), ints(axes))
    margin = x.padding
    if margin:
        fill = np.broadcast_to(margin.pad_value, x.row)[tuple(keys)]
        margin = replace(margin, pad_value=fill)
    return x.like(name, row=tuple(k.stop - k.start for k in keys), padding=margin)


def _all_axes(call: Call, amounts: Any) -> list[tuple[int, int]]:
    """Return a layer's amounts for every axis of the original."""
    x = call.value
    pairs: list[tuple[int, int]] = [tuple(amounts)] if isinstance(amounts[0], int) else [tuple(p) for p in amounts]
    first = getattr(call.layer, "data_format", None) == "channels_first"
    if first and x.time:
        raise call.refuse("data_format='channels_first' puts the channels where time belongs")
    return [(0, 0), (0, 0), *pairs] if first else [(0, 0), *pairs, (0, 0)]
