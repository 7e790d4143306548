"""`RecordedData`: the timesteps of many streams in some files, as arrays of consecutive rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwell.addons.recorded.blocks import Rows
from stepwell.addons.recorded.column_choice import ColumnChoice
from stepwell.addons.recorded.errors import RecordedDataError
from stepwell.addons.recorded.npz import NpzRecording
from stepwell.addons.recorded.row_rules import RowRules, missing_name
from stepwell.addons.recorded.rows_hash import RowsHash
from stepwell.addons.recorded.tables import CsvFile, Kind, ParquetFile
from stepwell.addons.recorded.values import Categories, cast, integers, numbers, present, times
from stepwell_client.input_columns import check_named
from stepwell_client.wire.ids import is_stream_id
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import Array, InputSpec

_TABLES: dict[str, type[CsvFile | ParquetFile]] = {".csv": CsvFile, ".parquet": ParquetFile, ".pq": ParquetFile}
_ENDINGS = (*_TABLES, ".npz")
KEPT_BYTES = 64 << 20
"""Memory of the rows of a recording that is parsed once."""


class _Codes(dict[str, int]):
    """Numbers the streams in the order in which they appear."""

    def __missing__(self, stream: str) -> int:
        self[stream] = code = len(self)
        return code


class RecordedData:
    """Timesteps of many streams; memory does not grow with the files.

    Attributes:
        files: The files, in the order in which they are read; the rows count on over them.
        streams: The code of each stream by its id, from 0 in the order of appearance; complete once all was read.
        source_id: Identifies the rows by their values: `rows:COUNT:SHA-256`, and with rules their suffix; empty until
            `check` has read them.
        n_late: Rows that are left out, since newer ones of their streams go on before them; known once all was read.
        n_left_out: Rows that are left out, since their time is before 1970, or their tick has no value of an input.
        rules: How rows become timesteps, by their times; None: each row is one.
    """

    def __init__(
        self, files: Sequence[Path], specs: Sequence[InputSpec], choice: ColumnChoice, rules: RowRules | None = None
    ) -> None:
        """Read what the files have, not their rows; use `open_data`.

        Raises:
            ColumnsError: A column or an array is missing.
            MissingExtraError: A package that a format needs is not installed.
            RecordedDataError: A file cannot be read.
        """
        self.files = list(files)
        self.streams: dict[str, int] = _Codes()
        self.n_late = 0
        self.n_left_out = 0
        self.rules = rules
        self._model_specs = specs
        if rules is not None:
            rules.columns(specs)
            specs = rules.read_specs(specs)
        self._rows: list[Rows] | None = None  # with rules: as they are in the files
        self._beginnings: dict[int, Rows] = {}
        self._specs = specs
        self._choice = choice
        self._kept: list[Rows] | None = None
        self.source_id = ""
        check_named(specs, choice.inputs)
        for file in self.files:
            if file.suffix.lower() == ".npz":
                recording = NpzRecording(file, specs, choice)
                if rules is not None:
                    recording.check_time()
            else:
                table = _TABLES[file.suffix.lower()](file)
                choice.input_columns(specs, table.columns, str(file))

    def read(self) -> Iterator[Rows]:
        """Yield consecutive rows, all of them in the order of the files; with rules the timesteps that they became.

        Raises:
            RecordedDataError: A file cannot be read, or a value does not fit.
        """
        if self._kept is None and self.rules is not None:
            self.check()
        yield from self._read_files() if self._kept is None else self._kept

    def _read_files(self) -> Iterator[Rows]:
        first = 0
        for file in self.files:
            for codes, at, inputs in self._parts(file):
                yield Rows(codes, np.arange(first, first + len(codes)), inputs, at)
                first += len(codes)

    def check(self, advance: Callable[[int], None] = lambda _rows: None) -> int:
        """Read everything once, and return the number of timesteps.

        What is small is kept, so that `read` parses nothing.

        Args:
            advance: Called with the number of rows that were read since the last call.

        Raises:
            RecordedDataError: A stream is not sorted by time, or as for `read`.
        """
        newest, found = np.empty(0), RowsHash()
        kept: list[Rows] | None = []
        for rows in self._read_files():
            if kept is not None:
                kept.append(rows)
                is_small = self.rules is not None or sum(one.nbytes for one in kept) <= KEPT_BYTES
                kept = kept if is_small else None
            if rows.times is not None and self.rules is None:
                newest = np.append(newest, np.full(len(self.streams) - len(newest), -np.inf))
                self._check_order(rows, newest)
            found.add(rows, self.streams)
            advance(len(rows))
        if not found.count:
            raise RecordedDataError(f"{', '.join(map(str, self.files))}: there are no rows.")
        self._kept, self.source_id = kept, found.source_id
        if self.rules is None:
            return found.count
        assert kept is not None
        made = self.rules.apply(kept, self._model_specs)
        self._rows, self._kept = kept, [made.rows]
        self.source_id += self.rules.suffix
        self.n_late, self.n_left_out = made.n_late, made.n_left_out
        if not len(made.rows):
            raise RecordedDataError(
                f"None of {counted(found.count, 'row')} is a timestep: their times are before 1970, or their ticks "
                "have no value of an input.",
                fix="Check --time-unit; or give --fill zero, or rows with all inputs.",
            )
        return len(made.rows)

    def check_stream_ids(self) -> None:
        """Check that the streams that were read have ids which a service takes.

        Raises:
            RecordedDataError: It names the first row with another one.
        """
        wrong = next((code for stream, code in self.streams.items() if not is_stream_id(stream)), None)
        if wrong is None:
            return
        where = ""
        for file in self.files:
            first = 0
            for codes, _, _ in self._parts(file):
                if not where and (codes == wrong).any():
                    where = f"{file}, row {first + int(np.argmax(codes == wrong)) + 1}"
                first += len(codes)
        stream = list(self.streams)[wrong]
        raise RecordedDataError(
            f"{where}: {stream[:140]!a} is not a stream id; expected 1 to 128 of A-Z a-z 0-9 . _ : @ -. "
            "Nothing was sent.",
            fix="Name another --stream-column, or rename the stream.",
        )

    def source_ids_of_beginnings(self, counts: Collection[int]) -> set[str]:
        """Return the `source_id` of the first rows of the files, for some numbers of them.

        Raises:
            RecordedDataError: A file cannot be read.
        """
        ends, found, ids = sorted(counts, reverse=True), RowsHash(), set[str]()
        suffix = "" if self.rules is None else self.rules.suffix
        for rows in self.read() if self._rows is None else self._rows:
            rest = rows
            while ends and (missing := ends[-1] - found.count) <= len(rest):
                found.add(rest.where(slice(missing)), self.streams)
                ids.add(found.source_id + suffix)
                rest = rest.where(slice(missing, None))
                ends.pop()
            if not ends:
                break
            found.add(rest, self.streams)
        return ids

    def end_after_beginning(self, count: int, stream: str, position: int) -> int | None:
        """Return the position behind the timesteps that a stream has of a run over the first rows of the files.

        Args:
            count: How many rows that run had.
            stream: The stream.
            position: The position of its newest timestep in that run.

        Returns:
            A position in this data; None: by the rules, rows that followed change timesteps that the stream has.
        """
        if self.rules is None:
            return position + 1
        if count not in self._beginnings:
            first = self.rules.apply(_first(self._rows or (), count), self._model_specs)
            self._beginnings[count] = first.rows
        before, [now] = self._beginnings[count], self.read()
        code = self.streams[stream]
        had = before.where((before.codes == code) & (before.positions <= position))
        has = now.where(np.flatnonzero(now.codes == code)[: len(had)])
        if not _are_equal(had, has):
            return None
        return int(has.positions[-1]) + 1 if len(has) else 0

    def _check_order(self, rows: Rows, newest: Array) -> None:
        """Check that the times of each stream do not decrease; `newest` has the last time of each."""
        assert rows.times is not None
        order = np.argsort(rows.codes, kind="stable")
        codes, at = rows.codes[order], rows.times[order]
        before = np.concatenate([[-np.inf], at[:-1]])
        starts = np.concatenate([[True], codes[1:] != codes[:-1]])
        before[starts] = newest[codes[starts]]
        wrong = at < before
        if wrong.any():
            i = int(np.argmax(wrong))
            stream = list(self.streams)[codes[i]]
            raise RecordedDataError(
                f"Stream {stream!r} is not sorted by {self._choice.time!r}: row {rows.positions[order[i]] + 1} has "
                f"{at[i]:.15g} after {before[i]:.15g}.",
                fix="Sort the rows of each stream by time, and the files by their order in the command.",
            )
        ends = np.concatenate([codes[1:] != codes[:-1], [True]])
        newest[codes[ends]] = at[ends]

    def _parts(self, file: Path) -> Iterator[tuple[Array, Array | None, dict[str, Array]]]:
        return self._arrays(file) if file.suffix.lower() == ".npz" else self._table(file)

    def _table(self, file: Path) -> Iterator[tuple[Array, Array | None, dict[str, Array]]]:
        table = _TABLES[file.suffix.lower()](file)
        choice, where, first = self._choice, str(file), 0
        by_input = choice.input_columns(self._specs, table.columns, where)
        time_kind: Kind = "i8" if choice.time_unit == "ns" else "f8"  # nanoseconds since 1970 are no float64
        kinds: dict[str, Kind] = {choice.time: time_kind} if choice.time is not None else {}
        for spec in self._specs:
            for name in by_input[spec.name]:
                kind: Kind = "i8" if np.dtype(spec.dtype).kind in "iu" else "f8"
                kinds[name] = kind if kinds.get(name, kind) == kind else "U"
        kinds |= dict.fromkeys(choice.stream_columns, "id")
        for cells in table.pieces(kinds):
            n_rows = len(next(iter(cells.values())))
            codes = self._codes(self._ids(cells, file, first), n_rows)
            at = None
            if choice.time is not None:
                at = times(cells[choice.time], f"{where}, column {choice.time!r}", first, choice.time_unit)
            inputs = {}
            for spec in self._specs:
                read = integers if np.dtype(spec.dtype).kind in "iu" else numbers
                names = by_input[spec.name]
                if read is integers and self.rules is not None and self.rules.every:
                    found = [present(cells[name]) for name in names]
                    inputs[missing_name(spec.name)] = np.any([missing for _, missing in found], axis=0)
                    columns = [filled for filled, _ in found]
                else:
                    columns = [cells[name] for name in names]
                columns = [
                    read(column, f"{where}, column {name!r}", first)
                    for name, column in zip(names, columns, strict=True)
                ]
                inputs[spec.name] = cast(np.stack(columns, axis=1), spec, names, where, first)
            yield codes, at, inputs
            first += n_rows

    def _ids(self, cells: Mapping[str, Any], file: Path, first: int) -> Sequence[object] | Array | Categories:
        """Return the id of each row's stream; of a file that is one stream, its id."""
        template, columns = self._choice.template, self._choice.stream_columns
        if template is None:
            return cells[columns[0]] if columns else [file.stem]
        rows = list(zip(*(_texts(cells[name]) for name in columns), strict=True))
        known: dict[tuple[str, ...], str] = {}
        for number, row in enumerate(rows):
            if row not in known:
                try:
                    known[row] = template.fill(row)
                except ValueError as exc:
                    raise RecordedDataError(f"{file}, row {first + number + 1}: {exc}.") from exc
        return [known[row] for row in rows]

    def _arrays(self, file: Path) -> Iterator[tuple[Array, Array | None, dict[str, Array]]]:
        recording = NpzRecording(file, self._specs, self._choice)
        for streams, at, arrays in recording.pieces():
            codes = np.repeat(self._codes(streams, len(streams)), recording.length)
            yield codes, at, {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}

    def _codes(self, streams: Sequence[object] | Array, n_rows: int) -> Array:
        """Return the codes of stream ids, `(n_rows,)` int64; one id is that of all rows."""
        known = self.streams
        if isinstance(streams, Categories):
            present = np.unique(streams.indices)  # a dictionary may have texts of other rows
            codes = np.zeros(len(streams.texts), np.int64)
            codes[present] = [known[streams.texts[i]] for i in present]
            return codes[streams.indices]
        ids = streams.tolist() if isinstance(streams, np.ndarray) else streams
        codes = np.fromiter((known[str(one)] for one in ids), np.int64, len(ids))
        return np.broadcast_to(codes, n_rows) if len(ids) == 1 else codes


