"""Rules that look entries up by their places, mask by a value, or make a one at the place of a class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stepwell_export.keras.rule_registry import Call, op_rule, rule, to_array
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array


@op_rule("Take")
def take(call: Call) -> Value:
    """What stands at constant places of an axis; or entries of a constant table by computed places."""
    source, places = call.args[0], call.kwargs.get("indices", call.args[1] if len(call.args) > 1 else None)
    axis = call.layer.axis
    if isinstance(places, Value):
        table = None if isinstance(source, Value) else to_array(source)
        if table is None or axis not in {0, None} or (axis is None and table.ndim != 1):
            raise call.refuse("its places are computed; expected constants, or a constant table looked up along axis 0")
        return _entries(call, table, places, least=-len(table))
    x, index = call.value, to_array(places)
    at = call.axis(x, axis)
    row = (*x.row[: at - 1], *index.shape, *x.row[at:])
    return x.like(call.op("Gather", x, call.constant(index, "int64"), axis=at), row=row)


def _entries(call: Call, table: Array, places: Value, *, least: int) -> Value:
    """Return entries of a table. Of numbers, a place outside it has NaN, so that its row fails alone, not its batch."""
    call.graph.note_vocabulary(places, len(table))
    ids = call.cast(places, "int64")
    row = (*places.row, *table.shape[1:])
    if table.dtype.kind != "f":
        return places.like(call.op("Gather", call.constant(table), ids, axis=0), row=row, dtype=table.dtype.name)
    inside = call.op("Clip", ids, call.constant(least, "int64"), call.constant(len(table) - 1, "int64"))
    found = call.op("Gather", call.constant(table), inside, axis=0)
    known = call.op("Equal", ids, inside)
    if table.ndim > 1:
        known = call.op("Unsqueeze", known, call.graph.ints([-axis for axis in range(1, table.ndim)]))
    return places.like(call.op("Where", known, found, call.constant(np.nan)), row=row, dtype="float32")


@rule("Embedding", masks=True)
def embedding(call: Call) -> Value:
    """A table look-up by ids as they come in, whatever they are cast to; those that are 0 may be masked."""
    layer, x = call.layer, call.value
    y = _entries(call, to_array(layer.embeddings), x, least=0)
    if not layer.mask_zero or None not in x.row:
        return y
    if x.row != (None,):
        raise call.refuse(f"mask_zero=True on row shape {list(x.row)} masks parts of a timestep")
    call.graph.note_mask(x, 0)
    return replace(y, mask=call.op("Not", call.op("Equal", x, call.constant(0, x.dtype))))


@rule("Masking", masks=True)
def masking(call: Call) -> Value:
    """Zeros where no feature differs from a value; up to Keras 3.14 the layer's code calls the backend."""
    x = call.value
    if not x.is_sequence or len(x.row) != 2:
        raise call.refuse(f"it masks timesteps of one feature axis; found row shape {list(x.row)}")
    value = float(to_array(call.layer.mask_value))
    differs = call.op("Not", call.op("Equal", x, call.constant(value, x.dtype)))
    counted = call.op("ReduceMax", call.cast(differs, "int32"), call.graph.ints([2]), keepdims=0)
    mask = call.cast(counted, "bool")
    call.graph.note_mask(x, value)
    wide = call.op("Unsqueeze", mask, call.graph.ints([2]))
    return x.like(call.op("Where", wide, x, call.constant(0, x.dtype)), mask=mask)


@op_rule("OneHot")
def one_hot(call: Call) -> Value:
    """A one at the place of each class, along a new last axis; a class outside the table has none."""
    x, layer = call.value, call.layer
    if layer.axis not in {-1, x.rank} or layer.sparse:
        raise call.refuse(f"axis={layer.axis} is not the last one, or it is sparse; expected axis=-1")
    wide = call.op("Unsqueeze", x, call.graph.ints([-1]))
    hit = call.op("Equal", wide, call.constant(np.arange(layer.num_classes), x.dtype))
    call.graph.note_vocabulary(x, layer.num_classes)
    dtype = "float32" if "float" in (layer.dtype or "float32") else layer.dtype
    return x.like(call.cast(hit, dtype), row=(*x.row, layer.num_classes), dtype=dtype)


@op_rule("Digitize")
def digitize(call: Call) -> Value:
    """The bin that each number falls into."""
    x = call.as_float(call.value)
    below = call.op("Less", call.op("Unsqueeze", x, call.graph.ints([-1])), call.constant(call.weights(1), "float32"))
    passed = call.cast(call.op("Not", below), "int32")
    return x.like(call.op("ReduceSum", passed, call.graph.ints([-1]), keepdims=0), dtype="int32")
