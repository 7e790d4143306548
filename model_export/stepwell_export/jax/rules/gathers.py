"""Look-ups: entries of tables, single places of axes, blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepwell_export.jax.graph import JaxGraph, function_rule, rule
from stepwell_export.jax.rules.shapes import cut
from stepwell_export.jax.values import Dim, JaxValue, from_end, same
from stepwell_export.runtime.manifest import Array


@rule("gather")
def _gather(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> Any:
    x, indices = inputs
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes = [int(axis) for axis in numbers.start_index_map]
    if numbers.operand_batching_dims:
        return _of_each_row(graph, equation, x, indices)
    whole = all(same(n, x.shape[axis]) for axis, n in enumerate(sizes) if axis not in axes)
    if len(axes) == 1 and [int(axis) for axis in numbers.collapsed_slice_dims] == axes and whole:
        return _along_an_axis(graph, equation, x, indices, axes[0])
    return _block(graph, equation, x, indices)


def _along_an_axis(graph: JaxGraph, equation: Any, x: JaxValue, indices: JaxValue, axis: int) -> str:
    """Emit a Gather; its indices' axes come where the axis was, and are moved to where JAX has them."""
    aval, numbers = equation.outvars[0].aval, equation.params["dimension_numbers"]
    places = [n for n in range(len(aval.shape)) if n not in numbers.offset_dims]
    made = graph.op("Gather", graph.whole(x), _places(graph, indices, x.shape[axis]), axis=axis)
    now = [n for n in range(len(aval.shape)) if n not in places]
    now[axis:axis] = places  # what each axis of the Gather is in the result
    if now != sorted(now):
        made = graph.op("Transpose", made, perm=[now.index(n) for n in range(len(now))])
    if not str(equation.params["mode"]).endswith("FILL_OR_DROP") or _is_inside(indices, x.shape[axis]):
        return made
    return _or_fill(graph, equation, made, indices, x.shape[axis])


def _is_inside(indices: JaxValue, size: Dim) -> bool:
    if indices.known is None:
        return False
    return all(
        isinstance(from_end(n, size), int) or not isinstance(size, int) for n in indices.known.reshape(-1).tolist()
    )


def _places(graph: JaxGraph, indices: JaxValue, size: Dim) -> str:
    """Return indices without their last axis, which has length 1, and within the axis that they are of."""
    shape = indices.shape[:-1]
    if indices.known is not None:
        found: Array = np.asarray(indices.known)[..., 0]
        if indices.is_sizes and found.size == 1:
            found = np.asarray(from_end(found.reshape(()).item(), size))
        if found.dtype != object and all(isinstance(n, int) for n in shape):
            return graph.constant(np.broadcast_to(found.astype(np.int64), shape), "int64")
    made = graph.op("Squeeze", graph.whole(indices), graph.ints([len(shape)]))
    made = made if indices.dtype == "int64" else graph.cast(made, "int64")
    last = graph.constant(size - 1, "int64") if isinstance(size, int) else graph.size(size - 1)
    return graph.op("Min", graph.op("Max", made, graph.constant(0, "int64")), last)


def _or_fill(graph: JaxGraph, equation: Any, made: str, indices: JaxValue, size: Dim) -> str:
    """Return what JAX fills in where an index lies outside: NaN, or the smallest integer."""
    aval, dtype = equation.outvars[0].aval, np.dtype(equation.outvars[0].aval.dtype)
    fill = equation.params["fill_value"]
    if fill is None:
        fill = {"f": np.nan, "i": dtype.kind == "i" and np.iinfo(dtype).min, "b": True}.get(dtype.kind, 0)
    place = graph.op("Squeeze", graph.whole(indices), graph.ints([len(indices.shape) - 1]))
    place = place if indices.dtype == "int64" else graph.cast(place, "int64")
    low = graph.op("GreaterOrEqual", place, graph.constant(0, "int64"))
    inside = graph.op("And", low, graph.op("Less", place, graph.size(size)))
    others = [int(axis) for axis in equation.params["dimension_numbers"].offset_dims]
    inside = graph.op("Unsqueeze", inside, graph.ints(others)) if others else inside
    return graph.op("Where", inside, made, graph.constant(fill, str(aval.dtype)))


