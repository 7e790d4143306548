"""Tables in CSV and Parquet files, read in pieces."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from model_export.errors import MissingExtraError
from service.recorded.errors import RecordedDataError
from service.recorded.values import Cells

PIECE_ROWS = 32_768
"""Rows that are read at a time."""


class Table(Protocol):
    """A file with named columns.

    Attributes:
        path: The file.
        columns: The names of its columns.
    """

    path: Path
    columns: Sequence[str]

    def pieces(self, columns: Sequence[str]) -> Iterator[Mapping[str, Cells]]:
        """Yield some columns of consecutive rows, at most `PIECE_ROWS` at a time.

        Raises:
            RecordedDataError: The file cannot be read.
        """
        ...


class CsvTable:
    """A CSV file whose first line has the names of its columns; cells are texts."""

    def __init__(self, path: Path) -> None:
        """Read the names.

        Raises:
            RecordedDataError: The file cannot be read, or a name is there twice.
        """
        self.path = path
        with self._reading(), path.open(newline="", encoding="utf-8-sig") as file:
            self.columns: Sequence[str] = [name.strip() for name in next(csv.reader(file), [])]
        if not self.columns or len(set(self.columns)) != len(self.columns):
            found = "no names" if not self.columns else f"the names {', '.join(self.columns)}, some of them twice"
            raise RecordedDataError(
                f"The first line of {path} has {found}; expected a different name for each column.",
                fix="Put a line with the names of the columns first.",
            )

    def pieces(self, columns: Sequence[str]) -> Iterator[Mapping[str, Cells]]:
        """Yield some columns of consecutive rows; see `Table`."""
        at = {name: self.columns.index(name) for name in columns}
        width, first = {len(self.columns)}, 0
        with self._reading(), self.path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            next(reader, None)
            while read := list(islice(reader, PIECE_ROWS)):
                rows = [row for row in read if row]  # blank lines
                if rows and set(map(len, rows)) != width:
                    row, cells = next((i, row) for i, row in enumerate(rows) if len(row) != len(self.columns))
                    raise RecordedDataError(
                        f"{self.path}, row {first + row + 1}: found {len(cells)} cells; expected "
                        f"{len(self.columns)}, as in the first line.",
                        fix="Correct this row.",
                    )
                if rows:
                    by_column = list(zip(*rows, strict=True))
                    yield {name: by_column[i] for name, i in at.items()}
                first += len(rows)

    def _reading(self) -> _Reading:
        return _Reading(self.path, (csv.Error, UnicodeDecodeError), "a CSV file in UTF-8")


class ParquetTable:
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

    def pieces(self, columns: Sequence[str]) -> Iterator[Mapping[str, Cells]]:
        """Yield some columns of consecutive rows; see `Table`."""
        with self._reading(), self._parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(PIECE_ROWS, columns=list(dict.fromkeys(columns))):
                yield {name: _cells(batch.column(name)) for name in columns}

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


def _cells(column: Any) -> Cells:
    """Return a column of an Arrow batch as an array of numbers or dates, or as a list."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        if column.null_count:
            return column.cast(pa.float64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
        return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return column.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
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
