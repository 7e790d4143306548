"""`PartialPredictionsFile`: every row's prediction, in a file that survives a kill and is renamed once it is whole."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stepwell_client.input_columns import prediction_columns
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Array, OutputSpec

_HEADER_BYTES = 4096
_MISSING, _KNOWN, _UNKNOWN, _LEFT_OUT = 0, 1, 2, 3
_PIECE_ROWS = 65_536


class BackfillError(StepwellError):
    """Recorded data could not be fed into all streams, or their predictions could not be written."""

    code = "backfill_failed"


class PartialPredictionsFile:
    """A slot of fixed size for each row of the data, in `OUT.partial`.

    A slot is marked as the last thing that is written to it, so a slot that is marked is whole. Rows with a marked slot
    are not sent again.

    Attributes:
        path: The file that is written at the end.
        columns: The names of its columns: `stream`, `step`, and those of the outputs.
    """

    def __init__(self, path: Path, n_rows: int, outputs: Sequence[OutputSpec], identity: Mapping[str, Any]) -> None:
        """Open the slots of an interrupted run, or make new ones.

        Args:
            path: The file that is written at the end.
            n_rows: Rows of the data.
            outputs: The model's outputs.
            identity: What makes the predictions those of this data and this model.

        Raises:
            BackfillError: They cannot be made, or are those of another run.
        """
        self.path = path
        self._outputs = list(outputs)
        self._partial = path.with_name(f"{path.name}.partial")
        row = [(f"o{n}", spec.dtype, (spec.row_size,)) for n, spec in enumerate(self._outputs)]
        slot = np.dtype([("mark", "u1"), ("stream", "<i4"), ("step", "<i8"), *row])
        header = json.dumps({"slot": slot.descr, "rows": n_rows, **identity}, sort_keys=True).encode()
        try:
            if self._partial.exists():
                self._check_header(header)
            elif path.exists():
                raise BackfillError(f"{path} exists.", fix="Give another name, or delete that file first.")
            else:
                _make(self._partial, header, _HEADER_BYTES + n_rows * slot.itemsize)
            with self._partial.open("r+b") as file:
                self._mapped = mmap.mmap(file.fileno(), 0)
            self._slots: Any = np.frombuffer(self._mapped, slot, n_rows, _HEADER_BYTES)
        except OSError as exc:
            raise BackfillError(f"{self._partial} cannot be written: {exc.strerror}.") from exc
        self._names = prediction_columns(self._outputs)
        self.columns = ["stream", "step", *(name for group in self._names for name in group)]

    def pending(self, positions: Array) -> Array:
        """Return a mask of the rows that have no prediction yet."""
        mask: Array = self._slots["mark"][positions] == _MISSING
        return mask

    def leave_out(self, positions: Array) -> None:
        """Leave rows out of the file: an earlier run, on the beginning of this data, applied them."""
        self._slots["mark"][positions] = _LEFT_OUT

    def write(
        self, positions: Array, codes: Array, last_steps: Array, unknown: Array, outputs: Mapping[str, Array]
    ) -> None:
        """Write the predictions of a chunk of each of some streams: see `PredictionSink.write`."""
        n_streams, length = positions.shape
        at = positions.ravel()
        steps = last_steps[:, None] - np.arange(length - 1, -1, -1)
        self._slots["stream"][at] = np.repeat(codes, length)
        self._slots["step"][at] = np.where(last_steps[:, None] > 0, steps, 0).ravel()
        for n, spec in enumerate(self._outputs):
            if spec.name in outputs:
                self._slots[f"o{n}"][at] = outputs[spec.name].reshape(len(at), -1)
        is_unknown = np.arange(length) < unknown[:, None]
        if not outputs:
            is_unknown = np.ones((n_streams, length), bool)
        self._slots["mark"][at] = np.where(is_unknown, _UNKNOWN, _KNOWN).ravel()  # the last thing

    def release_memory(self) -> None:
        """Unload what was written from this process's memory; the file has it."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def finish(self, streams: Sequence[str], write: Callable[[Path, PartialPredictionsFile, Array], None]) -> int:
        """Write the file and remove the slots; return the number of rows whose prediction is not known.

        Raises:
            BackfillError: The file cannot be written.
        """
        unwritten = self.path.with_name(f"{self.path.name}.unfinished")
        try:
            write(unwritten, self, np.array(streams, dtype=np.str_))
            with unwritten.open("rb") as file:
                os.fsync(file.fileno())
            unwritten.replace(self.path)
            self._partial.unlink()
        except OSError as exc:
            raise BackfillError(f"{self.path} cannot be written: {exc.strerror}.", fix="Run it again.") from exc
        return sum(int((self._slots["mark"][part] == _UNKNOWN).sum()) for part in self.parts())

    def __len__(self) -> int:
        return sum(map(len, self.parts()))

    def parts(self) -> Iterator[Array]:
        """Yield the rows of the file, some at a time."""
        for start in range(0, len(self._slots), _PIECE_ROWS):
            marks = self._slots["mark"][start : start + _PIECE_ROWS]
            yield start + np.flatnonzero(marks != _LEFT_OUT)
            self.release_memory()

    def streams_of(self, part: Array) -> Array:
        """Return the codes of the rows' streams."""
        codes: Array = self._slots["stream"][part]
        return codes

    def steps_of(self, part: Array) -> Array:
        """Return the rows' steps; 0 where it is not known."""
        steps: Array = self._slots["step"][part]
        return steps

    def numbers_of(self, part: Array) -> list[Any]:
        """Return the columns of the outputs as masked arrays; those that are not known are masked."""
        is_unknown = self._slots["mark"][part] == _UNKNOWN
        numbers = []
        for n, names in enumerate(self._names):
            values = self._slots[f"o{n}"][part]
            numbers += [np.ma.masked_array(values[:, i], is_unknown) for i in range(len(names))]
        return numbers

    def dtypes(self) -> list[np.dtype[Any]]:
        """Return the dtypes of the outputs' columns."""
        return [
            np.dtype(spec.dtype) for spec, names in zip(self._outputs, self._names, strict=True) for _ in names
        ]  # fmt: skip

    def _check_header(self, header: bytes) -> None:
        with self._partial.open("rb") as file:
            found = file.read(_HEADER_BYTES).rstrip(b"\0")
        if found != header:
            raise BackfillError(
                f"{self._partial} is from a run with other data, another model or other columns.",
                fix="Run that one again, or delete this file, or give another name.",
            )


def _make(path: Path, header: bytes, n_bytes: int) -> None:
    """Create a file of zeros behind a header; it gets its name once it has all of its bytes."""
    if len(header) > _HEADER_BYTES:
        raise BackfillError("The model has too many outputs for a file of predictions.")
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    with new.open("wb") as file:
        file.write(header.ljust(_HEADER_BYTES, b"\0"))
        file.truncate(n_bytes)
        if hasattr(os, "posix_fallocate"):  # so that a full disk is an error here, not a signal later
            os.posix_fallocate(file.fileno(), 0, n_bytes)
        os.fsync(file.fileno())
    new.replace(path)
