"""`ServedModel`: a loaded version of a model, or several that an add-on has joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np

from stepwell.models.artifacts import Artifact
from stepwell.models.joined import AnyModel, JoinedModel
from stepwell_export.runtime.manifest import InputSpec, Manifest


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class ServedModel:
    """One version of one model, loaded and probed.

    Attributes:
        name: The name by which it is requested: that of the file or folder, not that in the manifest.
        version: From 1; a file directly in a models folder is version 1.
        step_model: The loaded model.
        path: The model file.
        file_signature: Modification times, sizes and inodes of the model's files when it was loaded; the model is
            reloaded if they change.
        artifact: Its copy for other replicas, and for later.
        parts: The versions that are joined in it; empty: it is one version. Its own version is then that of the part
            that responds.
    """

    name: str
    version: int
    step_model: AnyModel
    path: Path
    file_signature: tuple[int, ...]
    artifact: Artifact = field(default_factory=Artifact)
    parts: tuple[ServedModel, ...] = ()

    @property
    def joined(self) -> JoinedModel | None:
        """The loaded model if several versions are joined in it, else None."""
        return cast("JoinedModel", self.step_model) if self.parts else None

    @property
    def versions(self) -> Sequence[ServedModel]:
        """The versions that run: itself, or its parts."""
        return self.parts or (self,)

    @property
    def artifacts(self) -> list[Artifact]:
        """The artifacts without which its records cannot be used."""
        return [each.artifact for each in self.versions]

    @property
    def manifest(self) -> Manifest:
        """The model's manifest: inputs, outputs and states."""
        return self.step_model.manifest

    @property
    def inputs(self) -> list[InputSpec]:
        """The inputs, sorted by name, as a timestep has them."""
        return sorted(self.manifest.inputs, key=lambda spec: spec.name)

    @property
    def timestep_bytes(self) -> int:
        """Bytes of the inputs of one timestep."""
        return sum(np.dtype(spec.dtype).itemsize * math.prod(spec.row_shape) for spec in self.manifest.inputs)

    @property
    def fingerprint(self) -> bytes:
        """8 bytes that identify graph, weights and state schema."""
        return self.step_model.fingerprint

    @property
    def responding(self) -> ServedModel:
        """The version that responds: itself, or the part."""
        return next(each for each in self.versions if each.version == self.version)

    def responding_part(self, state: bytes) -> ServedModel | None:
        """Return which of the joined versions responded last to a stream; None: it is one version.

        Args:
            state: The packed state in the stream's record; None is returned if it has another size.
        """
        joined = self.joined
        if joined is None or len(state) != joined.state_bytes:
            return None
        [responded] = joined.responded(np.frombuffer(state, np.uint8)[None])
        return self.parts[int(responded)]

    @property
    def stateful(self) -> bool:
        """Whether a stream has a state."""
        return self.step_model.state_bytes > 0
