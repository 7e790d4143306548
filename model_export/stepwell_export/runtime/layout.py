"""Where a tensor's axes are in the graph, and where in the arrays that `StepModel` takes and gives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.runtime.manifest import Array


class TensorLayout(NamedTuple):
    """A tensor of the graph.

    Attributes:
        name: Its name.
        row: One row outside the graph.
        graph_row: One row in the graph, without batch axis.
        batch_axis: Where the graph has its batch axis; None: it has none.
    """

    name: str
    row: tuple[int, ...]
    graph_row: tuple[int, ...]
    batch_axis: int | None

    def with_time(self) -> TensorLayout:
        """Return the same place with a time axis of length 1 right behind the batch axis."""
        at = self.batch_axis or 0
        return self._replace(graph_row=(*self.graph_row[:at], 1, *self.graph_row[at:]))


def to_graph(rows: Array, graph_row: tuple[int, ...], batch_axis: int | None) -> Array:
    """Bring `(rows, ...)` to the graph's shape: reshape the row, put the batch axis where the graph has it."""
    if batch_axis is None:
        return rows.reshape(graph_row)
    if rows.shape[1:] != graph_row:
        rows = rows.reshape(len(rows), *graph_row)
    return rows if batch_axis == 0 else np.ascontiguousarray(np.moveaxis(rows, 0, batch_axis))


def from_graph(value: Array, place: TensorLayout, rows: int) -> Array:
    """Bring a tensor of the graph to `(rows, *row)`.

    Raises:
        ModelLoadError: It has another number of elements.
    """
    if place.batch_axis is not None and 0 < place.batch_axis < value.ndim:
        value = np.moveaxis(value, place.batch_axis, 0)
    if value.shape == (rows, *place.row):
        return value
    try:
        return value.reshape(rows, *place.row)
    except ValueError as exc:
        raise ModelLoadError(
            f"The graph gave a tensor of shape {list(value.shape)} for {place.name!r}; "
            f"expected {rows} rows of {list(place.row)}.",
            fix="Mend the shape in the manifest, or adopt the model again.",
        ) from exc


def chunk_to_graph(rows: Array, place: TensorLayout) -> Array:
    """Bring `(rows, T, *row)` to the shape of a graph that has its time axis right behind the batch axis."""
    count, steps = rows.shape[:2]
    rows = rows.reshape(count, steps, *place.graph_row)
    if place.batch_axis is None:
        return rows.reshape(steps, *place.graph_row)
    if place.batch_axis == 0:
        return np.ascontiguousarray(rows)
    return np.ascontiguousarray(np.moveaxis(rows, (0, 1), (place.batch_axis, place.batch_axis + 1)))


def chunk_from_graph(value: Array, place: TensorLayout, rows: int, steps: int) -> Array:
    """Bring a tensor of such a graph to `(rows, T, *row)`."""
    at = place.batch_axis
    if at is not None and 0 < at < value.ndim - 1:
        value = np.moveaxis(value, (at, at + 1), (0, 1))
    if value.shape == (rows, steps, *place.row):
        return value
    return from_graph(value, place._replace(row=(steps, *place.row), batch_axis=None), rows)
