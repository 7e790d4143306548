"""Emits what follows from the weights and the sizes of a sequence graph: shapes, zeros, folded weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.dependence import BATCH, SIZES
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


def initial_row(walk: StreamingWalk, name: str, node: onnx.NodeProto) -> Array | None:
    """Return the initial row of a recurrence's state; None: zeros.

    Raises:
        RefusedModelError: It is not the same for all rows and lengths.
    """
    if not name:
        return None
    parts = [walk.facts.one_row(part, name) for part in walk.facts.values(name)]
    start, depends = parts[0], walk.facts.depends(name)
    differs = depends.value & SIZES or BATCH in depends.varies
    if differs or any(part is None or not np.array_equal(part, np.asarray(start)) for part in parts):
        raise walk.refuse(node, f"starts from {name!r}, which differs from row to row or with the length")
    assert start is not None
    return start


def history(facts: MeasuredShapes, name: str, offset: int, past: int, fill: float) -> Array | None:
    """Return what a tensor has before the first timestep, in its layout with one row; None: zeros.

    Args:
        facts: What the runs show.
        name: The tensor.
        offset: Which of its elements belongs to the first timestep.
        past: How many timesteps before that one.
        fill: The value before its first element.

    Raises:
        RefusedModelError: It depends on the input.
    """
    if offset <= 0 and not fill:
        return None
    axis, each = facts.time_axis(name), facts.samples(name)
    known = facts.before_start(name, (offset - past) * each, past * each)
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
