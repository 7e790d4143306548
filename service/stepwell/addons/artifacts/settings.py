"""`ArtifactSettings`: where model files are kept, and how large they may be."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stepwell.errors import SettingsError
from stepwell.settings import AddonSettings, Bytes, Settings


class ArtifactSettings(AddonSettings):
    """The settings of artifacts."""

    artifacts: Annotated[str, Field(min_length=1)] = "store"
    """Where model files are kept by fingerprint for streams that need them: store, a folder that all replicas share, or
    off."""
    artifact_max_bytes: Bytes = 256 * 2**20
    """Maximum size of a model file with its weights that is kept; streams of a larger one need its file."""

    def check(self, settings: Settings) -> None:
        """Check that the folder of artifacts can be written; create it if its path has a slash.

        Raises:
            SettingsError: It cannot.
        """
        if self.artifacts in ("store", "off"):
            return
        folder = Path(self.artifacts)
        try:
            if "/" in self.artifacts:
                folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as exc:
            raise SettingsError(
                f"`artifacts` is {self.artifacts!r}, and no file can be created in that folder: {exc.strerror or exc}.",
                fix="Set it to store, off, or a folder that can be written, which all replicas share.",
            ) from exc

    def not_kept_reason(self, files: Sequence[Path]) -> str:
        """Return why a model's files are not kept; empty: they are."""
        if self.artifacts == "off":
            return "`artifacts` is off"
        size, most = sum(file.stat().st_size for file in files), self.artifact_max_bytes
        return f"its files have {size} bytes, and `artifact_max_bytes` is {most}" if size > most else ""
