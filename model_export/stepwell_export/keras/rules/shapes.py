"""Rules of `keras.ops` that change shapes or pick parts; the batch stays in front."""

from __future__ import annotations

import math

import keras
import numpy as np

from stepwell_export.keras.graph import TRIAL
from stepwell_export.keras.rule_registry import Call, op_rule, to_array
from stepwell_export.keras.rules.slicing import WINDOW_FIX, picked, sliced
from stepwell_export.keras.value import Value


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
            "Flatten each timestep: TimeDistributed(Flatten()), or the last k of them: x[:, -k:]. Or end the recurrent "
            f"part with return_sequences=False. {WINDOW_FIX}",
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


@op_rule("Split", "ArraySplit")
def split(call: Call) -> list[Value]:
    """Equal or given parts along one feature axis."""
    x, cuts = call.value, call.layer.indices_or_sections
    axis = call.axis(x, call.layer.axis)
    size = call.size(x, axis)
    if isinstance(cuts, int | np.integer):
        sizes = [len(part) for part in np.array_split(np.arange(size), int(cuts))]
    else:
        sizes = np.diff([0, *(range(size)[slice(int(cut))].stop for cut in to_array(cuts)), size]).tolist()
    names = call.graph.split_op("Split", x.name, call.graph.ints(sizes), outputs=len(sizes), at=call.path, axis=axis)
    rows = [tuple(part if i == axis else dim for i, dim in enumerate(x.row, 1)) for part in sizes]
    return [x.like(name, row=row) for name, row in zip(names, rows, strict=True)]


@op_rule("ExpandDims")
def expand_dims(call: Call) -> Value:
    """New axes of length 1."""
    axes = keras.tree.flatten(call.layer.axis)
    places = sorted(axis % (call.value.rank + len(axes)) for axis in axes)
    if places[0] == 0:
        raise call.refuse("it puts a new axis in front, where the batch belongs")
    return call.unsqueezed(call.value, places)


@op_rule("Squeeze")
def squeeze(call: Call) -> Value:
    """Drops axes of length 1."""
    x, axes = call.value, call.layer.axis
    if axes is None:
        raise call.refuse("it drops every axis of length 1, which may be batch or time", "Name the axis.")
    return call.squeezed(x, sorted({call.axis(x, axis) for axis in keras.tree.flatten(axes)}))


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
    if counts.size == 1 and counts == 1:
        return x.like(x.name)
    if x.row[axis - 1] is None:
        raise call.refuse(
            "it repeats timesteps, along the time axis",
            "A stream has one answer for each timestep: repeat each once, and features as often as you like.",
        )
    if x.row[axis - 1] == 1 and counts.size == 1:
        sizes = [int(counts.item()) if place == axis else 1 for place in range(x.rank)]
        row = (*x.row[: axis - 1], sizes[axis], *x.row[axis:])
        return _repeated(call, x, x.like(call.op("Expand", x, call.graph.ints(sizes)), row=row))
    order = np.repeat(np.arange(call.size(x, axis)), counts if counts.ndim and counts.size > 1 else counts.item())
    return picked(call, x, axis, order.tolist())


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


@op_rule("Resize")
def resize(call: Call) -> Value:
    """Rows and columns, the first of which may be timesteps, interpolated between."""
    x, layer = call.as_float(call.value), call.layer
    expected = {
        "interpolation": "bilinear", "data_format": "channels_last",
        "antialias": False, "crop_to_aspect_ratio": False, "pad_to_aspect_ratio": False,
    }  # fmt: skip
    for setting, value in expected.items():
        if (found := getattr(layer, setting)) != value:
            raise call.refuse(f"it resizes with {setting}={found!r}; expected {value!r}")
    row = (*(old if old is None else new for old, new in zip(x.row, layer.size, strict=False)), x.row[-1])
    if x.is_sequence and layer.size[0] not in {call.graph.length, TRIAL}:
        raise call.refuse(f"size={layer.size} changes the number of timesteps")
    shape = [
        call.op("Shape", x, start=i, end=i + 1) if n is None else call.graph.ints([n])
        for i, n in enumerate((None, *row))
    ]
    sizes = call.op("Concat", *shape, axis=0)
    y = call.op("Resize", x.name, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")
    return x.like(y, row=row)
