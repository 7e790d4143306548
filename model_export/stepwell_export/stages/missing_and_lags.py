"""Stages that use earlier timesteps: missing values, lags, differences and rolling statistics."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from stepwell_export.runtime.errors import ManifestError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.stages.stage import FittableStage, Numbers, Row, Stage, check_row, count, numbers

if TYPE_CHECKING:
    from stepwell_export.graph.builder import GraphBuilder

MISSING = 0.15
"""The share of values that are missing in sequences drawn for verification."""


@dataclass(frozen=True, eq=False)
class Impute(FittableStage):
    """Replaces missing values (NaN).

    Attributes:
        by: `last`: the last value that was not missing, which is kept with the state of the stream. `mean`: the mean
            of the data passed to `fit`. Or a number, or one for each element of a row.
        initial: For `last`: what is used before the first value; one number, or one for each element of a row.
    """

    by: str | Numbers = "last"
    initial: Numbers = 0.0
    mean: Array | None = field(default=None, repr=False, kw_only=True)

    fills_missing: ClassVar[bool] = True
    keeps_missing: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: `by` is neither `last` nor `mean` nor numbers.
        """
        numbers("initial", self.initial)
        if not isinstance(self.by, str):
            numbers("by", self.by)
        elif self.by not in ("last", "mean"):
            raise ManifestError(f"`by` is {self.by!r}; expected 'last', 'mean' or numbers.", fix="Give `by='last'`.")

    @property
    def has_memory(self) -> bool:
        """Whether the last value is kept."""
        return isinstance(self.by, str) and self.by == "last"

    def parameters_from(self, values: Array) -> dict[str, Array]:
        """Return the means: the replacement for `mean`, the first value for `last`."""
        mean = np.nanmean(values, axis=0)
        return {"mean": mean, "initial": mean} if self.has_memory else {"mean": mean}

    def _value(self) -> Array:
        if self.has_memory:
            return numbers("initial", self.initial).astype(np.float32).astype(np.float64)
        if not isinstance(self.by, str):
            return numbers("by", self.by)
        if self.mean is None:
            raise UnclearModelError(
                "Impute('mean') has no mean; expected it to be fitted.", fix="Call `Impute('mean').fit(data)`."
            )
        return self.mean

    def check(self, row: Row) -> None:
        check_row(self, row, value=self._value())

    def reference(self, values: Array) -> Array:
        missing = np.isnan(values)
        filled = np.where(missing, self._value(), values)
        if self.has_memory:
            for t in range(1, values.shape[1]):
                filled[:, t] = np.where(missing[:, t], filled[:, t - 1], values[:, t])
        return filled

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        missing = graph.op("IsNaN", x)
        if not self.has_memory:
            return graph.op("Where", missing, graph.constant(self._value(), "float64"), x)
        last = graph.state(f"{self.title}.last", row, init=self._value())
        before = graph.cast(last.input, "float64")
        filled = graph.op("Where", missing, before, x)
        graph.next_state(last, graph.cast(filled, "float32"))
        return filled

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return np.where(rng.random(values.shape) < MISSING, np.nan, values)


