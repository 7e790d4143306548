"""Tensors with a number for every timestep against every other: which of their axes are which, row by row of masks."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.known_values import emit_by_position, emit_table, shape_at_one_step, shape_to_reshape
from stepwell_export.streaming.rules.reductions import read_axes
from stepwell_export.streaming.walk import StreamingWalk

CAUSAL_FIX = "Give it a mask that lets a fixed number of past timesteps through, and train it that way."
SHAPED = {"Reshape", "Expand"}
"""Operators whose second input is the shape of their output."""
_IN_ORDER = {"Reshape", "Squeeze", "Unsqueeze"}


@dataclass(frozen=True, slots=True)
class Square:
    """What a node takes and gives of a tensor of every timestep against every other.

    Attributes:
        window: How many timesteps are looked at, the present one included.
        front: How many of them stand before the first timestep of the sequence.
        keys: The axis of the node's output for the timesteps that are looked at; None: they are summed up.
        queries: The axis of the timesteps that look; None: it is the end of the sequence that looks.
        refused_as_answer: Why it is refused where it is new and not masked later.
    """

    window: int
    front: int
    keys: int | None
    queries: int | None
    refused_as_answer: RefusedModelError | None = None


def time_axes(walk: StreamingWalk, name: str) -> list[int]:
    """Return the axes of a tensor that carry time."""
    return [axis for axis, dim in enumerate(walk.facts.dims(name)) if dim.has_time]


def is_table(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has a number for every pair of timesteps, by its sizes alone."""
    return name in walk.from_sizes and len(time_axes(walk, name)) == 2


def axis_in_output(walk: StreamingWalk, node: onnx.NodeProto, place: int, axis: int) -> int | None:
    """Return the axis of a node's output that an axis of time of its input becomes; None: it is summed over."""
    name, out = node.input[place], node.output[0]
    rank, rank_out = len(walk.facts.dims(name)), len(walk.facts.dims(out))
    attrs = attributes(node)
    if node.op_type == "Transpose":
        order = attrs.get("perm") or list(range(rank))[::-1]
        return int(list(order).index(axis))
    if node.op_type == "Einsum":
        terms, result = attrs["equation"].replace(" ", "").split("->")
        index = result.find(terms.split(",")[place][axis])
        return None if index < 0 else int(index)
    if node.op_type == "MatMul" and axis == rank - 1 - place:
        return None
    if node.op_type.startswith("Reduce"):
        reduced = read_axes(walk, node)
        if axis in reduced:
            return None
        return axis if attrs.get("keepdims", 1) else axis - sum(other < axis for other in reduced)
    if node.op_type in _IN_ORDER:
        return time_axes(walk, out)[time_axes(walk, name).index(axis)]
    return rank_out - rank + axis


def operands(walk: StreamingWalk, node: onnx.NodeProto, square: Square) -> dict[str, str]:
    """Return the tensors of the step graph that a node takes, by place as `StreamingWalk.emit_like` has them."""
    given = range(1 if node.op_type in SHAPED else len(node.input))
    emitted = {f"i{place}": _operand(walk, node, place, square) for place in given if node.input[place]}
    if node.op_type in SHAPED:
        dims = list(walk.facts.dims(node.output[0]))
        if square.keys is not None:
            dims[square.keys] = Dim(Fraction(square.window))
        emitted["i1"] = (shape_to_reshape if node.op_type == "Reshape" else shape_at_one_step)(walk.graph, dims)
    return emitted


