"""`Artifacts`: what keeps model files, so that every replica can load what a record names. Here nothing does.

An add-on has subclasses that keep them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from stepwell_export.runtime.step_model import StepModel

LoadModel = Callable[[Path], StepModel]
"""Checks and loads a model file."""


class Artifact:
    """The file of a loaded model, which is not kept.

    Attributes:
        reason: Why it is not kept, if that is to be reported.
        check_at: Time of `time.monotonic` from which on a commit has to call `check_soon`; infinite: never.
    """

    def __init__(self, reason: str = "") -> None:
        self.reason = reason
        self.check_at = math.inf

    async def ensure(self, deadline: float) -> None:
        """Store it unless it is stored; call it before a record that is the first one with its fingerprint.

        Args:
            deadline: On the running loop's clock.

        Raises:
            StoreUnavailableError: The store did not reply, or it was not stored before the deadline.
        """

    def check_soon(self) -> None:
        """Check in the background that it is stored, and store it again if it is not."""


class LoadedArtifact(NamedTuple):
    """A model that was loaded from its artifact.

    Attributes:
        version: Its version.
        path: Its file, a copy.
        model: The model.
        artifact: Its artifact.
    """

    version: int
    path: Path
    model: StepModel
    artifact: Artifact


class Artifacts:
    """Keeps no model files.

    Attributes:
        is_off: Whether it keeps none.
    """

    is_off = True

    def copy(self, name: str, version: int, path: Path, model: StepModel, signature: tuple[int, ...]) -> Artifact:
        """Copy the files of a model, unless it is not to be kept.

        Args:
            name: The model's name.
            version: Its version.
            path: Its file.
            model: The model, as loaded from its file.
            signature: `file_signature` of its files before it was loaded.
        """
        return Artifact()

    async def load(self, name: str, fingerprint: bytes) -> LoadedArtifact | None:
        """Return the model of a fingerprint from its artifact; None: there is none.

        Raises:
            StepwellError: It cannot be used, or the store did not reply.
            OSError: It cannot be read or written here.
        """
        return None

    def kept_file(self, name: str, version: int, fingerprint: bytes, content: bytes) -> Artifact:
        """Return the artifact of one file that stands beside a model; nothing is stored yet.

        Args:
            name: The model's name.
            version: Its version, for messages.
            fingerprint: Identifies the file, 8 bytes.
            content: Its bytes.
        """
        return Artifact()

    async def put_file(self, name: str, fingerprint: bytes, content: bytes) -> None:
        """Store one file that stands beside a model, in place of what is stored; a larger one is not kept.

        Raises:
            StoreUnavailableError: The store did not reply.
            OSError: It cannot be written.
        """

    async def read_file(self, name: str, fingerprint: bytes) -> bytes | None:
        """Return the content of a file that `put_file` stored; None: there is none.

        Raises:
            StepwellError: It is not what was stored, or the store did not reply.
            OSError: It cannot be read.
        """
        return None

    def close(self) -> None:
        """Delete the copies."""
