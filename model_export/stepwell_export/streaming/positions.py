r"""Values by position: tables of the declared length, read at the number of timesteps that a stream has had.

Before and after:

    positions (20, 4)   x (B, 20, 4)       positions (20, 4)   count
             \         /                            \          /
                Add                   ->            Gather the row of this timestep   x (B, 1, 4)
                 |                                          \                        /
              y (B, 20, 4)                                   Add -> y (B, 1, 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx

from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.dependence import TIME
from stepwell_export.streaming.axes.measured_shapes import MeasuredShapes

if TYPE_CHECKING:
    from stepwell_export.streaming.walk import StreamingWalk


def is_by_position(facts: MeasuredShapes, name: str) -> bool:
    """Whether a tensor that follows from the sizes has one value for each timestep, the same for every length."""
    dims = facts.dims(name)
    timed = [axis for axis, dim in enumerate(dims) if dim.has_time]
    if len(timed) != 1 or dims[timed[0]].elements_per_step != 1 or dims[timed[0]].both or dims[timed[0]].extra:
        return False
    if TIME in facts.depends(name).value:  # as places divided by their number: another table for each length
        return False
    if facts.at_length is None or not isinstance(facts.value(name), np.ndarray):
        return False
    table = _table(facts, name)
    if table is None:
        return False
    axis = timed[0]
    parts = [facts.one_row(value, name) for value in facts.values(name)]
    return all(part is not None and _begins_with(table, part, axis) for part in parts)


def _begins_with(table: Array, part: Array, axis: int) -> bool:
    """Whether a table has these values first, but for rounding: onnxruntime's Cos depends on how many there are."""
    first = table.take(range(part.shape[axis]), axis=axis)
    if table.dtype.kind != "f":
        return np.array_equal(part, first)
    few = 8 * float(np.finfo(table.dtype).eps)
    largest = float(np.abs(table[np.isfinite(table)]).max(initial=0))
    return np.allclose(part, first, rtol=few, atol=few * largest)


def emit_by_position(walk: StreamingWalk, name: str, offset: int, node: onnx.NodeProto | None, *, past: int = 0) -> str:
    """Emit the value of this timestep; after the declared length it is NaN, or the last one of integers.

    Args:
        walk: The walk.
        name: The tensor.
        offset: How many timesteps later the wanted value is; below 0, before the first timestep, the first one.
        node: The node that uses it: where its output has the rows, each row has the value of its own position.
        past: How many timesteps before come with it, on the axis of time.
    """
    table = _table(walk.facts, name)
    axis = walk.facts.time_axis(name)
    assert axis is not None
    assert table is not None
    return emit_table(walk, table, axis, name, node, offset=offset, past=past)


def emit_table(
    walk: StreamingWalk,
    table: Array,
    axis: int,
    name: str,
    node: onnx.NodeProto | None,
    *,
    offset: int = 0,
    past: int = 0,
) -> str:
    """Emit a table's value at this timestep, as `emit_by_position` does.

    Args:
        walk: The walk.
        table: The values of the declared length, with one row.
        axis: Its axis of time.
        name: The tensor that it is the table of.
        node: The node that uses it.
        offset: How many timesteps later the wanted value is.
        past: How many timesteps before come with it.
    """
    graph = walk.graph
    steps = table.shape[axis]
    end = np.full_like(table.take([0], axis), np.nan) if table.dtype.kind == "f" else table.take([-1], axis)
    rows = np.moveaxis(np.concatenate([table, end], axis), axis, 0)
    place = graph.count()
    if past:
        ages = np.arange(offset - past, offset + 1)
        place = graph.op("Add", graph.op("Reshape", place, graph.ints([-1, 1])), graph.ints(ages.tolist()))
        place = graph.op("Max", place, graph.ints([0]))
    elif offset:
        place = graph.op("Max", graph.op("Add", place, graph.ints([offset])), graph.ints([0]))
    place = graph.op("Min", place, graph.ints([steps]))
    entry = graph.op("Gather", graph.constant(rows, what="positions", at=name), place, axis=0)  # (rows or 1, *others)
    own, shape = walk.facts.batch_axis(name), list(table.shape)
    shape[axis] = 1 + past
    if past and axis:  # (rows or 1, timesteps, *others)
        entry = graph.op("Transpose", entry, perm=[0, *range(2, axis + 2), 1, *range(axis + 2, len(shape) + 1)])
    if own is not None:
        return _rows_moved(walk, entry, shape, own)
    out = node.output[0] if node is not None else ""
    place_of_rows = walk.facts.batch_axis(out) if out else None
    if place_of_rows is None:
        return graph.op("Reshape", entry, graph.ints(shape))
    rank = len(walk.facts.dims(out))
    shape = [1] * (rank - len(shape)) + shape
    if place_of_rows >= len(shape) or shape[place_of_rows] != 1:
        raise walk.refuse(
            node or onnx.NodeProto(),
            f"combines {name!r}, which depends on the position in the sequence, with rows in a way without a rule",
            "Add positions to a tensor that has the batch axis in front of the time axis.",
        )
    return _rows_moved(walk, entry, shape, place_of_rows)


def _rows_moved(walk: StreamingWalk, entry: str, shape: list[int], batch: int) -> str:
    """Return values with their rows in front as `shape`, with the rows on axis `batch`."""
    graph = walk.graph
    front = [-1, *(size for axis, size in enumerate(shape) if axis != batch)]
    entry = graph.op("Reshape", entry, graph.ints(front))
    order = [*range(1, batch + 1), 0, *range(batch + 1, len(shape))]
    return entry if order == list(range(len(shape))) else graph.op("Transpose", entry, perm=order)


def _table(facts: MeasuredShapes, name: str) -> Array | None:
    """Return the values of all positions, with one row; None: the rows differ."""
    assert facts.at_length is not None
    return facts.one_row(facts.at_length(name), name)
