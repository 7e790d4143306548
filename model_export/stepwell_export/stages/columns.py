"""Stages that choose or encode the numbers of a row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stepwell_export.runtime.errors import ManifestError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.stage import Row, Stage, count

if TYPE_CHECKING:
    from stepwell_export.graph.builder import GraphBuilder


@dataclass(frozen=True, eq=False)
class Select(Stage):
    """Some numbers of a row, in this order.

    Attributes:
        columns: Their places from 0, or their names.
        width: How many numbers the row has, or the names of all of them.
    """

    columns: Sequence[Any] = ()
    width: Any = 0

    keeps_missing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: There is no such column, or none is chosen.
        """
        names = self._names()
        size = self._size()
        for column in self.columns:
            is_known = column in names if isinstance(column, str) else column in range(size)
            if not is_known:
                raise ManifestError(
                    f"Select has no column {column!r}; the row has {names or size}.",
                    fix="Name columns of `width`, or give places from 0.",
                )
        if not len(self.columns) or isinstance(self.columns, str):
            raise ManifestError(
                f"`columns` is {self.columns!r}; expected a list with at least one column.", fix="Give `columns=[0]`."
            )
        if names and not self.labels:
            object.__setattr__(self, "labels", tuple(names))

    def _names(self) -> list[str]:
        is_list = isinstance(self.width, Collection) and not isinstance(self.width, str | bytes)
        return [str(name) for name in self.width] if is_list else []

    def _size(self) -> int:
        return len(self._names()) or count("width", self.width)

    def _places(self) -> list[int]:
        names = self._names()
        return [names.index(column) if isinstance(column, str) else int(column) for column in self.columns]

    def row_before(self, row: Row) -> Row:
        if row[-1:] != (len(self.columns),):
            raise UnclearModelError(
                f"Select returns {len(self.columns)} numbers; a row there has shape {list(row)}.",
                fix="Select as many columns as the model takes.",
            )
        return (*row[:-1], self._size())

    def row_after(self, row: Row) -> Row:
        if row[-1:] != (self._size(),):
            raise UnclearModelError(
                f"Select takes {self._size()} numbers; a row there has shape {list(row)}.",
                fix="Set `width` to the numbers of that row.",
            )
        return (*row[:-1], len(self.columns))

    def labels_after(self, labels: Sequence[str]) -> list[str]:
        return [labels[place] for place in self._places()] if labels else []

    def reference(self, values: Array) -> Array:
        return values[..., self._places()]

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        return graph.op("Gather", x, graph.ints(self._places()), axis=len(row))

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        whole = rng.standard_normal((*values.shape[:-1], self._size()))
        whole[..., self._places()] = values
        return whole


@dataclass(frozen=True, eq=False)
class OneHot(Stage):
    """An index as a vector with one 1; all zeros if it is not in the range.

    Attributes:
        classes: The length of the vector.
    """

    classes: int = 2

    takes: ClassVar[str] = "int64"

    def __post_init__(self) -> None:
        """Check the parameter.

        Raises:
            ManifestError: It is no whole number of at least 2.
        """
        count("classes", self.classes, 2)

    def row_before(self, row: Row) -> Row:
        if row[-1:] != (self.classes,):
            raise UnclearModelError(
                f"OneHot returns {self.classes} numbers; a row there has shape {list(row)}.",
                fix=f"Set `classes` to {row[-1] if row else 'the size of a row'}.",
            )
        return row[:-1]

    def row_after(self, row: Row) -> Row:
        return (*row, self.classes)

    def labels_after(self, labels: Sequence[str]) -> list[str]:
        return []

    def reference(self, values: Array) -> Array:
        return np.asarray(values[..., None] == np.arange(self.classes), np.float64)

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        places = graph.constant(np.arange(self.classes), "int64")
        column = graph.op("Unsqueeze", x, graph.ints([len(row) + 1]))
        return graph.cast(graph.op("Equal", column, places), "float64")

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return rng.integers(-1, self.classes + 1, values.shape[:-1])