def _operand(walk: StreamingWalk, node: onnx.NodeProto, place: int, square: Square) -> str:
    """Return what a node takes at one place: its window where it is looked at, this timestep where it looks."""
    name = node.input[place]
    tensor, times = walk.tensors[name], time_axes(walk, name)
    if is_table(walk, name):
        return _row_of_table(walk, node, place, square)
    walk.need(name)
    if not times and (tensor.kind != "at_end" or square.queries is None):
        return walk.operand(name, 0, node)
    become = {axis: axis_in_output(walk, node, place, axis) for axis in times}
    if tensor.kind == "pairwise":
        same = (tensor.window, tensor.offset) == (square.window, square.front)
        if same and tensor.keys is not None and become[tensor.keys] == square.keys:
            return tensor.step
    elif len(times) == 1 and become[times[0]] == square.keys:
        if tensor.kind == "constant" and square.keys is not None:
            return walk.operand(name, 0, node)
        if tensor.kind == "by_position":
            return emit_by_position(walk, name, 0, node, past=square.window - 1)
        if tensor.kind == "per_step" and tensor.offset == square.front:
            return walk.window(name, square.window - 1)
        if tensor.kind == "per_step" and tensor.offset is None and square.keys is not None:
            return tensor.step
        raise walk.refuse(node, "attends over a sequence that was shifted in time", CAUSAL_FIX)
    elif len(times) == 1 and become[times[0]] == square.queries is not None:
        if tensor.offset:
            raise walk.refuse(node, "attends over a sequence that was shifted in time", CAUSAL_FIX)
        if tensor.kind != "at_end":
            return walk.operand(name, 0, node)
    raise without_rule(walk, node)


def without_rule(walk: StreamingWalk, node: onnx.NodeProto) -> RefusedModelError:
    """Return the error for a node that is no part of attention that is known here."""
    return walk.refuse(node, "compares every timestep with every other in a way without a rule", CAUSAL_FIX)


# ---------------------------------------------------------------- masks, which follow from the sizes alone


def _row_of_table(walk: StreamingWalk, node: onnx.NodeProto, place: int, square: Square) -> str:
    """Return a table's row for one timestep: its window, or that of its position where rows differ."""
    name, size = node.input[place], square.window
    become = {axis_in_output(walk, node, place, axis): axis for axis in time_axes(walk, name)}
    if become.keys() != {square.keys, square.queries} or None in become:
        raise without_rule(walk, node)
    axes = become[square.queries], become[square.keys]
    whole = [] if walk.facts.at_length is None else [walk.facts.at_length(name)]
    tables = [walk.facts.one_row(value, name) for value in (*whole, *walk.facts.values(name))]
    squares = [None if table is None else np.moveaxis(table, axes, (-2, -1)) for table in tables]
    bands = [None if table is None else _band(table, size, square.front) for table in squares]
    first = bands[0]
    if first is not None and all(
        band is not None and np.array_equal(band, first[..., -band.shape[-1] :]) for band in bands
    ):
        return walk.graph.constant(np.moveaxis(first, (-2, -1), axes))
    longest = squares[0]
    if longest is None or not whole or any(table is None or not _begins(longest, table) for table in squares):
        raise walk.refuse(node, f"uses {name!r}, which depends on the position in the sequence", CAUSAL_FIX)
    rows = np.moveaxis(_windows(longest, size, square.front), (-2, -1), axes)
    return emit_table(walk, rows, axes[0], name, node)


def _band(table: Array, size: int, front: int) -> Array | None:
    """Return the window of a table's last row, or as much of it as there is; None where another row has another."""
    steps = table.shape[-2]
    size = min(size, steps + front)
    last = np.ascontiguousarray(table[..., -1:, steps + front - size : steps + front])
    for step in range(steps):
        end = step + front + 1
        there = min(size, end)
        if not np.array_equal(table[..., step : step + 1, end - there : end], last[..., size - there :]):
            return None
    return last


def _begins(longest: Array, table: Array) -> bool:
    """Whether a table of fewer timesteps is the beginning of one of more."""
    return np.array_equal(longest[..., : table.shape[-2], : table.shape[-1]], table)


def _windows(table: Array, size: int, front: int) -> Array:
    """Return the windows of all rows of a table; what stands before its first column counts for nothing."""
    steps = table.shape[-2]
    columns = np.arange(steps)[:, None] + front + np.arange(1 - size, 1)
    windows: Array = table[..., np.arange(steps)[:, None], np.maximum(columns, 0)]
    return windows
