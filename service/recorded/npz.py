"""`NpzRecording`: arrays `(N, T, ..)` of N streams in an NPZ file, read a few streams at a time."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from model_export.manifest import Array, InputSpec
from model_export.runtime.npz import NPZ_ERRORS
from service.recorded.errors import ColumnsError, RecordedDataError, listed
from service.recorded.tables import PIECE_ROWS
from service.recorded.values import cast

_STREAMS = "streams"


class NpzRecording:
    """The arrays of a model's inputs, `x:NAME` or `NAME`; `(T, ..)` is one stream.

    The streams are named by the file's array `streams`, else by their index from 0.

    Attributes:
        path: The file.
        streams: The stream ids, N.
        length: T.
    """

    def __init__(self, path: Path, specs: Sequence[InputSpec]) -> None:
        """Read the shapes.

        Raises:
            ColumnsError: The array of an input is missing or has another shape.
            RecordedDataError: The file cannot be read.
        """
        self.path, self._specs = path, specs
        self._members: dict[str, str] = {}
        leads: dict[str, tuple[int, int]] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                names = [name.removesuffix(".npy") for name in archive.namelist()]
                for spec in specs:
                    self._members[spec.name] = _member(spec, names, path)
                    with archive.open(self._members[spec.name]) as file:
                        leads[spec.name] = _lead(spec, _header(file)[0], path)
                listed_streams = _read_streams(archive) if _STREAMS in names else None
        except NPZ_ERRORS as exc:
            raise _unreadable(path, exc) from exc
        if len(set(leads.values())) != 1:
            raise RecordedDataError(
                f"The arrays of {path} have {', '.join(f'{name}: N, T = {lead}' for name, lead in leads.items())}; "
                "expected the same for all inputs.",
            )
        n_streams, self.length = next(iter(leads.values()))
        self.streams = [str(n) for n in range(n_streams)] if listed_streams is None else listed_streams
        if len(self.streams) != n_streams:
            raise RecordedDataError(f"{path} names {len(self.streams)} streams in {_STREAMS!r} and has {n_streams}.")

    def pieces(self) -> Iterator[tuple[list[str], dict[str, Array]]]:
        """Yield some streams and their inputs, `(streams, T, *row)` each.

        Raises:
            RecordedDataError: A value is missing or does not fit, or the file is damaged.
        """
        at_once = max(1, PIECE_ROWS // max(self.length, 1))
        with zipfile.ZipFile(self.path) as archive, ExitStack() as stack:
            readers = {
                name: _RowReader(stack.enter_context(archive.open(member))) for name, member in self._members.items()
            }
            for start in range(0, len(self.streams), at_once):
                streams = self.streams[start : start + at_once]
                count = len(streams) * self.length
                arrays = {}
                for spec in self._specs:
                    try:
                        values = readers[spec.name].read(count * spec.row_size).reshape(count, spec.row_size)
                    except NPZ_ERRORS as exc:
                        raise _unreadable(self.path, exc) from exc
                    names = [f"{self._members[spec.name].removesuffix('.npy')}[{n}]" for n in range(spec.row_size)]
                    rows = cast(values, spec, names, str(self.path), start * self.length)
                    arrays[spec.name] = rows.reshape(len(streams), self.length, *spec.row_shape)
                yield streams, arrays


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
    if dtype.kind not in "biufUS":
        raise ValueError(f"an array of dtype {dtype}")
    return shape, fortran, dtype


def _read_streams(archive: zipfile.ZipFile) -> list[str]:
    with archive.open(f"{_STREAMS}.npy") as file:
        array = npy.read_array(file, allow_pickle=False)
    return [one.decode() if isinstance(one, bytes) else str(one) for one in array.tolist()]


def _member(spec: InputSpec, names: Sequence[str], path: Path) -> str:
    for name in (f"x:{spec.name}", spec.name):
        if name in names:
            return f"{name}.npy"
    raise ColumnsError(
        f"{path} has no array 'x:{spec.name}'; it has {listed(names)}.",
        fix="Name the arrays x:INPUT, shape (N, T, ..).",
    )


def _lead(spec: InputSpec, shape: tuple[int, ...], path: Path) -> tuple[int, int]:
    """Return N and T."""
    for axes in (2, 1):
        if shape[axes:] == spec.row_shape and len(shape) == axes + len(spec.row_shape):
            return (shape[0], shape[1]) if axes == 2 else (1, shape[0])
    row = "".join(f", {n}" for n in spec.row_shape)
    raise ColumnsError(
        f"The array of input {spec.name!r} in {path} has shape {shape}; expected (N, T{row}) or (T{row})."
    )
