"""`Spooled`: the tensors of a large run, on disk until one of them is looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

_LARGE_RUN = 2**24
"""Bytes of a run from which on its large tensors are written to disk; below, time is worth more than memory."""

_LARGE = 2**14
"""Bytes of a large tensor."""


def spooled(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the same values: of a large run, the large ones are read from a temporary file when they are used."""
    sizes = {name: value.nbytes for name, value in values.items() if isinstance(value, np.ndarray)}
    return values if sum(sizes.values()) < _LARGE_RUN else Spooled(values)


class Spooled(Mapping[str, Any]):
    """Values by name, of which large arrays lie in a file without a name, which ends with this object."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        """Write the large arrays."""
        self._file = tempfile.TemporaryFile(prefix="stepwell-")  # noqa: SIM115  # open as long as this object
        self._values: dict[str, Any] = {}
        self._places: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
        for name, value in values.items():
            is_large = isinstance(value, np.ndarray) and value.nbytes >= _LARGE and value.dtype.kind in "fiub"
            if is_large:
                self._places[name] = value.dtype, value.shape, self._file.tell()
                np.ascontiguousarray(value).tofile(self._file)
            self._values[name] = None if is_large else value
        self._file.flush()

    def __getitem__(self, name: str) -> Any:
        """Return a value."""
        if name not in self._places:
            return self._values[name]
        dtype, shape, start = self._places[name]
        return np.memmap(self._file, dtype, "r", start, shape)

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return how many values there are."""
        return len(self._values)
