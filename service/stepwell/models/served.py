"""`ServedModel`: a loaded version of a model, or a pair of versions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stepwell.models.artifacts.keeper import KeptArtifact
from stepwell.models.paired import PairedModel
from stepwell_export.runtime.manifest import InputSpec, Manifest
from stepwell_export.runtime.step_model import StepModel


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
        halves: Of a pair, its old version and its candidate; None: it is one version. The version of a pair is that of
            the half that responds.
    """

    name: str
    version: int
    step_model: StepModel | PairedModel
    path: Path
    file_signature: tuple[int, ...]
    artifact: KeptArtifact = field(default_factory=lambda: KeptArtifact("", 0, b""))
    halves: tuple[ServedModel, ServedModel] | None = None

    @classmethod
    def of_pair(cls, old: ServedModel, new: ServedModel, paired: PairedModel) -> ServedModel:
        """Return a pair of two versions as one model."""
        version = old.version if paired.mode == "shadow" else new.version
        return cls(new.name, version, paired, new.path, (), halves=(old, new))

    @property
    def artifacts(self) -> list[KeptArtifact]:
        """The artifacts without which its records cannot be used."""
        return [self.artifact] if self.halves is None else [half.artifact for half in self.halves]

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
    def responding_fingerprint(self) -> bytes:
        """Fingerprint of a version by whose manifest its predictions can be read: its own, or that of the half."""
        return self.responding.fingerprint

    @property
    def responding(self) -> ServedModel:
        """The version that responds: itself, or the half."""
        return self if self.halves is None else next(half for half in self.halves if half.version == self.version)

    @property
    def stateful(self) -> bool:
        """Whether a stream has a state."""
        return self.step_model.state_bytes > 0
