"""Stages that put values together: `Multiply`, `Add`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stepwell_export.runtime.errors import UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.stage import ManyValued, Row

if TYPE_CHECKING:
    from stepwell_export.graph.builder import GraphBuilder


@dataclass(frozen=True, eq=False)
class _Arithmetic(ManyValued):
    """A stage that reads two or more values.

    Rows have one shape; or one is the beginning of the largest one's shape and is repeated, as a mask `(257,)` is for
    pairs `(257, 2)`; or one has a single number.
    """

    computes: ClassVar[str] = "float32"
    operator: ClassVar[str]
    """The ONNX operator."""

    @staticmethod
    @abstractmethod
    def apply(one: Array, two: Array) -> Array:
        """Return the result for two arrays."""

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        if len(rows) < 2:
            raise UnclearModelError(
                f"{self.title} reads one value; expected two or more.",
                fix=f"Name them: `{self.title}(of=('magnitude', 'mask'))`.",
            )
        largest = max(rows, key=lambda row: (prod(row), len(row)))
        for row in rows:
            if prod(row) != 1 and row != largest[: len(row)]:
                raise UnclearModelError(
                    f"{self.title} reads rows {list(row)} and {list(largest)}; expected one shape, its beginning, or a "
                    "single number.",
                    fix="Give values whose rows fit.",
                )
        return [largest]

    def references(self, values: Sequence[Array]) -> list[Array]:
        largest = self.rows_after([value.shape[2:] for value in values])[0]
        shaped = [value.reshape(*value.shape[:2], *_spread(value.shape[2:], largest)) for value in values]
        return [np.asarray(reduce(self.apply, shaped))]

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        largest = self.rows_after(rows)[0]
        spread = [_spread(row, largest) for row in rows]
        shaped = [x if row == to else graph.reshape(x, to) for x, row, to in zip(xs, rows, spread, strict=True)]
        return [reduce(lambda one, two: graph.op(self.operator, one, two), shaped)]

    def labels_after(self, labels: Sequence[str]) -> list[str]:
        del labels
        return []


def _spread(row: Row, largest: Row) -> Row:
    """Return the shape in which a row is repeated over the largest one."""
    if prod(row) == 1:
        return (1,) * len(largest)
    return (*row, *(1,) * (len(largest) - len(row)))


@dataclass(frozen=True, eq=False)
class Multiply(_Arithmetic):
    """The product of two or more values; its value is called `product`."""

    operator: ClassVar[str] = "Mul"
    gives: ClassVar[tuple[str, ...]] = ("product",)

    @staticmethod
    def apply(one: Array, two: Array) -> Array:
        return np.asarray(one * two)


@dataclass(frozen=True, eq=False)
class Add(_Arithmetic):
    """The sum of two or more values; its value is called `sum`."""

    operator: ClassVar[str] = "Add"
    gives: ClassVar[tuple[str, ...]] = ("sum",)

    @staticmethod
    def apply(one: Array, two: Array) -> Array:
        return np.asarray(one + two)
