"""`read_npz`: the arrays of an `.npz` file, of which no value is trusted."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib.npyio import NpzFile

from stepwell_export.runtime.errors import TensorError
from stepwell_export.runtime.manifest import Array

NPZ_ERRORS: Final = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Raised by what reads a file that is no `.npz`, that was cut off or damaged, or that is encrypted."""


def read_npz(path: Path) -> dict[str, Array]:
    """Return the arrays of an `.npz` file by name.

    Raises:
        TensorError: It cannot be read, or has arrays of Python objects.
    """
    try:
        with path.open("rb") as file, NpzFile(file, allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except NPZ_ERRORS as exc:
        raise TensorError(f"{path} cannot be read as .npz: {exc}.", fix="Write it with numpy.savez.") from exc