@dataclass(frozen=True, eq=False)
class _History(Stage):
    """A stage with states.

    Attributes:
        append: Whether the result is appended to the row, along its last axis, instead of replacing it.
    """

    append: bool = field(default=False, kw_only=True)

    def row_before(self, row: Row) -> Row:
        if not self.append:
            return row
        if not row or row[-1] % 2:
            raise UnclearModelError(
                f"{self.title}(append=True) doubles a row; the row after it has shape {list(row)}.",
                fix="Use a model that takes both, or leave out `append`.",
            )
        return (*row[:-1], row[-1] // 2)

    def row_after(self, row: Row) -> Row:
        return (*row[:-1], 2 * row[-1]) if self.append and row else row

    def labels_after(self, labels: Sequence[str]) -> list[str]:
        return [*labels, *(f"{label}.{self.title}" for label in labels)] if self.append else list(labels)

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        return values[..., : values.shape[-1] // 2] if self.append else values

    def reference(self, values: Array) -> Array:
        found = self.history(values)
        return np.concatenate([values, found], axis=-1) if self.append else found

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        found = self.emit_history(graph, x, row)
        return graph.op("Concat", x, found, axis=len(row)) if self.append else found

    @abstractmethod
    def history(self, values: Array) -> Array:
        """Return the result alone, as `reference` does."""

    @abstractmethod
    def emit_history(self, graph: GraphBuilder, x: str, row: Row) -> str:
        """Emit the result alone, as `emit` does."""


@dataclass(frozen=True, eq=False)
class _CountedHistory(_History):
    """A stage of a number of timesteps.

    Attributes:
        n: How many, at least `least`.
    """

    n: int = 1

    least: ClassVar[int] = 1

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: `n` is no whole number, or too small.
        """
        count("n", self.n, self.least)


@dataclass(frozen=True, eq=False)
class Lag(_CountedHistory):
    """The row of `n` timesteps ago; pandas: `shift(n, fill_value=initial)`.

    Attributes:
        n: How many timesteps, at least 1.
        initial: The row before the first timestep: one number, or one for each element.
    """

    initial: Numbers = 0.0

    def __post_init__(self) -> None:
        """Check the parameters.

        Raises:
            ManifestError: `n` is below 1, or `initial` is not finite.
        """
        super().__post_init__()
        numbers("initial", self.initial)

    @property
    def lag(self) -> int:
        return 0 if self.append else self.n

    def check(self, row: Row) -> None:
        check_row(self, row, initial=numbers("initial", self.initial))

    def history(self, values: Array) -> Array:
        first = np.broadcast_to(numbers("initial", self.initial), values[:, :1].shape).astype(np.float32)
        return np.concatenate([np.repeat(first, self.n, axis=1), values], axis=1)[:, : values.shape[1]]

    def emit_history(self, graph: GraphBuilder, x: str, row: Row) -> str:
        rows = window(graph, self.title, x, row, self.n, init=numbers("initial", self.initial))
        return graph.op("Gather", rows, graph.constant(0, "int64"), axis=1)


@dataclass(frozen=True, eq=False)
class Diff(_CountedHistory):
    """The change since `n` timesteps ago, 0 in the first `n` timesteps; pandas: `diff(n).fillna(0)`.

    Attributes:
        n: How many timesteps, at least 1.
    """

    def history(self, values: Array) -> Array:
        found = np.zeros(values.shape)
        found[:, self.n :] = values[:, self.n :] - values[:, : -self.n]
        return found

    def emit_history(self, graph: GraphBuilder, x: str, row: Row) -> str:
        zero = graph.constant(0, "int64")
        rows, valid = valid_window(graph, self.title, x, row, self.n)
        change = graph.op("Sub", x, graph.op("Gather", rows, zero, axis=1))
        return graph.op("Mul", change, graph.op("Gather", valid, zero, axis=1))


@dataclass(frozen=True, eq=False)
class RollingMean(_CountedHistory):
    """The mean of the last `n` timesteps, of fewer at the beginning; pandas: `rolling(n, min_periods=1).mean()`.

    Attributes:
        n: How many timesteps, this one included, at least 2.
    """

    n: int = 2

    least: ClassVar[int] = 2

    def history(self, values: Array) -> Array:
        return np.asarray(np.nanmean(_windows(values, self.n), axis=-1))

    def emit_history(self, graph: GraphBuilder, x: str, row: Row) -> str:
        rows, valid = valid_window(graph, self.title, x, row, self.n - 1)
        return _mean(graph, rows, valid)


@dataclass(frozen=True, eq=False)
class RollingStd(_CountedHistory):
    """The standard deviation of the last `n` timesteps; pandas: `rolling(n, min_periods=1).std(ddof=0)`.

    Attributes:
        n: How many timesteps, this one included, at least 2; fewer at the beginning.
    """

    n: int = 2

    least: ClassVar[int] = 2

    def history(self, values: Array) -> Array:
        return np.asarray(np.nanstd(_windows(values, self.n), axis=-1))

    def emit_history(self, graph: GraphBuilder, x: str, row: Row) -> str:
        rows, valid = valid_window(graph, self.title, x, row, self.n - 1)
        mean = graph.op("Unsqueeze", _mean(graph, rows, valid), graph.ints([1]))
        off = graph.op("Sub", rows, mean)
        return graph.op("Sqrt", _mean(graph, graph.op("Mul", off, off), valid))


@dataclass(frozen=True, eq=False)
class EWMA(_History):
    """The exponentially weighted mean: `y = alpha * x + (1 - alpha) * y`, from the first row on.

    pandas: `ewm(alpha=alpha, adjust=False).mean()`.

    Attributes:
        alpha: The weight of the newest row, above 0 and at most 1.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        """Check the parameter.

        Raises:
            ManifestError: It is not above 0, or above 1.
        """
        if not 0 < float(numbers("alpha", self.alpha).max()) <= 1 or np.ndim(self.alpha):
            raise ManifestError(
                f"`alpha` is {self.alpha!r:.60}; expected a number above 0 and at most 1.", fix="Give `alpha=0.1`."
            )

    def history(self, values: Array) -> Array:
        found = np.array(values, np.float64)
        for t in range(1, values.shape[1]):
            found[:, t] = self.alpha * values[:, t] + (1 - self.alpha) * found[:, t - 1]
        return found

    def emit_history(self, graph: GraphBuilder, x: str, row: Row) -> str:
        past = graph.state(f"{self.title}.mean", row, "float64")
        started = graph.reshape(graph.has_started(), [1] * len(row))
        before = graph.op("Where", started, past.input, x)
        alpha, rest = (graph.constant(weight, "float64") for weight in (self.alpha, 1 - self.alpha))
        mean = graph.op("Add", graph.op("Mul", x, alpha), graph.op("Mul", before, rest))
        graph.next_state(past, mean)
        return mean


def _windows(values: Array, n: int) -> Array:
    """Return the last `n` rows of each timestep on a last axis; NaN before the first one."""
    front = np.full((len(values), n - 1, *values.shape[2:]), np.nan)
    return np.asarray(sliding_window_view(np.concatenate([front, values], axis=1), n, axis=1))


def window(  # noqa: PLR0917  # what is kept, and how
    graph: GraphBuilder, name: str, x: str, row: Row, past: int, dtype: str = "float32", init: Array | None = None
) -> str:
    """Emit the last rows and this one, `(batch, past + 1, *row)` in the given dtype, float64 for floats."""
    state = graph.state(f"{name}.past", (past, *row), dtype, init=init)
    fresh = graph.op("Unsqueeze", graph.cast(x, dtype), graph.ints([1]))
    joined = graph.op("Concat", state.input, fresh, axis=1)
    graph.next_state(state, graph.op("Slice", joined, graph.ints([1]), graph.ints([past + 1]), graph.ints([1])))
    return graph.cast(joined, "float64")


def valid_window(graph: GraphBuilder, name: str, x: str, row: Row, past: int) -> tuple[str, str]:
    """Emit the same, and where it has rows of the stream: `(batch, past + 1, 1, ..)`, float64 of 0 and 1."""
    rows = graph.op("Shape", x, start=0, end=1)
    ones = graph.constant(np.ones([1] * len(row)), "float64")
    shape = graph.op("Concat", rows, graph.ints([1] * len(row)), axis=0) if row else rows
    here = graph.op("Expand", ones, shape)
    return window(graph, name, x, row, past), window(graph, f"{name}.valid", here, (1,) * len(row), past, "bool")


def _mean(graph: GraphBuilder, rows: str, valid: str) -> str:
    axes = graph.ints([1])
    total = graph.op("ReduceSum", graph.op("Mul", rows, valid), axes, keepdims=0)
    return graph.op("Div", total, graph.op("ReduceSum", valid, axes, keepdims=0))