def _first(parts: Iterable[Rows], count: int) -> Iterator[Rows]:
    """Yield the first rows."""
    for rows in parts:
        if count <= 0:
            return
        yield rows.where(slice(count))
        count -= len(rows)


def _are_equal(one: Rows, other: Rows) -> bool:
    """Whether timesteps have the same times and values."""
    assert one.times is not None
    assert other.times is not None
    return np.array_equal(one.times, other.times) and all(
        np.array_equal(array, other.inputs[name], equal_nan=True) for name, array in one.inputs.items()
    )


def _texts(column: Any) -> list[str]:
    """Return a column of ids as texts."""
    if isinstance(column, Categories):
        return [column.texts[i] for i in column.indices]
    return [str(one) for one in (column.tolist() if isinstance(column, np.ndarray) else column)]


def open_data(
    paths: Sequence[Path], specs: Sequence[InputSpec], choice: ColumnChoice, rules: RowRules | None = None
) -> RecordedData:
    """Return the data of files and of folders of them.

    Args:
        paths: CSV, Parquet and NPZ files; of a folder those in it, in the order of their names.
        specs: The inputs that a timestep has.
        choice: The columns of tables; NPZ files need none.
        rules: How rows become timesteps, by their times; None: each row is one, in the order of the files.

    Raises:
        ColumnsError: A column or an array is missing.
        MissingExtraError: A package that a format needs is not installed.
        RecordedDataError: There is no file, or one cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.iterdir()) if path.is_dir() else [path]
        usable = [file for file in found if file.suffix.lower() in _ENDINGS and file.is_file()]
        if not usable:
            has = "is a folder without a recording" if path.is_dir() else "is no recording"
            what = has if path.exists() else "is not there"
            raise RecordedDataError(
                f"{path} {what}; expected {', '.join(_ENDINGS)}, or a folder with such files.", fix="Check the path."
            )
        files += usable
    return RecordedData(files, specs, choice, rules)
