"""Stages that change each number by itself: scales, limits and logarithms."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from stepwell_export.runtime.errors import ManifestError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.stage import FittableStage, Numbers, Row, Stage, check_row, numbers

if TYPE_CHECKING:
    from stepwell_export.graph.builder import GraphBuilder


@dataclass(frozen=True, eq=False)
class _Invertible(Stage):
    """A stage with an inverse.

    Attributes:
        is_inverse: Whether it is the inverse.
    """

    is_inverse: bool = field(default=False, kw_only=True)

    keeps_missing: ClassVar[bool] = True

    def inverse(self) -> Stage:
        return replace(self, is_inverse=not self.is_inverse)


@dataclass(frozen=True, eq=False)
class _Scale(_Invertible):
    """`(x - offset) / scale`; the inverse is `x * scale + offset`."""

    @abstractmethod
    def offset_and_scale(self) -> tuple[Array, Array]:
        """Return both, float64: one number, or one for each element of a row."""

    def check(self, row: Row) -> None:
        offset, scale = self.offset_and_scale()
        check_row(self, row, offset=offset, scale=scale)

    def reference(self, values: Array) -> Array:
        offset, scale = self.offset_and_scale()
        return np.asarray(values * scale + offset if self.is_inverse else (values - offset) / scale)

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        offset, scale = (graph.constant(value, "float64") for value in self.offset_and_scale())
        if self.is_inverse:
            return graph.op("Add", graph.op("Mul", x, scale), offset)
        return graph.op("Div", graph.op("Sub", x, offset), scale)

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        offset, scale = self.offset_and_scale()
        return np.asarray((values - offset) / scale if self.is_inverse else values * scale + offset)


@dataclass(frozen=True, eq=False)
class Standardize(_Scale, FittableStage):
    """`(x - mean) / std`.

    Attributes:
        mean: One number, or one for each element of a row.
        std: The same, above 0.
    """

    mean: Numbers = 0.0
    std: Numbers = 1.0

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: They are not finite numbers, or `std` is not above 0.
        """
        numbers("mean", self.mean)
        if not (numbers("std", self.std) > 0).all():
            raise ManifestError(
                f"`std` is {self.std!r:.80}; expected numbers above 0.", fix="Leave out elements that never change."
            )

    def offset_and_scale(self) -> tuple[Array, Array]:
        return numbers("mean", self.mean), numbers("std", self.std)

    def parameters_from(self, values: Array) -> dict[str, Array]:
        """Return mean and standard deviation; 1 if an element never changes."""
        std = np.nanstd(values, axis=0)
        return {"mean": np.nanmean(values, axis=0), "std": np.where(std > 0, std, 1.0)}


@dataclass(frozen=True, eq=False)
class _Limits(Stage):
    """A stage with a lower and an upper limit."""

    low: Numbers = 0.0
    high: Numbers = 1.0

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: They are not finite numbers, or `high` is not above `low`.
        """
        low, high = self.limits()
        if not (high > low).all():
            raise ManifestError(
                f"`low` is {self.low!r:.60} and `high` is {self.high!r:.60}; expected `high` above `low`.",
                fix="Exchange them.",
            )

    def limits(self) -> tuple[Array, Array]:
        """Return both, float64: one number, or one for each element of a row."""
        return numbers("low", self.low), numbers("high", self.high)


@dataclass(frozen=True, eq=False)
class MinMax(_Scale, _Limits, FittableStage):
    """`(x - low) / (high - low)`: 0 at `low`, 1 at `high`; values outside are not clipped.

    Attributes:
        low: One number, or one for each element of a row.
        high: The same, above `low`.
    """

    def offset_and_scale(self) -> tuple[Array, Array]:
        low, high = self.limits()
        return low, np.asarray(high - low)

    def parameters_from(self, values: Array) -> dict[str, Array]:
        """Return the smallest and largest values; the range is 1 if an element never changes."""
        low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
        return {"low": low, "high": np.where(high > low, high, low + 1)}


@dataclass(frozen=True, eq=False)
class Clip(_Limits):
    """Limits each number to `low` and `high`.

    Attributes:
        low: One number, or one for each element of a row.
        high: The same, above `low`.
    """

    def check(self, row: Row) -> None:
        low, high = self.limits()
        check_row(self, row, low=low, high=high)

    def reference(self, values: Array) -> Array:
        return np.clip(values, *self.limits())

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        low, high = (graph.constant(limit, "float64") for limit in self.limits())
        return graph.op("Min", graph.op("Max", x, low), high)

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        """Draw over the range and a quarter of it on both sides, so that both limits are used."""
        low, high = self.limits()
        return np.asarray(low + (high - low) * rng.uniform(-0.25, 1.25, values.shape))


@dataclass(frozen=True, eq=False)
class Log1p(_Invertible):
    """`log(1 + x)`, for numbers above -1; the inverse is `exp(x) - 1`.

    Attributes:
        is_inverse: Whether it is the inverse.
    """

    def reference(self, values: Array) -> Array:
        return np.expm1(values) if self.is_inverse else np.log1p(values)

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        one = graph.constant(1.0, "float64")
        if self.is_inverse:
            return graph.op("Sub", graph.op("Exp", x), one)
        return graph.op("Log", graph.op("Add", x, one))

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return np.log1p(np.abs(values)) if self.is_inverse else np.expm1(np.abs(values))
