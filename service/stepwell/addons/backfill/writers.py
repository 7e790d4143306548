"""The formats of a file of predictions: CSV, Parquet and NPZ."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from stepwell.addons.backfill.partial_predictions import BackfillError, PartialPredictionsFile
from stepwell.addons.recorded.tables import pyarrow_parquet
from stepwell_export.runtime.manifest import Array

_FORMATS = {2: "%.5g", 4: "%.9g", 8: "%.17g"}  # exact for floats of so many bytes


def write_csv(path: Path, predictions: PartialPredictionsFile, streams: Array) -> None:
    """Write a line per row; what is not known is empty."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(predictions.columns)
        for part in predictions.parts():
            steps = [step or "" for step in predictions.steps_of(part).tolist()]
            columns = [_texts(column) for column in predictions.numbers_of(part)]
            writer.writerows(zip(streams[predictions.streams_of(part)].tolist(), steps, *columns, strict=True))


def write_parquet(path: Path, predictions: PartialPredictionsFile, streams: Array) -> None:
    """Write a table with a dictionary of stream ids; what is not known is null."""
    parquet = pyarrow_parquet(path)
    import pyarrow as pa

    ids = pa.array(streams.tolist(), pa.string())
    kinds = [pa.from_numpy_dtype(dtype) for dtype in predictions.dtypes()]
    stream = pa.dictionary(pa.int32(), pa.string())
    kinds_by_name = zip(predictions.columns, [stream, pa.int64(), *kinds], strict=True)
    schema = pa.schema([pa.field(name, kind) for name, kind in kinds_by_name])
    with parquet.ParquetWriter(path, schema) as writer:
        for part in predictions.parts():
            steps = predictions.steps_of(part)
            columns = [
                pa.DictionaryArray.from_arrays(pa.array(predictions.streams_of(part)), ids),
                pa.array(steps, mask=steps == 0),
                *(pa.array(each.data, mask=each.mask) for each in _masked(predictions, part)),
            ]
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def write_npz(path: Path, predictions: PartialPredictionsFile, streams: Array) -> None:
    """Write an array per column; a float that is not known is NaN, an integer 0."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:

        def write(name: str, dtype: np.dtype[Any], parts: Iterator[Array]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                described = {
                    "descr": npy.dtype_to_descr(dtype), "fortran_order": False, "shape": (len(predictions),)
                }  # fmt: skip
                npy.write_array_header_1_0(file, described)
                for part in parts:
                    file.write(part.astype(dtype, copy=False).tobytes())

        parts = list(predictions.parts())
        write("stream", streams.dtype, (streams[predictions.streams_of(part)] for part in parts))
        write("step", np.dtype(np.int64), (predictions.steps_of(part) for part in parts))
        for i, (name, dtype) in enumerate(zip(predictions.columns[2:], predictions.dtypes(), strict=True)):
            write(name, dtype, (_filled(predictions.numbers_of(part)[i]) for part in parts))


_WRITERS: dict[str, Callable[[Path, PartialPredictionsFile, Array], None]] = {
    ".csv": write_csv,
    ".parquet": write_parquet,
    ".npz": write_npz,
}


def writer_of(path: Path) -> Callable[[Path, PartialPredictionsFile, Array], None]:
    """Return the function that writes the format of a file's ending.

    Raises:
        BackfillError: The ending has no format.
        MissingExtraError: The format needs pyarrow, which is not installed.
    """
    ending = path.suffix.lower()
    if ending not in _WRITERS:
        raise BackfillError(f"{path} has the ending {ending!r}; expected one of {', '.join(_WRITERS)}.")
    if ending == ".parquet":
        pyarrow_parquet(path)
    return _WRITERS[ending]


def _masked(predictions: PartialPredictionsFile, part: Array) -> Iterator[Any]:
    for column in predictions.numbers_of(part):
        yield np.ma.masked_array(np.ascontiguousarray(column.data), np.ma.getmaskarray(column))


def _filled(column: Any) -> Array:
    filled: Array = column.filled(np.nan if column.dtype.kind == "f" else 0)
    return filled


def _texts(column: Any) -> list[str]:
    values, unknown = column.data, np.ma.getmaskarray(column)
    if values.dtype.kind == "f":
        pattern = _FORMATS[values.dtype.itemsize]
        texts = [pattern % value for value in values.tolist()]
    else:
        texts = [str(value) for value in values.tolist()]
    if unknown.any():
        for i in np.flatnonzero(unknown):
            texts[i] = ""
    return texts
