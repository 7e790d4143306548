"""Writes a file whole or not at all, and reads the arrays of an `.npz` file, of which no value is trusted."""

from __future__ import annotations

import os
import secrets
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.lib.npyio import NpzFile

from stepwell_export.runtime.errors import FileError, TensorError
from stepwell_export.runtime.manifest import Array, sidecar_of

_WAY_OUT = "Check the permissions and the free space there."


def check_target(path: Path) -> None:
    """Look whether a model file can be written, before the work that makes it.

    A folder that is missing is no obstacle: `write_atomically` makes it.

    Raises:
        FileError: It is a folder, is not named `.onnx`, or its folder cannot be written to.
    """
    if path.suffix != ".onnx":
        raise FileError(
            f"The output is {path}; expected a name that ends in .onnx.", fix=f"Name it {path.with_suffix('.onnx')}."
        )
    if path.is_dir():
        raise FileError(f"{path} is a folder; expected a file.", fix="Give the name of a file in it.")
    there = next((folder for folder in path.parents if folder.exists()), path.parent)
    if not there.is_dir() or not os.access(there, os.W_OK):
        found = "cannot be written to" if there.is_dir() else "is a file"
        raise FileError(f"{path} cannot be written: {there} {found}.", fix=_WAY_OUT)


def check_new_file(target: Path, *given: Path) -> None:
    """Look whether a new model file can be written beside those that it is made of.

    Raises:
        FileError: It cannot, or it is one of the files that were given, or a manifest beside it would win over its own.
    """
    check_target(target)
    if target.resolve() in [path.resolve() for path in given]:
        raise FileError(f"{target} is the file that was given; it is not touched.", fix="Give another name with `-o`.")
    if (sidecar := sidecar_of(target)).exists():
        raise FileError(
            f"{sidecar} is there, and would win over the manifest of the file to be written.", fix="Remove it first."
        )


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as it was before; its folder is made where it is missing.

    Raises:
        FileError: The folder cannot be made or written to.
    """
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as exc:
        raise FileError(f"{path} cannot be written: {exc.strerror}.", fix=_WAY_OUT) from exc
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


# ---------------------------------------------------------------- arrays

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
