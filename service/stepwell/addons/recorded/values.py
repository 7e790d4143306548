"""Cells of tables as numbers, times and stream ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell.addons.event_time.times import BadTimeError, TimeUnit, datetime_of, us_of
from stepwell.addons.recorded.errors import RecordedDataError
from stepwell.addons.text_values import is_missing, number_of, value_of
from stepwell_export.runtime.manifest import Array, InputSpec

_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}

Cells = Sequence[Any] | Array
"""One column: texts, or an array of numbers in which NaN is a missing value."""


@dataclass(frozen=True, slots=True)
class Categories(Sequence[str]):
    """A column in which the same texts are there again and again.

    Attributes:
        texts: The different texts.
        indices: The index of each row's text, `(n,)`.
    """

    texts: list[str]
    indices: Array

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, row: Any) -> Any:
        return self.texts[self.indices[row]]


def numbers(cells: Cells, where: str, first: int) -> Array:
    """Return a column as numbers; a missing value is NaN.

    Args:
        cells: The column.
        where: File and column, for errors.
        first: Row of the first cell in the file.

    Raises:
        RecordedDataError: A cell is not a number.
    """
    if isinstance(cells, np.ndarray) and cells.dtype.kind in "biuf":
        return cells
    try:
        return np.fromiter(map(_float, cells), np.float64, len(cells))
    except (TypeError, ValueError):
        return np.fromiter((_number(cell, where, first + i) for i, cell in enumerate(cells)), np.float64, len(cells))


def integers(cells: Cells, where: str, first: int) -> Array:
    """Return a column of an integer input; as `numbers`, but also integers beyond 2 to the 53 are exact."""
    if not isinstance(cells, np.ndarray):
        try:
            return np.fromiter(map(_int, cells), np.int64, len(cells))
        except (TypeError, ValueError, OverflowError):
            pass
    return numbers(cells, where, first)


def present(cells: Cells) -> tuple[Cells, Array]:
    """Return a column of an integer input with 0 for missing values, and which are missing, `(n,)` bool."""
    if isinstance(cells, np.ndarray):
        missing = np.isnan(cells) if cells.dtype.kind == "f" else np.zeros(len(cells), bool)
        return np.where(missing, np.zeros((), cells.dtype), cells), missing
    missing = np.fromiter((cell is None or is_missing(str(cell)) for cell in cells), bool, len(cells))
    return [0 if is_none else cell for cell, is_none in zip(cells, missing.tolist(), strict=True)], missing


def times(cells: Cells, where: str, first: int, unit: TimeUnit = "s") -> Array:
    """Return a column of times in seconds, since 1970 if they are dates, as float64.

    It has microseconds until the year 2242; what is finer is rounded to the nearest one.

    Args:
        cells: The column.
        where: File and column, for errors.
        first: Row of the first cell in the file.
        unit: The unit of times that are numbers.

    Raises:
        RecordedDataError: A cell is neither a number nor a date of ISO 8601.
    """
    if isinstance(cells, np.ndarray) and cells.dtype.kind == "M":
        nanoseconds = np.datetime_data(cells.dtype)[0] == "ns"
        values = cells.view(np.int64) if nanoseconds else cells.astype("datetime64[us]").astype(np.int64)
        values = _seconds(values, "ns" if nanoseconds else "us")
        values[np.isnat(cells)] = np.nan
    elif isinstance(cells, np.ndarray) and cells.dtype.kind in "iuf":
        values = _seconds(cells, unit)
    else:
        number = _int if unit == "ns" else _float
        try:
            values = _seconds(np.array([number(cell) for cell in cells]), unit)
        except (TypeError, ValueError, OverflowError):
            found = (_time(cell, where, first + i, unit) for i, cell in enumerate(cells))
            values = np.fromiter(found, np.float64, len(cells))
    if (missing := np.isnan(values)).any():
        raise RecordedDataError(
            f"{where}, row {first + int(np.argmax(missing)) + 1}: there is no time.", fix="Remove rows without a time."
        )
    return values


def _seconds(values: Array, unit: TimeUnit) -> Array:
    """Return times in a unit as seconds in float64."""
    if unit == "ns" and values.dtype.kind in "iu":
        whole, rest = np.divmod(values.astype(np.int64), 1000)
        return (whole + (rest >= 500)) / 1e6
    if unit == "ns":
        return np.rint(values / 1000) / 1e6
    return values / _PER_SECOND[unit]


def cast(values: Array, spec: InputSpec, names: Sequence[str], where: str, first: int) -> Array:
    """Return the columns of an input in its dtype.

    Args:
        values: Shape `(rows, numbers)`.
        spec: The input.
        names: The columns, for errors.
        where: The file, for errors.
        first: Row of the first row in the file.

    Returns:
        Shape `(rows, *row)`.

    Raises:
        RecordedDataError: A value is missing, and the manifest does not allow that; or it does not fit the dtype.
    """
    dtype = np.dtype(spec.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        cast_values = values.astype(dtype, copy=False)
    wrong: Array
    if dtype.kind == "f":
        wrong = np.isinf(cast_values) if spec.missing == "nan" else ~np.isfinite(cast_values)
    elif values.dtype == dtype:
        wrong = np.zeros(values.shape, bool)
    else:
        wrong = ~np.isfinite(values) | (cast_values != values)
    if np.any(wrong):
        row, column = (int(n) for n in np.argwhere(wrong)[0])
        value = values[row, column]
        found = "the value is missing" if np.isnan(value) else f"the value is {value!s}"
        expected = "finite numbers" if dtype.kind == "f" else f"values of {dtype}"
        raise RecordedDataError(
            f"{where}, column {names[column]!r}, row {first + row + 1}: {found}; input {spec.name!r} takes {expected}.",
            fix="Fill or remove such rows; or export the model with Impute and `missing: nan`."
            if np.isnan(value)
            else "Correct this value.",
        )
    return cast_values.reshape(len(values), *spec.row_shape)


def _float(cell: Any) -> float:
    return float(_checked(cell))


def _int(cell: Any) -> int:
    return int(_checked(cell))


def _checked(cell: Any) -> Any:
    """Return a cell that may be a number.

    Raises:
        ValueError: It is a text that JSON's grammar has not as a number: `+5`, `.5`, `007`, `4_2`.
    """
    if isinstance(cell, str) and number_of(cell) is None:
        raise ValueError(cell)
    return cell


def _number(cell: Any, where: str, row: int) -> float:
    text = "" if cell is None else str(cell)
    if is_missing(text):
        return float("nan")
    try:
        return _float(text)
    except ValueError:
        truth = value_of(text)
    if truth is None:
        raise RecordedDataError(
            f"{where}, row {row + 1}: {text.strip()[:40]!r} is not a number{_as_json_has(text)}.",
            fix="Name columns of numbers, or correct the row.",
        )
    return float(truth)


def _as_json_has(text: str) -> str:
    """Return the number that was probably meant, for a message; empty if there is none."""
    try:
        return f"; expected {float(text):g}, as JSON has it" if text.isascii() and "_" not in text else ""
    except ValueError:
        return ""


def _time(cell: Any, where: str, row: int, unit: TimeUnit) -> float:
    text = "" if cell is None else str(cell).strip()
    if is_missing(text):
        return float("nan")
    if (number := number_of(text)) is not None:
        return float(_seconds(np.array(number), unit))
    try:
        return us_of(datetime_of(text)) / 1e6
    except BadTimeError:
        raise RecordedDataError(
            f"{where}, row {row + 1}: {text[:40]!r} is not a time; expected a number or ISO 8601.",
            fix="Name another --time-column, or convert it.",
        ) from None
