"""Tables in CSV and Parquet files, read in pieces."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from stepwell.addons.recorded.csv_header import CsvHeader
from stepwell.addons.recorded.errors import RecordedDataError
from stepwell.addons.recorded.json_numbers import has_other_numbers
from stepwell.addons.recorded.values import Categories, Cells
from stepwell_export.runtime.errors import MissingExtraError

PIECE_ROWS = 32_768
"""Rows that are read at a time."""

Kind = Literal["f8", "i8", "U", "id"]
"""What the cells of a column are: numbers, integers, texts, or stream ids, which are texts or integers."""

_TEXTS = ("U", "id")

_LONGEST_TEXT = 160
"""Characters of a text that are read at once; more than a stream id has."""


class CsvFile:
    """A CSV file whose first line has the names of its columns; cells are texts.

    They are separated by commas, semicolons, tabs or bars, whichever the first line has most.
    """

    def __init__(self, path: Path) -> None:
        """Read the names.

        Raises:
            RecordedDataError: The file cannot be read, or a name is there twice.
        """
        self.path = path
        with self._reading(), path.open(newline="", encoding="utf-8-sig") as file:
            header = CsvHeader.of(file.readline(), path)
        self.columns: Sequence[str] = header.names
        self._delimiter = header.delimiter

    def pieces(self, columns: Mapping[str, Kind]) -> Iterator[Mapping[str, Cells]]:
        """Yield some columns of consecutive rows, at most about `PIECE_ROWS` at a time.

        Args:
            columns: What is expected in each column; cells that are something else are returned as texts.

        Raises:
            RecordedDataError: The file cannot be read.
        """
        first = 0
        with self._reading(), self.path.open(newline="", encoding="utf-8-sig") as file:
            next(self._rows(file), None)
            while lines := _whole_lines(file):
                piece = self._parsed(lines, columns)
                if piece is None:
                    piece = self._cells(lines, columns, first)
                n_rows = len(next(iter(piece.values())))
                if n_rows:
                    yield piece
                first += n_rows

    def _parsed(self, lines: Sequence[str], columns: Mapping[str, Kind]) -> Mapping[str, Cells] | None:
        """Return the columns of lines without quotes; None if a cell is not what is expected: `_cells` reports it."""
        text = "".join(lines)
        if '"' in text:
            return None
        if not text.endswith(("\n", "\r")):
            lines = [*lines[:-1], f"{lines[-1]}\n"]
        at = [self.columns.index(name) for name in columns]
        numbers = [i for i, kind in zip(at, columns.values(), strict=True) if kind not in _TEXTS]
        if has_other_numbers("".join(lines), self._delimiter, len(lines), len(self.columns), numbers):
            return None
        if len(lines) >= PIECE_ROWS and "i8" not in columns.values():  # a small file does not wait for the import
            found = _parsed_by_arrow(text, self._delimiter, self.columns, columns)
            if found is not None:
                return found
        delimiters = len(self.columns) - 1
        if any(line.count(self._delimiter) != delimiters for line in lines):
            return None
        kinds = [(name, f"U{_LONGEST_TEXT}" if kind in _TEXTS else kind) for name, kind in columns.items()]
        try:
            rows = np.loadtxt(lines, np.dtype(kinds), comments=None, delimiter=self._delimiter, usecols=at, ndmin=1)
        except ValueError:
            return None
        piece = {name: rows[name].tolist() if kind in _TEXTS else rows[name] for name, kind in columns.items()}
        is_cut = any(kind in _TEXTS and max(map(len, piece[name])) == _LONGEST_TEXT for name, kind in columns.items())
        return None if is_cut else piece

    def _cells(self, lines: Sequence[str], columns: Mapping[str, Kind], first: int) -> Mapping[str, Cells]:
        """Return the columns of any lines, as texts."""
        rows = [row for row in self._rows(lines) if row]  # blank lines
        if set(map(len, rows)) - {len(self.columns)}:
            row, cells = next((i, row) for i, row in enumerate(rows) if len(row) != len(self.columns))
            raise RecordedDataError(
                f"{self.path}, row {first + row + 1}: found {len(cells)} cells; expected "
                f"{len(self.columns)}, as in the first line.",
                fix="Correct this row.",
            )
        by_column = list(zip(*rows, strict=True)) or [()] * len(self.columns)
        return {name: by_column[self.columns.index(name)] for name in columns}

    def _rows(self, lines: Iterable[str]) -> Iterator[list[str]]:
        return csv.reader(lines, delimiter=self._delimiter)

    def _reading(self) -> _Reading:
        return _Reading(self.path, (csv.Error, UnicodeDecodeError), "a CSV file in UTF-8")


class ParquetFile:
    """A Parquet file; needs pyarrow."""

    def __init__(self, path: Path) -> None:
        """Read the names.

        Raises:
            MissingExtraError: pyarrow is not installed.
            RecordedDataError: The file cannot be read.
        """
        self._parquet = pyarrow_parquet(path)
        self.path = path
        with self._reading():
            self.columns: Sequence[str] = self._parquet.read_schema(path).names

    def pieces(self, columns: Mapping[str, Kind]) -> Iterator[Mapping[str, Cells]]:
        """Yield some columns of consecutive rows; as `CsvFile.pieces`."""
        with self._reading(), self._parquet.ParquetFile(self.path) as file:
            for name in (name for name, kind in columns.items() if kind == "id"):
                self._check_ids(name, file.schema_arrow.field(name).type)
            for batch in file.iter_batches(PIECE_ROWS, columns=list(columns), use_threads=False):
                yield {name: _arrow_cells(batch.column(name), kind) for name, kind in columns.items()}

    def _check_ids(self, name: str, dtype: Any) -> None:
        import pyarrow as pa

        held = dtype.value_type if pa.types.is_dictionary(dtype) else dtype
        if not (pa.types.is_string(held) or pa.types.is_large_string(held) or pa.types.is_integer(held)):
            raise RecordedDataError(
                f"{self.path}, column {name!r}: it has values of type {held}; a stream's id is a text or an integer.",
                fix="Write the ids as texts, or name another --stream-column.",
            )

    def _reading(self) -> _Reading:
        import pyarrow as pa

        return _Reading(self.path, (pa.ArrowException,), "a Parquet file")


class _Reading:
    """A context in which errors of a file are reported with its name."""

    def __init__(self, path: Path, malformed: tuple[type[Exception], ...], expected: str) -> None:
        self._path, self._malformed, self._expected = path, malformed, expected

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, self._malformed):
            raise RecordedDataError(f"{self._path} is not {self._expected}: {error}.", fix="Check it.") from error
        if isinstance(error, OSError):
            raise RecordedDataError(f"{self._path} cannot be read: {error.strerror or error}.") from error


def _whole_lines(file: TextIO) -> list[str]:
    """Return the next lines; a cell in quotes may have line breaks, and is not divided."""
    lines = list(islice(file, PIECE_ROWS))
    while "".join(lines).count('"') % 2:
        more = file.readline()
        if not more:
            break
        lines.append(more)
    return lines


def _parsed_by_arrow(
    text: str, delimiter: str, names: Sequence[str], columns: Mapping[str, Kind]
) -> Mapping[str, Cells] | None:
    """Return columns of texts and float64 numbers; None if a line or a cell is something else, or without pyarrow.

    It takes a third of NumPy's time. Integers are left to NumPy, because pyarrow accepts hexadecimal ones.
    """
    try:
        import pyarrow as pa
        from pyarrow import csv as arrow_csv
    except ImportError:
        return None
    types = {name: pa.string() if kind in _TEXTS else pa.float64() for name, kind in columns.items()}
    try:
        table = arrow_csv.read_csv(
            pa.py_buffer(text.encode()),
            read_options=arrow_csv.ReadOptions(column_names=list(names), use_threads=False),
            parse_options=arrow_csv.ParseOptions(delimiter=delimiter, quote_char=False),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(columns), column_types=types, null_values=[], strings_can_be_null=False
            ),
        ).combine_chunks()
    except pa.ArrowInvalid:
        return None
    return {name: _arrow_cells(table.column(name).chunk(0), kind) for name, kind in columns.items()}


def _arrow_cells(column: Any, kind: Kind) -> Cells:
    """Return a column of an Arrow batch as an array of numbers or dates, or as texts."""
    import pyarrow as pa

    if kind in _TEXTS:
        texts = column if pa.types.is_dictionary(column.type) else column.cast(pa.string()).dictionary_encode()
        missing = len(texts.dictionary)
        indices = texts.indices.fill_null(missing).to_numpy(zero_copy_only=False)
        return Categories([*map(str, texts.dictionary.to_pylist()), ""], indices)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    dtype = column.type
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype):
        if column.null_count:
            return column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
        return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    if pa.types.is_timestamp(dtype) or pa.types.is_date(dtype):
        unit = "ns" if dtype == pa.timestamp("ns", getattr(dtype, "tz", None)) else "us"
        return column.cast(pa.timestamp(unit), safe=False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    return column.to_pylist()  # type: ignore[no-any-return]


def pyarrow_parquet(path: Path) -> Any:
    """Return the module that reads and writes Parquet."""
    try:
        from pyarrow import parquet
    except ImportError as exc:
        raise MissingExtraError(
            f"{path} is a Parquet file, and pyarrow is not installed.",
            fix="Install it: pip install 'stepwell[arrow]' (with the launcher: STEPWELL_EXTRAS=arrow ./stepwell ..), "
            "or convert the file to CSV.",
        ) from exc
    return parquet
