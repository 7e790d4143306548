"""Models that an add-on joins of several versions, and what the engine needs of them: each is used as one version is.

By itself, the service joins none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.state_packing import StateField
from stepwell_export.runtime.step_model import StepModel

if TYPE_CHECKING:
    from stepwell.models.served import ServedModel


class JoinedRun(Protocol):
    """What a run of a joined model returns beside its predictions."""

    @property
    def responders(self) -> Array:
        """Index of the version that has responded to each timestep, `(rows, T)`."""
        ...

    @property
    def tried(self) -> tuple[Mapping[str, Array], Sequence[bool]]:
        """What the last of the versions computed, `(rows, T, *row)` by output, and for each row whether it failed."""
        ...

    def select(self, indices: Sequence[int]) -> JoinedRun:
        """Return some of the rows."""
        ...


class JoinedModel(Protocol):
    """Several versions of a model that run together. What is not described here is as in `StepModel`."""

    manifest: Manifest
    fingerprint: bytes
    fields: list[StateField]
    state_bytes: int
    initial_state: bytes
    weight_files: list[Path]
    is_fixed: bool
    """Whether the same version responds to every timestep."""

    def step(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array], *, learn: bool = True
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Consume one timestep of every row."""
        ...

    def chunk(
        self, inputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Consume T timesteps of every row."""
        ...

    def initial_states(self, rows: int) -> dict[str, Array]:
        """Return the states that new streams start from."""
        ...

    def pack(self, states: Mapping[str, Array], *, rows: int) -> Array:
        """Pack states into rows of bytes."""
        ...

    def unpack(self, packed: Array) -> dict[str, Array]:
        """Undo `pack`."""
        ...

    def terminate(self, *, longer_than: float = 0.0) -> None:
        """End the runs that take too long."""
        ...

    def split(self, outputs: Mapping[str, Array]) -> tuple[dict[str, Array], JoinedRun | None]:
        """Return the predictions of a run, and what is beside them; None: there was no row."""
        ...

    def responded(self, states: Array) -> Array:
        """Return the index of the version that responded to the newest timestep of each packed state row, `(rows,)`."""
        ...

    def part(self, state: bytes, i: int) -> bytes:
        """Return the packed state of one of the versions, from that of all."""
        ...


AnyModel = StepModel | JoinedModel


class JoinedModels:
    """Finds joined models by the fingerprints in records; an add-on that joins versions overrides all methods."""

    def announce(self, model: str, fingerprint: bytes, state: bytes) -> None:
        """Make the joined model available that has written a record; a record of one version changes nothing.

        Args:
            model: The model's name.
            fingerprint: The record's fingerprint, 8 bytes.
            state: Its packed state.
        """

    def parts(self, model: str, fingerprint: bytes) -> Sequence[bytes]:
        """Return the fingerprints of the versions of a joined model; empty: no such model was announced."""
        return ()

    def get(self, model: str, fingerprint: bytes) -> ServedModel | None:
        """Return a joined model; None: it was not announced, or its versions are not loaded or do not fit."""
        return None
