"""`NpzRecording`: arrays `(N, T, ..)` of N streams in an NPZ file, read a few streams at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from stepwell.addons.recorded.column_choice import ColumnChoice
from stepwell.addons.recorded.errors import RecordedDataError
from stepwell.addons.recorded.tables import PIECE_ROWS
from stepwell.addons.recorded.values import cast, times
from stepwell_client.input_columns import ColumnsError, input_columns
from stepwell_client.wire.texts import listed
from stepwell_export.runtime.files import NPZ_ERRORS
from stepwell_export.runtime.manifest import Array, InputSpec

_STREAMS = "streams"


class NpzRecording:
    """The arrays of a model's inputs: `x:NAME` or `NAME`, or one array for each number of a row, as named columns.

    `(N, T, ..)` has N streams, which the file's array `streams` names, else their index from 0; `(T, ..)` is one
    stream, or a table if an array names the stream of each row.

    Attributes:
        path: The file.
        streams: The stream ids, N; of a table one for each row.
        length: T; of a table 1.
    """

    def __init__(self, path: Path, specs: Sequence[InputSpec], choice: ColumnChoice) -> None:
        """Read the shapes.

        Raises:
            ColumnsError: An array is missing or has another shape.
            RecordedDataError: The file cannot be read.
        """
        self.path, self._specs, self._choice = path, specs, choice
        self._members: dict[str, list[str]] = {}
        leads: dict[str, tuple[int, int]] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                self._arrays = names
                for spec in specs:
                    self._members[spec.name] = members = _members(spec, choice, names, path)
                    row = spec.row_shape if spec.name not in choice.inputs and len(members) == 1 else ()
                    for name in members:
                        with archive.open(f"{name}.npy") as file:
                            leads[name] = _lead(name, _header(file)[0], row, path)
                self._time = choice.time if choice.time in names else None
                if self._time is not None:
                    with archive.open(f"{self._time}.npy") as file:
                        leads[self._time] = _lead(self._time, _header(file)[0], (), path)
                listed_streams = _streams_of(archive, choice, path)
        except NPZ_ERRORS as exc:
            raise _unreadable(path, exc) from exc
        if len(set(leads.values())) != 1:
            raise RecordedDataError(
                f"The arrays of {path} have {', '.join(f'{name}: N, T = {lead}' for name, lead in leads.items())}; "
                "expected the same for all.",
            )
        n_streams, self.length = next(iter(leads.values()))
        if n_streams == 1 and listed_streams is not None and len(listed_streams) == self.length:
            n_streams, self.length = self.length, 1
        self.streams = [str(n) for n in range(n_streams)] if listed_streams is None else listed_streams
        if len(self.streams) != n_streams:
            raise RecordedDataError(
                f"{path} names {len(self.streams)} streams in {choice.stream or _STREAMS!r} and has {n_streams}."
            )

    def check_time(self) -> None:
        """Check that the file has the array of the times.

        Raises:
            ColumnsError: It has not.
        """
        if self._time is None:
            raise ColumnsError(
                f"{self.path} has no array {self._choice.time!r} with the times; it has {listed(self._arrays)}.",
                fix="Name one of these with --time-column.",
            )

    def pieces(self) -> Iterator[tuple[list[str], Array | None, dict[str, Array]]]:
        """Yield some streams, the times of their rows, `(streams * T,)`, and their inputs, `(streams, T, *row)` each.

        Raises:
            RecordedDataError: A value is missing or does not fit, or the file is damaged.
        """
        at_once = max(1, PIECE_ROWS // max(self.length, 1))
        with zipfile.ZipFile(self.path) as archive, ExitStack() as stack:
            names = [*chain(*self._members.values()), *([] if self._time is None else [self._time])]
            readers = {name: _RowReader(stack.enter_context(archive.open(f"{name}.npy"))) for name in set(names)}
            for start in range(0, len(self.streams), at_once):
                streams = self.streams[start : start + at_once]
                count, first = len(streams) * self.length, start * self.length
                widths = {self._time: 1} if self._time is not None else {}
                for spec in self._specs:
                    members = self._members[spec.name]
                    widths |= dict.fromkeys(members, spec.row_size // len(members))
                try:
                    read = {name: readers[name].read(count * n).reshape(count, n) for name, n in widths.items() if name}
                except NPZ_ERRORS as exc:
                    raise _unreadable(self.path, exc) from exc
                arrays = {}
                for spec in self._specs:
                    members = self._members[spec.name]
                    values = np.concatenate([read[name] for name in members], axis=1)
                    columns = members if len(members) == spec.row_size else [
                        f"{members[0]}[{n}]" for n in range(spec.row_size)
                    ]  # fmt: skip
                    rows = cast(values, spec, columns, str(self.path), first)
                    arrays[spec.name] = rows.reshape(len(streams), self.length, *spec.row_shape)
                at = None
                if self._time is not None:
                    where = f"{self.path}, array {self._time!r}"
                    at = times(read[self._time][:, 0], where, first, self._choice.time_unit)
                yield streams, at, arrays


class _RowReader:
    """Reads the numbers of one array in C order, without the rest of the array in memory."""

    def __init__(self, file: IO[bytes]) -> None:
        shape, fortran, self._dtype = _header(file)
        self._file = file
        self._whole: Array | None = None
        self._at = 0
        if fortran and len(shape) > 1:  # its numbers are not in the order of time
            raw = np.frombuffer(file.read(), self._dtype)
            self._whole = np.ascontiguousarray(raw.reshape(shape, order="F")).reshape(-1)

    def read(self, count: int) -> Array:
        if self._whole is not None:
            self._at += count
            return self._whole[self._at - count : self._at]
        values = np.frombuffer(self._file.read(count * self._dtype.itemsize), self._dtype)
        return values.astype(self._dtype.newbyteorder("="), copy=False)


def _unreadable(path: Path, reason: Exception) -> RecordedDataError:
    return RecordedDataError(f"{path} is not an NPZ file: {reason}.", fix="Write it with numpy.savez.")


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    shape, fortran, dtype = npy.read_array_header_1_0(file) if version == (1, 0) else npy.read_array_header_2_0(file)
    if dtype.kind not in "biufMUS":
        raise ValueError(f"an array of dtype {dtype}")
    return shape, fortran, dtype


def _read_streams(archive: zipfile.ZipFile, name: str, path: Path) -> list[str] | None:
    """Return the stream ids that an array has; None: there is no array `streams`."""
    if f"{name}.npy" not in archive.namelist():
        if name == _STREAMS:
            return None
        arrays = [member.removesuffix(".npy") for member in archive.namelist()]
        raise ColumnsError(f"{path} has no array {name!r}; it has {listed(arrays)}.", fix="Name one of these.")
    with archive.open(f"{name}.npy") as file:
        array = npy.read_array(file, allow_pickle=False)
    if array.dtype.kind not in "iuSU" or array.ndim != 1:
        raise RecordedDataError(
            f"{path}, array {name!r}: it has the shape {array.shape} and values of {array.dtype}; expected a list of "
            "stream ids, which are texts or integers.",
            fix="Write the ids as texts.",
        )
    return [one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]


def _streams_of(archive: zipfile.ZipFile, choice: ColumnChoice, path: Path) -> list[str] | None:
    """Return the ids of the streams or rows that arrays have; None: no array has them."""
    template = choice.template
    if template is None:
        return _read_streams(archive, choice.stream or _STREAMS, path)
    columns = [_read_streams(archive, name, path) for name in template.names]
    missing = [name for name, column in zip(template.names, columns, strict=True) if column is None]
    if missing:
        raise RecordedDataError(f"{path} has no array {', '.join(missing)}, which {template.text!r} names.")
    try:
        return [template.fill(row) for row in zip(*filter(None, columns), strict=True)]
    except ValueError as exc:
        raise RecordedDataError(f"{path}: {exc}.") from exc


def _members(spec: InputSpec, choice: ColumnChoice, names: Sequence[str], path: Path) -> list[str]:
    """Return the arrays of an input: one with whole rows, or one for each number of a row."""
    if spec.name not in choice.inputs:
        for name in (f"x:{spec.name}", spec.name):
            if name in names:
                return [name]
    try:
        named = {name: columns for name, columns in choice.inputs.items() if name == spec.name}
        return input_columns([spec], names, named, where=str(path))[spec.name]
    except ColumnsError as exc:
        if spec.name in choice.inputs:
            raise
        raise ColumnsError(
            f"{path} has no array 'x:{spec.name}'; it has {listed(names)}.",
            fix=f"Name the arrays x:INPUT, shape (N, T, ..), or the arrays of the input's numbers, in order: "
            f"--input {spec.name}=ARRAY,ARRAY.",
        ) from exc


def _lead(name: str, shape: tuple[int, ...], row_shape: tuple[int, ...], path: Path) -> tuple[int, int]:
    """Return N and T."""
    for axes in (2, 1):
        if shape[axes:] == row_shape and len(shape) == axes + len(row_shape):
            return (shape[0], shape[1]) if axes == 2 else (1, shape[0])
    row = "".join(f", {n}" for n in row_shape)
    raise ColumnsError(f"The array {name!r} of {path} has shape {shape}; expected (N, T{row}) or (T{row}).")
