"""Write a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from model_export.errors import FileError
from model_export.manifest import sidecar_of


def check_target(path: Path) -> None:
    """Look whether a model file can be written, before the work that makes it.

    Raises:
        FileError: It is a folder, is not named `.onnx`, or its folder is missing or cannot be written to.
    """
    if path.suffix != ".onnx":
        raise FileError(f"{path} is to be written; expected a name that ends in .onnx.", fix=f"Say {path}.onnx.")
    if path.is_dir():
        raise FileError(f"{path} is a folder; expected a file.", fix="Give the name of a file in it.")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        found = "cannot be written to" if path.parent.is_dir() else "is not there"
        raise FileError(f"{path} cannot be written: the folder {path.parent} {found}.", fix=_way_out(path))


def check_new_file(target: Path, *, source: Path | None) -> None:
    """Look whether a new model file can be written beside the one that it is made of.

    Raises:
        FileError: It cannot, or it is the file that was given, or a manifest beside it would win over its own.
    """
    check_target(target)
    if source is not None and target.resolve() == source.resolve():
        raise FileError(f"{target} is the file that was given; it is not touched.", fix="Give another name with `-o`.")
    if (sidecar := sidecar_of(target)).exists():
        raise FileError(
            f"{sidecar} is there, and would win over the manifest of the file to be written.", fix="Remove it first."
        )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or as it was before.

    Raises:
        FileError: The folder is missing, or cannot be written to.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as exc:
        raise FileError(f"{path} cannot be written: {exc.strerror}.", fix=_way_out(path)) from exc
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())  # a temporary file is for its owner alone; a model is for the service too
        part.replace(path)
    except OSError as exc:
        raise FileError(f"{path} cannot be written: {exc.strerror}.", fix=_way_out(path)) from exc
    finally:
        part.unlink(missing_ok=True)


def _way_out(path: Path) -> str:
    if not path.parent.is_dir():
        return f"Make the folder first: mkdir -p {path.parent}"
    return "Check the permissions and the free space there."


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
