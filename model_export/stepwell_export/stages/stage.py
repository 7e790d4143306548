"""`Stage`: one transformation of a row in front of a model or behind it, as NumPy code and as part of a graph."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from stepwell_export.runtime.errors import ManifestError, UnclearModelError
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell_export.graph.builder import GraphBuilder

Row = tuple[int, ...]
"""The shape of one row, without batch axis and without time axis."""

Numbers = float | Sequence[float] | Array
"""One number for all elements of a row, or one for each."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stage(ABC):
    """One transformation of rows.

    Between stages, values are float32.

    Attributes:
        of: The value that it reads, or several in a tuple or list; None: the only one that no part has read yet.
        to: The names of its values, in the documented order; None: the name that it read, or the documented ones.
        on: Short for `of` and `to` of one name.
        labels: A name for each number of the row that the stage takes; empty: unknown.
    """

    of: str | Sequence[str] | None = None
    to: str | Sequence[str] | None = None
    on: str | None = None
    labels: tuple[str, ...] = ()

    takes: ClassVar[str] = "float32"
    """The dtype of the rows that it takes."""
    returns: ClassVar[str] = "float32"
    """The dtype of the rows that it returns."""
    computes: ClassVar[str] = "float64"
    """The dtype in which its part of the graph computes with floats; the reference is in float64."""
    samples: ClassVar[bool | None] = None
    """Whether its rows are samples of a signal; None: if those that it reads are."""
    fills_missing: ClassVar[bool] = False
    """Whether it replaces NaN."""
    keeps_missing: ClassVar[bool] = False
    """Whether NaN in one element makes NaN in the corresponding element alone, now and later."""
    gives: ClassVar[tuple[str, ...]] = ()
    """The names of its values; empty: one value, with the name of that which it reads."""

    @property
    def title(self) -> str:
        """The stage's name in messages and tensor names."""
        return type(self).__name__

    @property
    def sources(self) -> list[str | None]:
        """The names of the values that it reads, in order; None: the only one that no part has read yet."""
        named = self.of if self.of is not None else self.on
        return [None] if named is None else [*names_in("of", named)]

    @property
    def delay(self) -> int:
        """How many samples later a sample leaves it."""
        return 0

    @property
    def lag(self) -> int:
        """How many timesteps later a row leaves it."""
        return 0

    @property
    def row(self) -> Row | None:
        """The shape of the row that it takes; None: whatever its parameters do not tell."""
        return None

    def row_before(self, row: Row) -> Row:
        """Return the shape of the row that the stage takes, given the shape of the row that it returns.

        Raises:
            UnclearModelError: It cannot return such a row.
        """
        return row

    def row_after(self, row: Row) -> Row:
        """Return the shape of the row that the stage returns, given the shape of the row that it takes.

        Raises:
            UnclearModelError: It cannot take such a row.
        """
        return row

    def check(self, row: Row) -> None:  # noqa: B027 - most stages accept every row
        """Check that the stage can be exported for rows of this shape.

        Raises:
            UnclearModelError: It cannot.
        """

    def labels_after(self, labels: Sequence[str]) -> list[str]:
        """Return the names of the numbers that the stage returns, given those that it takes."""
        return list(labels)

    @abstractmethod
    def reference(self, values: Array) -> Array:
        """Return the result for whole sequences, by NumPy.

        Args:
            values: Shape `(N, T, *row)`, float64 (or the integers that the stage takes).

        Returns:
            Shape `(N, T, *row_after)`, float64.
        """

    @abstractmethod
    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        """Emit one timestep.

        Args:
            graph: Where its nodes and states go.
            x: Tensor `(batch, *row)`, of dtype `computes` (or the integers that the stage takes).
            row: The shape of a row.

        Returns:
            Tensor `(batch, *row_after)`, of dtype `computes`.
        """

    def rows_after(self, rows: Sequence[Row]) -> list[Row]:
        """Return the same as `row_after`, of all values that it reads and gives."""
        return [self.row_after(rows[0])]

    def references(self, values: Sequence[Array]) -> list[Array]:
        """Return the same as `reference`, of all values that it reads and gives."""
        return [self.reference(values[0])]

    def emit_all(self, graph: GraphBuilder, xs: Sequence[str], rows: Sequence[Row]) -> list[str]:
        """Emit the same as `emit`, for all values that it reads and gives."""
        return [self.emit(graph, xs[0], rows[0])]

    def labels_of(self, labels: Sequence[Sequence[str]]) -> list[list[str]]:
        """Return the same as `labels_after`, of all values that it reads, and of the first ones that it gives."""
        return [self.labels_after(labels[0])]

    def described(self, of: str) -> list[dict[str, Any]]:
        """Return what else the manifest has at each of its values, by field; `of`: the value that it reads."""
        del of
        return []

    def draw_before(self, rng: np.random.Generator, values: Array) -> Array:
        """Return random sequences for verification that the stage maps to about the given ones.

        Args:
            rng: The source of randomness.
            values: Shape `(N, T, *row_after)`, float64.
        """
        del rng
        return values

    def inverse(self) -> Stage:
        """Return the stage that undoes this one.

        Raises:
            UnclearModelError: There is none.
        """
        raise UnclearModelError(
            f"{self.title} has no inverse; expected Standardize, MinMax, Log1p, PCM16, RFFT or STFT.",
            fix="Leave out `.inverse()`, or write the stage that you need.",
        )


