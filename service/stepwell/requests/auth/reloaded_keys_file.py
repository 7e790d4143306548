"""`ReloadedKeysFile`: a file of keys that is read again when it changes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from stepwell_export.runtime.errors import StepwellError

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


class KeysFileError(StepwellError):
    """The file of API keys cannot be used."""

    code = "bad_keys_file"


class ReloadedKeysFile(Generic[_T]):
    """A file of keys that is read again when it changes; while it cannot be read, what was read before stays in force.

    Attributes:
        content: What was read last.
        generation: How often it was read again.
        on_change: Called with what was read before and what was read now, when it was read again; None: not called.
    """

    def __init__(self, file: Path, read: Callable[[Path], _T]) -> None:
        """Read the file.

        Args:
            file: Which.
            read: Returns what it holds, or raises a `KeysFileError`.

        Raises:
            KeysFileError: It cannot be read, or is not what it should be.
        """
        self._file = file
        self._read = read
        self._stamp = _signature(file)
        self._trouble = ""  # as it was logged
        self.content = read(file)
        self.generation = 0
        self.on_change: Callable[[_T, _T], None] | None = None

    def refresh(self) -> None:
        """Read the file again if it has changed."""
        try:
            stamp = _signature(self._file)
            if stamp == self._stamp:
                return
            self._stamp = stamp
            before, self.content = self.content, self._read(self._file)
        except KeysFileError as exc:
            if str(exc) != self._trouble:  # once, not with every request
                _log.error("The keys read before stay in force: %s", exc)
            self._trouble = str(exc)
        else:
            self._trouble = ""
            self.generation += 1
            _log.info("Read the keys again: %s", self._file.name)
            if self.on_change is not None:
                self.on_change(before, self.content)


def _signature(file: Path) -> tuple[int, ...]:
    """Return modification time, size and inode of a keys file: a change of the file changes one of them.

    Raises:
        KeysFileError: The file cannot be read.
    """
    try:
        stat = os.stat(file)  # noqa: PTH116 - pathlib needs twice the time, and this runs for each request
    except OSError as exc:
        raise unreadable(file, exc) from exc
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def unreadable(file: Path, error: OSError) -> KeysFileError:
    """Return the error for a keys file that the system does not let us read."""
    return KeysFileError(
        f"The keys file {file} cannot be read: {error.strerror}.",
        fix="Check its path and its rights; `stepwell keys add ID --file FILE` creates a file of API keys.",
    )