def _block(graph: JaxGraph, equation: Any, x: JaxValue, indices: JaxValue) -> str:
    """Cut one block at a known place."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    if indices.known is None or indices.known.size != len(numbers.start_index_map):
        raise graph.refuse(equation, "takes blocks at computed places", "Use jnp.take along one axis.")
    found = dict(zip(map(int, numbers.start_index_map), indices.known.reshape(-1).tolist(), strict=True))
    starts = [found.get(axis, 0) for axis in range(len(sizes))]
    made = cut(graph, x, starts, [start + n for start, n in zip(starts, sizes, strict=True)])
    tensor = made if isinstance(made, str) else graph.whole(made)
    gone = [int(axis) for axis in numbers.collapsed_slice_dims]
    return graph.op("Squeeze", tensor, graph.ints(gone)) if gone else tensor


def _of_each_row(graph: JaxGraph, equation: Any, x: JaxValue, indices: JaxValue) -> str:
    """Emit a GatherElements: an entry of each row, with all axes but one in common."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    common = [int(axis) for axis in numbers.operand_batching_dims]
    axis = int(numbers.start_index_map[0]) if len(numbers.start_index_map) == 1 else -1
    aligned = list(numbers.start_indices_batching_dims) == common == [n for n in range(len(x.shape)) if n != axis]
    if not aligned or any(not same(n, 1) for n in sizes) or axis != len(x.shape) - 1:
        raise graph.refuse(equation, "takes entries of each row", "Use jnp.take_along_axis along the last axis.")
    made = graph.op("Squeeze", graph.whole(indices), graph.ints([len(indices.shape) - 1]))
    if len(indices.shape) - 1 == len(common):
        made = graph.op("Unsqueeze", made, graph.ints([axis]))
    found = graph.op("GatherElements", graph.whole(x), graph.cast(made, "int64"), axis=axis)
    return (
        found if len(equation.outvars[0].aval.shape) == len(x.shape) else graph.op("Squeeze", found, graph.ints([axis]))
    )


@rule("dynamic_slice")
def _dynamic_slice(graph: JaxGraph, equation: Any, inputs: list[JaxValue]) -> Any:
    x, *places = inputs
    sizes = equation.params["slice_sizes"]
    starts: list[Dim] = []
    for axis, (place, n) in enumerate(zip(places, sizes, strict=True)):
        if not same(n, x.shape[axis]) and place.known is None:
            raise graph.refuse(equation, "cuts at a computed place", "Use jnp.take along one axis.")
        starts.append(0 if same(n, x.shape[axis]) else place.known.reshape(()).item())  # type: ignore[union-attr]
    return cut(graph, x, starts, [start + n for start, n in zip(starts, sizes, strict=True)])


@function_rule("_take")
def _take(graph: JaxGraph, jaxpr: Any, inputs: list[JaxValue]) -> JaxValue | None:
    """Emit a look-up of ids in the rows of a constant table; others are left to the primitives."""
    gather = next((equation for equation in jaxpr.eqns if equation.primitive.name == "gather"), None)
    if len(inputs) != 2 or gather is None or inputs[0].known is None or inputs[0].is_sizes or inputs[1].is_known:
        return None
    table, ids = inputs
    numbers, filled = gather.params["dimension_numbers"], str(gather.params["mode"]).endswith("FILL_OR_DROP")
    is_along_rows = numbers.collapsed_slice_dims == (0,) == numbers.start_index_map and not table.ones
    if table.dtype != "float32" or not filled or not is_along_rows or "int" not in ids.dtype:
        return None
    return looked_up(graph, np.asarray(table.known), ids, least=-len(table.known))  # type: ignore[arg-type]


def looked_up(graph: JaxGraph, table: Array, ids: JaxValue, *, least: int) -> JaxValue:
    """Return entries of a table, NaN for an id below the least one, or above the last: so its row fails alone."""
    given = graph.whole(ids)
    wide = given if ids.dtype == "int64" else graph.cast(given, "int64")
    inside = graph.op("Clip", wide, graph.constant(least, "int64"), graph.constant(len(table) - 1, "int64"))
    found = graph.op("Gather", graph.constant(table), inside, axis=0)
    known = graph.op("Equal", wide, inside)
    if table.ndim > 1:
        known = graph.op("Unsqueeze", known, graph.ints([-axis for axis in range(1, table.ndim)]))
    nan = graph.constant(np.nan, "float32")
    return JaxValue((*ids.shape, *table.shape[1:]), "float32", graph.op("Where", known, found, nan))