class ManyValued(Stage):
    """A stage that reads or gives several values; a subclass has `rows_after`, `references` and `emit_all`."""

    def row_after(self, row: Row) -> Row:
        """Return the shape of its first value, given that of the only one that it reads."""
        return self.rows_after([row])[0]

    def reference(self, *values: Array) -> Any:  # one array for each value that it reads
        """Return the results for whole sequences: an array, or a tuple where the stage gives several values."""
        found = self.references(values)
        return found[0] if len(found) == 1 else tuple(found)

    def emit(self, graph: GraphBuilder, x: str, row: Row) -> str:
        """Emit its first value, given the only one that it reads."""
        return self.emit_all(graph, [x], [row])[0]


class FittableStage(Stage):
    """A stage whose parameters can be computed from data."""

    @abstractmethod
    def parameters_from(self, values: Array) -> dict[str, Array]:
        """Return parameters by name, computed from data `(n, features)`, float64; NaN where a value is missing."""

    def fit(self, data: Any) -> Self:
        """Return the stage with its parameters computed from data; missing values are left out.

        Args:
            data: `(n, features)`, `(N, T, features)`, or a data frame, whose columns are the labels.

        Raises:
            ManifestError: It is not numbers, has no rows, or a column has no finite value.
        """
        from stepwell_export.labels import read_columns

        parameters: dict[str, Any] = {**self.parameters_from(_training_data(self.title, data))}
        return replace(self, **parameters, labels=tuple(read_columns(data)) or self.labels)


def numbers(name: str, value: Any) -> Array:
    """Return a stage's parameter as float64: a number, or one for each element of a row.

    Raises:
        ManifestError: It is not numbers, or not finite ones.
    """
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.asarray(np.nan)
    if not np.isfinite(array).all() or not array.size:
        raise ManifestError(
            f"`{name}` is {value!r:.80}; expected a finite number, or one for each element of a row.",
            fix=f"Give `{name}=1.5` or `{name}=[1.5, 2.0]`; `fit(data)` computes it from data.",
        )
    return array


def number(name: str, value: Any) -> float:
    """Return a stage's parameter that is a single number.

    Raises:
        ManifestError: It is none, or not finite.
    """
    array = numbers(name, value)
    if array.ndim:
        raise ManifestError(f"`{name}` is {value!r:.80}; expected a single number.", fix=f"Give `{name}=1.5`.")
    return float(array)


def count(name: str, value: Any, least: int = 1) -> int:
    """Return a stage's number of timesteps or classes.

    Raises:
        ManifestError: It is no whole number, or too small.
    """
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ManifestError(
            f"`{name}` is {value!r:.80}; expected a whole number of at least {least}.", fix=f"Give `{name}={least}`."
        )
    return int(value)


def names_in(argument: str, value: Any) -> list[str]:
    """Return the names of an argument: one name, or a tuple or list of them.

    Raises:
        ManifestError: It is anything else.
    """
    names = [value] if isinstance(value, str) else [*value] if isinstance(value, tuple | list) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ManifestError(
            f"`{argument}` is {value!r:.80}; expected a name, or a tuple of names.",
            fix=f'Give `{argument}="x"` or `{argument}=("a", "b")`.',
        )
    return names


def choice(name: str, value: Any, among: Sequence[Any]) -> None:
    """Check that a parameter is one of some values.

    Raises:
        ManifestError: It is not.
    """
    if value not in among:
        raise ManifestError(
            f"`{name}` is {value!r:.80}; expected {' or '.join(map(repr, among))}.", fix=f"Give `{name}={among[0]!r}`."
        )


def check_row(stage: Stage, row: Row, **parameters: Array) -> None:
    """Check that parameters have one number for each element of a row, or one for all.

    Raises:
        UnclearModelError: They do not.
    """
    for name, array in parameters.items():
        if array.ndim and array.shape != row:
            raise UnclearModelError(
                f"{stage.title} has `{name}` of shape {list(array.shape)}; a row there has shape {list(row)}.",
                fix="Give one number, or one for each element of the row.",
            )


def _training_data(stage: str, data: Any) -> Array:
    """Return data for fitting a stage, shape `(n, features)`, float64; NaN where a value is missing."""
    try:
        values = np.asarray(data, np.float64)
    except (TypeError, ValueError) as exc:
        raise ManifestError(
            f"{stage}.fit got {type(data).__name__}, which is no array of numbers.", fix="Give numeric columns alone."
        ) from exc
    values = values.reshape(-1, values.shape[-1]) if values.ndim > 1 else values.reshape(-1, 1)
    empty = np.flatnonzero(~np.isfinite(values).any(axis=0)) if len(values) else np.arange(values.shape[1])
    if empty.size:
        raise ManifestError(
            f"{stage}.fit got data of shape {list(np.shape(data))} without any finite value in column {int(empty[0])}.",
            fix="Give data with at least one finite value in each column.",
        )
    return np.where(np.isfinite(values), values, np.nan)
