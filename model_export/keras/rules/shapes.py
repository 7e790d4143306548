"""Rules of `keras.ops` that change shapes or pick parts; batch and time stay in front."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import keras
import numpy as np

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.rules.slicing import cut_time, picked, sliced
from model_export.keras.support.broadcast import broadcast
from model_export.keras.support.deferred import reordered
from model_export.keras.value import DeferredSum, Value


@op_rule("Reshape", handles="shape")
def reshape(call: Call) -> Value:
    """Another shape of the features."""
    x = call.value
    batch, *target = (-1 if dim is None else int(dim) for dim in call.layer.newshape)
    if batch not in {-1, 1}:
        raise call.refuse(f"its shape {list(call.layer.newshape)} fixes the number of rows in the batch")
    return _reshaped(call, x, target)


def _reshaped(call: Call, x: Value, target: list[int]) -> Value:
    """Give the original another shape behind the batch axis; the time axis must stay where and as it is."""
    size = math.prod(x.row)
    if not x.time:
        row = _resolved(target, size)
    elif len(target) == 1 and size == 1:  # one number for each timestep stays that
        row = []
    elif len(target) == 1:
        raise call.refuse(
            "it flattens the time axis into the features, so it needs the whole sequence",
            "Flatten each timestep: TimeDistributed(Flatten()), or end the recurrent part with return_sequences=False.",
        )
    else:
        row = _resolved(target[1:], size) if target else []
        # -1 in the time's place keeps time exactly where the rest is one row. A fixed number of timesteps is
        # taken as declared; the verification on whole sequences would find a fault.
        if not target or math.prod(row) != size or (target[0] == -1 and -1 in target[1:]):
            raise call.refuse(
                f"its target shape {target} mixes timesteps; one timestep has shape {list(x.row)}",
                f"Keep time in front: Reshape((-1, ...)) with {size} elements behind it.",
            )
    return call.reshaped(x, row)


def _resolved(target: list[int], size: int) -> list[int]:
    known = math.prod(dim for dim in target if dim != -1)
    return [size // known if dim == -1 else dim for dim in target]


@op_rule("Diff", handles="padding")
def diff(call: Call) -> Value:
    """Differences from one timestep to the next."""
    x, layer = call.value, call.layer
    if not x.time or layer.axis % x.rank != 1 or (x.padding and x.padding.back):
        raise call.refuse("it has a rule over time alone", "Use x[..., 1:] - x[..., :-1].")
    for _ in range(layer.n):
        later, earlier = cut_time(call, x, 1, 0), cut_time(call, x, 0, 1)
        x = replace(later, name=call.op("Sub", later, earlier))
        x = x if x.padding is None else replace(x, padding=replace(x.padding, pad_value=np.zeros(x.row)))
    return x


@op_rule("Stack")
def stack(call: Call) -> Value:
    """Side by side along a new feature axis."""
    values = broadcast(call, list(call.args[0]))
    place = call.layer.axis % (values[0].rank + 1)
    if place < 1 + values[0].time:
        raise call.refuse("it puts a new axis before the features, where batch and time belong")
    axis = place - values[0].time
    wide = [call.op("Unsqueeze", value, call.graph.ints([axis])) for value in values]
    row = (*values[0].row[: axis - 1], len(values), *values[0].row[axis - 1 :])
    return values[0].like(call.op("Concat", *wide, axis=axis), row=row)


@rule("RepeatVector", handles="shape")
def repeat_vector(call: Call) -> Value:
    """One vector several times, as positions inside a timestep, for example the hours that an answer is about."""
    x, count = call.value, call.layer.n
    if x.time:  # of one number for each timestep: then time is the last axis
        columns = call.op("Unsqueeze", x, call.graph.ints([1]))
        name = call.op("Expand", columns, call.graph.ints([1, count]))
        refusal = call.refuse("it puts the time axis behind the features", "Put it back: Permute((2, 1)).")
        return x.like(name, row=(count,), deferred=DeferredSum(refusal, order=(0, 2, 1)))
    wide = call.op("Unsqueeze", x, call.graph.ints([1]))
    row = (count, *x.row)
    name = call.op("Expand", wide, call.graph.ints([1, *row]))
    return x.like(name, row=row, constant_over_time=True)


@op_rule("Split", "ArraySplit")
def split(call: Call) -> list[Value]:
    """Equal or given parts along one feature axis."""
    x, cuts = call.value, call.layer.indices_or_sections
    axis = call.axis(x, call.layer.axis)
    size = x.row[axis - 1]
    if isinstance(cuts, int | np.integer):
        parts = np.array_split(np.arange(size), int(cuts))
        ends = [0, *np.cumsum([len(part) for part in parts]).tolist()]
    else:
        ends = [0, *(int(cut) for cut in to_array(cuts)), size]
    return [sliced(call, x, {axis: slice(start, end)}) for start, end in pairwise(ends)]


@op_rule("Unstack")
def unstack(call: Call) -> list[Value]:
    """The parts along one feature axis, without that axis."""
    x, axis = call.value, call.axis(call.value, call.layer.axis)
    row = [dim for i, dim in enumerate(x.row, 1) if i != axis]
    parts = [sliced(call, x, {axis: slice(i, i + 1)}) for i in range(x.row[axis - 1])]
    return [call.reshaped(part, row) for part in parts]


@op_rule("ExpandDims", handles="shape")
def expand_dims(call: Call) -> Value:
    """New axes of length 1 among the features."""
    x, axes = call.value, keras.tree.flatten(call.layer.axis)
    row = list(x.row)
    places = sorted(axis % (x.rank + len(axes)) for axis in axes)
    if places[0] < 1 + x.time:
        raise call.refuse("it puts a new axis before the features, where batch and time belong")
    for place in places:
        row.insert(place - 1 - x.time, 1)
    return call.reshaped(x, row)


@op_rule("Squeeze", handles="shape")
def squeeze(call: Call) -> Value:
    """Drops feature axes of length 1."""
    x, axes = call.value, call.layer.axis
    if axes is None:
        raise call.refuse("it drops every axis of length 1, which may be batch or time", "Name the axis.")
    gone = {call.axis(x, axis) for axis in keras.tree.flatten(axes)}
    row = [dim for i, dim in enumerate(x.row, 1) if i not in gone]
    return call.reshaped(x, row)


@op_rule("Transpose", "Moveaxis", "Swapaxes", handles="deferred")
def transpose(call: Call) -> Value:
    """Another order of the axes; batch and time have to come back in front."""
    x, layer = call.value, call.layer
    kind = call.kind(["Transpose", "Moveaxis", "Swapaxes"])
    shape = np.empty([i + 1 for i in range(x.rank)], np.int8)  # NumPy shows where each axis goes
    if kind == "Moveaxis":
        moved = np.moveaxis(shape, layer.source, layer.destination)
    elif kind == "Swapaxes":
        moved = np.swapaxes(shape, layer.axis1, layer.axis2)
    else:
        moved = np.transpose(shape, layer.axes)
    order = [dim - 1 for dim in moved.shape]
    refusal = call.refuse(f"its order {order} moves the batch or time axis")
    return reordered(call, x, order, refusal)


@op_rule("Flip")
def flip(call: Call) -> Value:
    """The other way round along feature axes."""
    x, axes = call.value, call.layer.axis
    places = [call.axis(x, axis) for axis in (range(x.rank) if axes is None else keras.tree.flatten(axes))]
    for place in places:
        x = picked(call, x, place, range(x.row[place - 1])[::-1])
    return x.like(x.name)


@op_rule("Roll")
def roll(call: Call) -> Value:
    """Shifted round along one feature axis."""
    x, layer = call.value, call.layer
    if not isinstance(layer.axis, int) or not isinstance(layer.shift, int):
        raise call.refuse("it rolls all axes, or several; expected one feature axis", "Name one feature axis.")
    axis = call.axis(x, layer.axis)
    return picked(call, x, axis, np.roll(np.arange(x.row[axis - 1]), layer.shift).tolist())


@op_rule("Repeat", handles="shape")
def repeat(call: Call) -> Value:
    """Each feature several times."""
    x, axis, counts = call.value, call.axis(call.value, call.layer.axis), to_array(call.layer.repeats)
    order = np.repeat(np.arange(x.row[axis - 1]), counts if counts.ndim and counts.size > 1 else counts.item())
    return replace(picked(call, x, axis, order.tolist()), constant_over_time=_is_even(x))


def _is_even(x: Value) -> bool:
    """Whether the first axis has the same in all places, and goes on to have so when it is made longer."""
    return x.constant_over_time or (not x.time and x.row[:1] == (1,))


@op_rule("Tile")
def tile(call: Call) -> Value:
    """The features several times side by side."""
    x = call.value
    counts = keras.tree.flatten(call.layer.repeats)
    counts = [1] * (x.rank - len(counts)) + [int(n) for n in counts]
    if len(counts) != x.rank or any(n != 1 for n in counts[: 1 + x.time]):
        raise call.refuse(f"its repeats {counts} make more rows or timesteps; expected features only")
    own = counts[1 + x.time :]
    row = tuple(dim * n for dim, n in zip(x.row, own, strict=True))
    return x.like(call.op("Tile", x, call.graph.ints([1, *own])), row=row, constant_over_time=_is_even(x))


@op_rule("BroadcastTo", handles="shape")
def broadcast_to(call: Call) -> Value:
    """Feature axes of length 1 made longer."""
    x, shape = call.value, [None if dim is None else int(dim) for dim in call.layer.shape]
    row = shape[1 + x.time :]
    if len(shape) != x.rank or None in row:
        raise call.refuse(f"its shape {shape} adds axes in front, where batch and time belong")
    target = [int(dim or 1) for dim in row]
    return x.like(
        call.op("Expand", x, call.graph.ints([1, *target])), row=tuple(target), constant_over_time=_is_even(x)
    )
