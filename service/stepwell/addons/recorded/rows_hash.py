"""`RowsHash`: the identity of rows by their values, the same for every format and every division into files."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from itertools import islice

import numpy as np

from stepwell.addons.recorded.blocks import Rows
from stepwell_export.runtime.manifest import Array

_ID_BYTES = 16


class RowsHash:
    """SHA-256 of rows in order: of each its stream's id, its time if there is one, and its inputs by name.

    A missing value is one NaN, whatever its bits were; numbers are little-endian in the dtypes of the model's inputs.

    Attributes:
        count: The rows that were added.
    """

    def __init__(self) -> None:
        self.count = 0
        self._sha = hashlib.sha256()
        self._ids = np.empty((0, _ID_BYTES), np.uint8)

    def add(self, rows: Rows, streams: Collection[str]) -> None:
        """Add consecutive rows.

        Args:
            rows: The rows.
            streams: The ids of all streams that were read so far, in the order of their codes.
        """
        if len(streams) > len(self._ids):
            names = islice(streams, len(self._ids), None)
            new = b"".join(hashlib.blake2b(name.encode(), digest_size=_ID_BYTES).digest() for name in names)
            self._ids = np.concatenate([self._ids, np.frombuffer(new, np.uint8).reshape(-1, _ID_BYTES)])
        parts = [self._ids[rows.codes]]
        parts += [] if rows.times is None else [_row_bytes(rows.times)]
        parts += [_row_bytes(rows.inputs[name]) for name in sorted(rows.inputs)]
        self._sha.update(np.concatenate(parts, axis=1).tobytes())
        self.count += len(rows)

    @property
    def source_id(self) -> str:
        """The id under which the service keeps how far a stream has these rows: `rows:COUNT:SHA-256`."""
        return f"rows:{self.count}:{self._sha.hexdigest()}"


def _row_bytes(values: Array) -> Array:
    """Return the bytes of each row, `(rows, bytes)` uint8."""
    flat = values.reshape(len(values), -1)
    flat = np.ascontiguousarray(flat, flat.dtype.newbyteorder("<"))
    if flat.dtype.kind == "f" and np.isnan(flat).any():
        flat = np.where(np.isnan(flat), np.array(np.nan, flat.dtype), flat)
    return flat.view(np.uint8).reshape(len(flat), flat.shape[1] * flat.dtype.itemsize)
