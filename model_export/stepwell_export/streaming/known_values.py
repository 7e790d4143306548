r"""Emits what follows from the weights, the sizes and the position in the stream: shapes, zeros, tables by position.

Before and after:

    positions (20, 4)   x (B, 20, 4)       positions (20, 4)   count
             \         /                            \          /
                Add                   ->            Gather the row of this timestep   x (B, 1, 4)
                 |                                          \                        /
              y (B, 20, 4)                                   Add -> y (B, 1, 4)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.dependence import BATCH, SIZES, TIME
from stepwell_export.streaming.axes.measured_shapes import Dim, MeasuredShapes
from stepwell_export.streaming.step_graph import StreamingGraph

if TYPE_CHECKING:
    from stepwell_export.streaming.walk import StreamingWalk


def emit_known(graph: StreamingGraph, facts: MeasuredShapes, name: str, user: str) -> str:
    """Emit a tensor that follows from weights and sizes, as it is for one timestep; return its name.

    Raises:
        RefusedModelError: It depends on the number of timesteps or rows, and is no integer that grows evenly.
    """
    parts, dims = facts.values(name), facts.dims(name)
    if isinstance(parts[0], list):
        return _sequence(graph, parts[0])
    depends = facts.depends(name)
    by_size = bool(depends.value & SIZES) and (parts[0].dtype.kind not in "iu" or not depends.is_even)
    if BATCH in depends.varies and any(dim.has_batch for dim in dims):
        raise RefusedModelError(
            f"{user} {name!r}, which differs from row to row by their number alone.",
            fix="A row is a stream, which has no place among others: send such values as an input.",
        )
    for axis, dim in enumerate(dims):
        if dim.has_time or dim.has_batch:
            fixed, per_row = dim.at_one_step()
            parts = [np.take(part, range(fixed or per_row), axis=axis) for part in parts]
    is_equal = all(np.array_equal(part, parts[0], equal_nan=part.dtype.kind == "f") for part in parts[1:])
    if is_equal and not by_size:
        value = graph.constant(parts[0], at=name)
    elif parts[0].dtype.kind in "iu" and not by_size:
        fixed_part, row_part, _ = facts.affine(parts)
        value = graph.constant(fixed_part.astype(parts[0].dtype), at=name)
        if row_part.any():
            grown = graph.op("Mul", graph.rows(), graph.ints(row_part.reshape(-1)))
            shaped = graph.op("Reshape", grown, graph.ints(row_part.shape))
            value = graph.op("Add", value, shaped)
    else:
        raise RefusedModelError(
            f"{user} {name!r}, which depends on the number of timesteps or rows.",
            fix="A stream has no end: take out what divides by the length, or averages over it.",
        )
    return _expanded(graph, value, dims)


def _sequence(graph: StreamingGraph, parts: list[Any]) -> str:
    if not parts:
        return graph.op("SequenceEmpty")
    return graph.op("SequenceConstruct", *(graph.constant(part) for part in parts))


def _expanded(graph: StreamingGraph, value: str, dims: Sequence[Dim]) -> str:
    """Repeat one row of a known tensor for all rows."""
    sizes = [dim.at_one_step() for dim in dims]
    if not any(per_row for _, per_row in sizes):
        return value
    return graph.op("Expand", value, shape_at_one_step(graph, dims))


def reshaped(graph: StreamingGraph, tensor: str, dims: Sequence[Dim]) -> str:
    """Return a tensor of the step graph in the shape that these axes have at one timestep."""
    return graph.op("Reshape", tensor, shape_to_reshape(graph, dims))


def shape_to_reshape(graph: StreamingGraph, dims: Sequence[Dim]) -> str:
    """Return the shape to give a tensor at one timestep, without counting the rows where that can be left out."""
    sizes = [dim.at_one_step() for dim in dims]
    if sum(rows > 0 for _, rows in sizes) == 1:
        return graph.ints([-1 if rows else fixed for fixed, rows in sizes])
    return shape_at_one_step(graph, dims)


def shape_at_one_step(graph: StreamingGraph, dims: Sequence[Dim]) -> str:
    """Return the shape that a tensor has at one timestep, as a tensor."""
    sizes = [dim.at_one_step() for dim in dims]
    fixed = graph.ints([fixed for fixed, _ in sizes])
    if not any(per_row for _, per_row in sizes):
        return fixed
    grown = graph.op("Mul", graph.rows(), graph.ints([per_row for _, per_row in sizes]))
    return graph.op("Add", fixed, grown)


def initial_row(walk: StreamingWalk, name: str, node: onnx.NodeProto) -> Array:
    """Return the initial row of a recurrence's state.

    Raises:
        RefusedModelError: It is not the same for all rows and lengths.
    """
    parts = [walk.facts.one_row(part, name) for part in walk.facts.values(name)]
    start, depends = parts[0], walk.facts.depends(name)
    differs = depends.value & SIZES or BATCH in depends.varies
    if differs or any(part is None or not np.array_equal(part, np.asarray(start)) for part in parts):
        raise walk.refuse(node, f"starts from {name!r}, which differs from row to row or with the length")
    assert start is not None
    return start


def history(walk: StreamingWalk, name: str, offset: int, past: int, fill: float) -> Array | None:
    """Return what a tensor has before the first timestep, in its layout with one row; None: zeros.

    Args:
        walk: The walk.
        name: The tensor.
        offset: Which of its elements belongs to the first timestep.
        past: How many timesteps before that one.
        fill: The value before its first element.

    Raises:
        RefusedModelError: It depends on the input.
    """
    if offset <= 0 and not fill:
        return None
    axis, each = walk.facts.time_axis(name), walk.facts.samples(name)
    known = walk.before_start(name, (offset - past) * each, past * each, made_of=[name])
    if known is None:
        raise RefusedModelError(
            f"What stands before the first timestep of tensor {name!r} depends on the input.",
            fix="Pad with a constant.",
        )
    if fill and offset < past:
        assert axis is not None
        place = [slice(None)] * known.ndim
        place[axis] = slice(0, (past - max(offset, 0)) * each)
        known[tuple(place)] = fill
    return known


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
    if part.shape[axis] > table.shape[axis]:
        return False
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
