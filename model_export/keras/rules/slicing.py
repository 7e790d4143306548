"""Rules of padding and of `x[...]`: inside a timestep, and over time where the sequence stays causal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from model_export.keras.registry import Call, op_rule, to_array
from model_export.keras.support.window import put_in_front, resolve_padding
from model_export.keras.value import Value

Pairs = Sequence[tuple[int, int]]


@op_rule("Pad", handles="padding")
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


# ---------------------------------------------------------------- x[...]


@op_rule("GetItem", handles="padding shape")
def get_item(call: Call) -> Value:
    """A part of the features, the last timestep, or padding over time taken off.

    `x[:, -1]` is the answer for the timesteps so far, so it becomes the value of this timestep.
    """
    x, key = call.value, call.args[1]
    keys = _keys(call, x, key)
    if keys.pop(0) != slice(None):
        raise call.refuse("it picks rows of the batch, which mixes streams")
    if x.time:
        x, more = _timesteps(call, x, keys.pop(0))
        keys = more + keys
    if x.padding is None:
        return _features(call, x, keys)
    if any(k != slice(None) for k in keys):
        fill = np.broadcast_to(x.padding.pad_value, x.row)[tuple(keys)]
        y = _features(call, x, keys)
        return replace(y, padding=replace(x.padding, pad_value=fill))
    return x


def _keys(call: Call, x: Value, key: Any) -> list[Any]:
    """Return one key for each axis; new axes are None among them."""
    keys = list(key) if isinstance(key, tuple | list) else [key]
    if any(not isinstance(k, int | np.integer | slice) and k is not None and k is not Ellipsis for k in keys):
        raise call.refuse(f"its index {key} is not made of numbers and slices")
    at = next((i for i, k in enumerate(keys) if k is Ellipsis), len(keys))
    named = [k for k in keys if k is not Ellipsis and k is not None]
    return keys[:at] + [slice(None)] * (x.rank - len(named)) + keys[at + 1 :]


def _timesteps(call: Call, x: Value, key: Any) -> tuple[Value, list[Any]]:
    """Return what is picked over time, and keys for axes that this adds to the row."""
    if key == slice(None):
        return x, []
    is_newest, keeps_axis, name = key in (-1, slice(-1, None)), isinstance(key, slice), ""
    if x.padding and x.padding.refusal and is_newest:
        raise x.padding.refusal
    if x.padding is None and key in (0, slice(None, 1), slice(0, 1)):
        name = _first_timestep(call, x)
    elif is_newest and not (x.padding and x.padding.back):
        name = x.name
    if name:
        y = x.like(name, time=False)
        return (call.reshaped(y, (1, *x.row)), [slice(None)]) if keeps_axis else (y, [])
    start, stop = (getattr(key, end, None) for end in ("start", "stop"))
    cuts = keeps_axis and key.step in {None, 1} and (start or 0) >= 0 and (stop is None or stop < 0)
    if cuts:
        return cut_time(call, x, start or 0, -(stop or 0)), []
    raise call.refuse(
        f"it picks timesteps ({key}); a stream only has the newest one", "Use x[:, -1], or x[:, 0] for the first."
    )


def _first_timestep(call: Call, x: Value) -> str:
    """Return what a value of each timestep was at the first one: a state that is kept from then on."""
    first = call.state("first", x.row, x.dtype)
    now = put_in_front(call, first, [x.name], 0).name
    call.next_state(first, now)
    call.graph.mark_static(now)
    return now


def _features(call: Call, x: Value, keys: Sequence[Any]) -> Value:
    row = np.broadcast_to(0, x.row)[tuple(keys)].shape
    named = zip((k for k in keys if k is not None), x.row, strict=True)
    places = [k if isinstance(k, slice) else slice(k % size, k % size + 1) for k, size in named]
    x = sliced(call, x, dict(enumerate(places, 1)))
    return x.like(x.name) if row == x.row else call.reshaped(x, row)


def sliced(call: Call, x: Value, parts: Mapping[int, slice]) -> Value:
    """Return a part of each of some axes of the step graph."""
    every = {axis: range(x.row[axis - 1])[part] for axis, part in parts.items()}
    row = tuple(len(every.get(axis, range(dim))) for axis, dim in enumerate(x.row, 1))
    cut = {axis: p for axis, p in every.items() if p.step > 0 and p != range(x.row[axis - 1])}
    for axis, places in every.items():
        if places.step < 0:
            x = picked(call, x, axis, places)
    if cut:
        ends = zip(*((p.start, p.stop, axis, p.step) for axis, p in cut.items()), strict=True)
        x = x.like(call.op("Slice", x, *map(call.graph.ints, ends)))
    return x.like(x.name, row=row)


def picked(call: Call, x: Value, axis: int, places: Sequence[int]) -> Value:
    """Return what stands at some places of an axis of the step graph, in their order."""
    row = tuple(len(places) if i == axis else dim for i, dim in enumerate(x.row, 1))
    return x.like(call.op("Gather", x, call.graph.ints(places), axis=axis), row=row)
