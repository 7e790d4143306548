"""Rules of `keras.ops` that change shapes or pick parts; the batch stays in front."""

from __future__ import annotations

import math
from itertools import pairwise

import keras
import numpy as np

from model_export.keras.graph import TRIAL
from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.rules.slicing import picked, sliced
from model_export.keras.support.broadcast import broadcast
from model_export.keras.value import Value


@op_rule("Reshape")
def reshape(call: Call) -> Value:
    """Another shape of each row."""
    x = call.value
    batch, *target = (-1 if dim is None else int(dim) for dim in call.layer.newshape)
    if batch not in {-1, 1}:
        raise call.refuse(f"its shape {list(call.layer.newshape)} fixes the number of rows in the batch")
    return call.reshaped(x, _row(call, x, target))


def _row(call: Call, x: Value, target: list[int]) -> list[int | None]:
    """Return a row's new shape, of the same timesteps."""
    size = math.prod(dim for dim in x.row if dim is not None)
    if None not in x.row:
        return list(_resolved(target, size))
    if x.row.count(None) > 1:
        if len(target) == len(x.row):
            return [old if old is None else new for old, new in zip(x.row, target, strict=True)]
    elif len(target) == 1 and size > 1:
        raise call.refuse(
            "it flattens the time axis into the features, so it needs the whole sequence",
            "Flatten each timestep: TimeDistributed(Flatten()), or end the recurrent part with return_sequences=False.",
        )
    # A fixed number of timesteps is taken as declared; the verification on whole sequences would find a fault.
    places = [place for place, dim in enumerate(target) if dim in {-1, call.graph.length, TRIAL}]
    for place in sorted(places, key=lambda place: x.row[place : place + 1] != (None,)):
        others = target[:place] + target[place + 1 :]
        row = _resolved(others, size)
        if others.count(-1) < 2 and math.prod(row) == size and (-1 not in others or target[place] != -1):
            return [*row[:place], None, *row[place:]]
    steps = [dim for dim in x.row if dim is not None]
    raise call.refuse(
        f"its target shape {target} mixes timesteps; one timestep has shape {steps}",
        f"Keep time in front: Reshape((-1, ...)) with {size} elements behind it.",
    )


