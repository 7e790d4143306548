"""`CsvTable`: the rows of a CSV file, with the numbers that a model takes."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from model_export.errors import StepwellError
from model_export.manifest import Array
from service.client.protocol.decoding import TensorInfo
from service.client.tables import Columns, columns_by_input

_DELIMITERS: Final = ",;\t|"
_BOOLEANS: Final = {"0": False, "1": True, "false": False, "true": True}


class ReplayError(StepwellError):
    """A recording cannot be read, or a stream cannot be continued with it."""

    code = "replay_failed"


@dataclass(frozen=True, slots=True)
class TableRow:
    """One timestep of a recording.

    Attributes:
        number: The number of the row, from 1; the header is not counted.
        stream: The stream's id; empty if the file has no column for it.
        seconds: The time of the row in seconds; 0 if the file has no column for it.
        inputs: An array per input, of the model's dtype and shape.
    """

    number: int
    stream: str
    seconds: float
    inputs: dict[str, Array]


class CsvTable:
    """A CSV file with a header, as UTF-8; separated by commas, semicolons, tabs or bars, whichever its header has most.

    Attributes:
        columns: The names of the columns.
        count: The number of rows.
    """

    def __init__(self, path: Path) -> None:
        """Read the header and count the rows.

        Raises:
            ReplayError: The file cannot be read, is empty, or has a column name twice.
        """
        self.path = path
        with self._lines() as lines:
            header = next(lines, "")
            self._delimiter = max(_DELIMITERS, key=header.count)
        with self._reader() as reader:
            self.columns = [name.strip() for name in next(reader, [])]
            self.count = sum(1 for row in reader if row)
        if not any(self.columns):
            raise ReplayError(f"{path} has no header; expected the columns' names in its first line.")
        if twice := sorted({name for name in self.columns if self.columns.count(name) > 1}):
            raise ReplayError(f"{path} has the column {twice[0]!r} twice.", fix="Give each column a name of its own.")

    def rows(
        self,
        inputs: Sequence[TensorInfo],
        chosen: Columns | None = None,
        *,
        stream_column: str | None = None,
        time_column: str | None = None,
    ) -> Iterator[TableRow]:
        """Yield the rows, each with an array per input.

        Args:
            inputs: The model's inputs.
            chosen: The columns of inputs; as for `Stream.replay`.
            stream_column: The column with the id of each row's stream.
            time_column: The column with times: numbers in seconds, or ISO 8601.

        Raises:
            ReplayError: A column is missing, or a value is not one of the input's type.
            ClientError: `bad_input`: the columns of an input are not known.
        """
        for name in filter(None, (stream_column, time_column)):
            if name not in self.columns:
                raise ReplayError(f"{self.path} has no column {name!r}.", fix=f"It has {', '.join(self.columns)}.")
        by_input = columns_by_input(inputs, self.columns, chosen)
        places = {each.name: [self.columns.index(name) for name in by_input[each.name]] for each in inputs}
        return self._rows(inputs, places, self._place(stream_column), self._place(time_column))

    def _rows(
        self, inputs: Sequence[TensorInfo], places: dict[str, list[int]], stream: int | None, time: int | None
    ) -> Iterator[TableRow]:
        number = 0
        with self._reader() as reader:
            next(reader, None)
            for cells in reader:
                if not cells:
                    continue
                number += 1
                if len(cells) != len(self.columns):
                    raise ReplayError(
                        f"{self.path}, line {reader.line_num}: found {len(cells)} values, expected {len(self.columns)}."
                    )
                arrays = {
                    each.name: self._array(each, [cells[place] for place in places[each.name]], reader.line_num)
                    for each in inputs
                }
                seconds = 0.0 if time is None else self._value(cells[time], _seconds, "a time", reader.line_num)
                yield TableRow(number, "" if stream is None else cells[stream].strip(), seconds, arrays)

    def _array(self, each: TensorInfo, cells: Sequence[str], line: int) -> Array:
        read, what = _READERS[np.dtype(each.dtype).kind]
        values = [self._value(cell, read, f"{what} for input {each.name!r}", line) for cell in cells]
        try:
            return np.array(values, each.dtype).reshape(each.shape)
        except OverflowError as exc:
            raise ReplayError(f"{self.path}, line {line}: a value of {each.name!r} exceeds {each.dtype}.") from exc

    def _value(self, cell: str, read: Callable[[str], Any], expected: str, line: int) -> Any:
        try:
            return read(cell.strip())
        except (ValueError, KeyError) as exc:
            raise ReplayError(f"{self.path}, line {line}: found {cell[:40]!r}, expected {expected}.") from exc

    def _place(self, column: str | None) -> int | None:
        return None if column is None else self.columns.index(column)

    @contextmanager
    def _reader(self) -> Iterator[Any]:
        with self._lines() as lines:
            try:
                yield csv.reader(lines, delimiter=self._delimiter)
            except csv.Error as exc:
                raise ReplayError(f"{self.path} is not a CSV file: {exc}.") from exc

    @contextmanager
    def _lines(self) -> Iterator[Iterator[str]]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as lines:
                yield lines
        except OSError as exc:
            raise ReplayError(f"{self.path} cannot be read: {exc.strerror}.", fix="Check the path.") from exc
        except UnicodeDecodeError as exc:
            raise ReplayError(f"{self.path} is not UTF-8: {exc.reason}.", fix="Save it as UTF-8.") from exc


def _number(text: str) -> float:
    return float(text) if text else math.nan  # the service decides whether a value may be missing


def _boolean(text: str) -> bool:
    return _BOOLEANS[text.lower()]


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text).timestamp()


_READERS: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "f": (_number, "a number"),
    "i": (int, "an integer"),
    "u": (int, "an integer"),
    "b": (_boolean, "true or false"),
}
"""How a cell is read, by the kind of the dtype."""
