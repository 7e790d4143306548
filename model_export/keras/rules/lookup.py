"""Rules of `keras.ops` that look entries up by their places, or make a one at the place of a class."""

from __future__ import annotations

from typing import Any

import numpy as np

from model_export.keras.registry import Call, op_rule, to_array
from model_export.keras.value import Value


@op_rule("Take")
def take(call: Call) -> Value:
    """Features, or the last timestep, by constant places; or entries of a constant table by computed places."""
    source, places = call.args[0], call.kwargs.get("indices", call.args[1] if len(call.args) > 1 else None)
    axis = call.layer.axis
    if isinstance(places, Value):
        return _look_up(call, source, places, axis)
    x, index = call.value, to_array(places)
    if axis is None:
        raise call.refuse("it flattens batch and time", "Name a feature axis.")
    if x.time and axis % x.rank == 1 and index.size == 1 and int(index.item()) == -1:
        row = (1, *x.row) if index.ndim else x.row
        return x.like(call.graph.reshape(x.name, row, at=call.path), row=row, time=False)
    at = call.axis(x, axis)
    row = (*x.row[: at - 1], *index.shape, *x.row[at:])
    index = np.where(index < 0, index + x.row[at - 1], index)
    return x.like(call.op("Gather", x, call.constant(index, "int64"), axis=at), row=row)


def _look_up(call: Call, table: Any, places: Value, axis: int | None) -> Value:
    if isinstance(table, Value) or axis not in {0, None} or (axis is None and to_array(table).ndim != 1):
        raise call.refuse("its places are computed; expected constants, or a constant table looked up along axis 0")
    array = to_array(table)
    index = call.graph.cast(places.name, "int64", at=call.path)
    dtype = "float32" if array.dtype.kind == "f" else array.dtype.name
    name = call.op("Gather", call.constant(array, dtype), index, axis=0)
    call.walk.note_vocabulary(places, len(array))
    return places.like(name, row=(*places.row, *array.shape[1:]), dtype=dtype)


@op_rule("OneHot")
def one_hot(call: Call) -> Value:
    """A one at the place of each class, along a new last axis."""
    x, layer = call.value, call.layer
    if layer.axis not in {-1, x.rank} or layer.sparse:
        raise call.refuse(f"axis={layer.axis} is not the last one, or it is sparse; expected axis=-1")
    wide = call.op("Unsqueeze", call.graph.cast(x.name, "int64", at=call.path), call.graph.ints([-1]))
    hit = call.op("Equal", wide, call.graph.ints(range(layer.num_classes)))
    call.walk.note_vocabulary(x, layer.num_classes)
    dtype = "float32" if "float" in (layer.dtype or "float32") else layer.dtype
    return x.like(call.graph.cast(hit, dtype, at=call.path), row=(*x.row, layer.num_classes), dtype=dtype)