def _resolved(target: list[int], size: int) -> list[int]:
    known = math.prod(dim for dim in target if dim != -1)
    return [size // max(known, 1) if dim == -1 else dim for dim in target]


@op_rule("Diff")
def diff(call: Call) -> Value:
    """Differences from one place to the next."""
    x, layer = call.value, call.layer
    axis = call.axis(x, layer.axis)
    for _ in range(layer.n):
        later, earlier = sliced(call, x, {axis: slice(1, None)}), sliced(call, x, {axis: slice(0, -1)})
        x = later.like(call.op("Sub", later, earlier))
    return x


@op_rule("Stack")
def stack(call: Call) -> Value:
    """Side by side along a new feature axis."""
    values = broadcast(call, list(call.args[0]))
    place = call.layer.axis % (values[0].rank + 1)
    if place == 0:
        raise call.refuse("it puts a new axis in front, where the batch belongs")
    wide = [call.op("Unsqueeze", value, call.graph.ints([place])) for value in values]
    row = (*values[0].row[: place - 1], len(values), *values[0].row[place - 1 :])
    return values[0].like(call.op("Concat", *wide, axis=place), row=row)


@rule("RepeatVector")
def repeat_vector(call: Call) -> Value:
    """One vector several times, as positions inside a timestep, for example the hours that an answer is about."""
    x, count = call.value, call.layer.n
    wide = call.op("Unsqueeze", x, call.graph.ints([1]))
    row = (count, *x.row)
    y = x.like(call.op("Expand", wide, call.graph.ints([1, count, *(1 for _ in x.row)])), row=row)
    call.graph.repeated[y.name] = wide
    return y


@op_rule("Split", "ArraySplit")
def split(call: Call) -> list[Value]:
    """Equal or given parts along one feature axis."""
    x, cuts = call.value, call.layer.indices_or_sections
    axis = call.axis(x, call.layer.axis)
    size = call.size(x, axis)
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
    row = tuple(dim for i, dim in enumerate(x.row, 1) if i != axis)
    count = x.row[axis - 1] or call.graph.length or call.size(x, axis)
    return [x.like(call.op("Gather", x, call.constant(i, "int64"), axis=axis), row=row) for i in range(count)]


@op_rule("ExpandDims")
def expand_dims(call: Call) -> Value:
    """New axes of length 1."""
    x, axes = call.value, keras.tree.flatten(call.layer.axis)
    row = list(x.row)
    places = sorted(axis % (x.rank + len(axes)) for axis in axes)
    if places[0] == 0:
        raise call.refuse("it puts a new axis in front, where the batch belongs")
    for place in places:
        row.insert(place - 1, 1)
    return x.like(call.op("Unsqueeze", x, call.graph.ints(places)), row=tuple(row))


@op_rule("Squeeze")
def squeeze(call: Call) -> Value:
    """Drops axes of length 1."""
    x, axes = call.value, call.layer.axis
    if axes is None:
        raise call.refuse("it drops every axis of length 1, which may be batch or time", "Name the axis.")
    gone = sorted({call.axis(x, axis) for axis in keras.tree.flatten(axes)})
    row = tuple(dim for i, dim in enumerate(x.row, 1) if i not in gone)
    return x.like(call.op("Squeeze", x, call.graph.ints(gone)), row=row)


@op_rule("Transpose", "Moveaxis", "Swapaxes")
def transpose(call: Call) -> Value:
    """Another order of the axes; the batch stays in front."""
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
    if order[0] != 0:
        raise call.refuse(
            f"its order {order} moves the batch axis",
            "Keep the batch in front. Let a recurrent layer run a loop over time: keras.layers.RNN(cell); or put it "
            "into a layer of your own and define what one timestep is: stepwell.register_step_rule.",
        )
    return x.like(call.op("Transpose", x, perm=order), row=tuple(x.row[axis - 1] for axis in order[1:]))


@op_rule("Flip")
def flip(call: Call) -> Value:
    """The other way round along feature axes."""
    x, axes = call.value, call.layer.axis
    places = [call.axis(x, axis) for axis in (range(x.rank) if axes is None else keras.tree.flatten(axes))]
    return sliced(call, x, dict.fromkeys(places, slice(None, None, -1)))


@op_rule("Roll")
def roll(call: Call) -> Value:
    """Shifted round along one feature axis."""
    x, layer = call.value, call.layer
    if not isinstance(layer.axis, int) or not isinstance(layer.shift, int):
        raise call.refuse("it rolls all axes, or several; expected one feature axis", "Name one feature axis.")
    axis = call.axis(x, layer.axis)
    return picked(call, x, axis, np.roll(np.arange(call.size(x, axis)), layer.shift).tolist())


@op_rule("Repeat")
def repeat(call: Call) -> Value:
    """Each feature several times."""
    x, axis, counts = call.value, call.axis(call.value, call.layer.axis), to_array(call.layer.repeats)
    order = np.repeat(np.arange(call.size(x, axis)), counts if counts.ndim and counts.size > 1 else counts.item())
    return _repeated(call, x, picked(call, x, axis, order.tolist()))


def _repeated(call: Call, x: Value, y: Value) -> Value:
    """Note that a value has the same in all places along axis 1, if it is made of one that has."""
    if x.row[:1] == (1,) and x.row[1:] == y.row[1:]:
        call.graph.repeated[y.name] = x.name
    return y


@op_rule("Tile")
def tile(call: Call) -> Value:
    """The features several times side by side."""
    x = call.value
    counts = keras.tree.flatten(call.layer.repeats)
    counts = [1] * (x.rank - len(counts)) + [int(n) for n in counts]
    row = tuple(dim if dim is None or n == 1 else dim * n for dim, n in zip(x.row, counts[1:], strict=False))
    if (
        len(counts) != x.rank
        or counts[0] != 1
        or any(n != 1 for n, dim in zip(counts[1:], x.row, strict=False) if dim is None)
    ):
        raise call.refuse(f"its repeats {counts} make more rows or timesteps; expected features only")
    return _repeated(call, x, x.like(call.op("Tile", x, call.graph.ints(counts)), row=row))


@op_rule("BroadcastTo")
def broadcast_to(call: Call) -> Value:
    """Axes of length 1 made longer."""
    x, shape = call.value, [None if dim is None else int(dim) for dim in call.layer.shape]
    if len(shape) != x.rank:
        raise call.refuse(f"its shape {shape} adds axes in front, where the batch belongs")
    sizes = [1 if old is None or new is None else new for old, new in zip(x.row, shape[1:], strict=True)]
    row = tuple(old if old != 1 else new for old, new in zip(x.row, sizes, strict=True))
    return _repeated(call, x, x.like(call.op("Expand", x, call.graph.ints([1, *sizes])), row=row))
