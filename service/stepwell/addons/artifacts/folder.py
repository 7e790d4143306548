"""`ArtifactFolder`: artifacts as files in a folder that all replicas share."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path


class ArtifactFolder:
    """Keeps artifacts as `FINGERPRINT.MODEL.artifact`; the time of a file is that of its last renewal.

    Attributes:
        check_s: Seconds within which an artifact has to be renewed while records are written that name it.
    """

    def __init__(self, folder: Path, *, longest_ttl_s: float) -> None:
        """Create it; the folder is created when the first artifact is stored.

        Args:
            folder: The folder.
            longest_ttl_s: The longest time that a record or a snapshot may live after it was last written.
        """
        self._folder = folder
        self.check_s = min(60.0, 0.2 * longest_ttl_s)
        self._ttl_s = 1.5 * longest_ttl_s

    async def renew(self, name: str, fingerprint: bytes, *, deadline: float) -> bool:
        """Return whether an artifact is stored, and renew the time of its file.

        Raises:
            OSError: The folder cannot be used.
        """
        return await asyncio.to_thread(self._renew, self._file(name, fingerprint))

    async def put(self, name: str, fingerprint: bytes, artifact: bytes) -> None:
        """Store an artifact, and delete those that have expired.

        Raises:
            OSError: The folder cannot be written.
        """
        await asyncio.to_thread(self._put, self._file(name, fingerprint), artifact)

    async def get(self, name: str, fingerprint: bytes) -> bytes | None:
        """Return an artifact, None if it is not stored.

        Raises:
            OSError: The file cannot be read.
        """
        return await asyncio.to_thread(self._get, self._file(name, fingerprint))

    def _file(self, name: str, fingerprint: bytes) -> Path:
        return self._folder / f"{fingerprint.hex()}.{name}.artifact"

    @staticmethod
    def _renew(file: Path) -> bool:
        try:
            os.utime(file)
        except FileNotFoundError:
            return False
        return True

    def _put(self, file: Path, artifact: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
        try:
            partial.write_bytes(artifact)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        for other in [*self._folder.glob("*.artifact"), *self._folder.glob("*.partial")]:
            try:
                if other.stat().st_mtime < time.time() - self._ttl_s:
                    other.unlink()
            except FileNotFoundError:  # another replica has deleted it
                continue

    @staticmethod
    def _get(file: Path) -> bytes | None:
        try:
            return file.read_bytes()
        except FileNotFoundError:
            return None
