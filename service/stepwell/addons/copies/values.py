"""States of streams and their snapshots, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stepwell_export.runtime.manifest import Array


@dataclass(frozen=True, slots=True)
class ImportedState:
    """An imported state, checked: one row per state of the model, its declared dtype, finite.

    Attributes:
        states: `*row` by name.
        step: The stream's step from then on.
    """

    states: Mapping[str, Array]
    step: int


@dataclass(frozen=True, slots=True)
class SnapshotStatus:
    """The status of a snapshot.

    Attributes:
        name: Its name.
        version: Model version that wrote the state, None if it is not loaded here.
        step: The stream's step in the snapshot.
        state_id: The stream's state id in the snapshot, 16 bytes.
        taken_ms: When it was created, milliseconds since the Unix epoch.
    """

    name: str
    version: int | None
    step: int
    state_id: bytes
    taken_ms: int


@dataclass(frozen=True, slots=True)
class StreamState:
    """The state of a stream.

    Attributes:
        states: One row per state of the model, `*row` by name.
        step: Timesteps since creation or reset.
        fingerprint: Fingerprint of the model that wrote it, 8 bytes.
    """

    states: Mapping[str, Array]
    step: int
    fingerprint: bytes
