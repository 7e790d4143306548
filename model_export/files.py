"""Write a file whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from model_export.errors import FileError


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
