"""The status, the state and the snapshots of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stepwell.types.steps import StreamKey
from stepwell_export.runtime.manifest import Array


class ConsumedSource(NamedTuple):
    """How far a stream has consumed one source.

    Attributes:
        id: The source's id; None: it is not stored.
        at: Position of the newest timestep applied from it.
    """

    id: str | None
    at: int


@dataclass(frozen=True, slots=True)
class StreamStatus:
    """The status of a stream.

    Attributes:
        key: The stream.
        version: Model version that wrote the state, None if it is not loaded here.
        step: Timesteps since creation or reset.
        state_id: 16 bytes.
        created_ms: Milliseconds since the Unix epoch.
        updated_ms: Milliseconds since the Unix epoch.
        expires_in_ms: Milliseconds until the stream expires if it stays idle.
        outputs: The last stored prediction, `*row` by name; empty if there is none, or its model is not loaded here.
        sources: The positions of the sources used last, the newest use first.
    """

    key: StreamKey
    version: int | None
    step: int
    state_id: bytes
    created_ms: int
    updated_ms: int
    expires_in_ms: int
    outputs: Mapping[str, Array] = field(default_factory=dict)
    sources: Sequence[ConsumedSource] = ()


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The position of a stream after a reset, a fork or an import of a state; or the position in a snapshot.

    Attributes:
        step: 0, or that of the snapshot, of the other stream, or of the imported state.
        state_id: 16 bytes.
        replayed: The request was applied before; this is the stored result.
    """

    step: int
    state_id: bytes
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class StreamList:
    """One page of a listing.

    Attributes:
        streams: `(stream, step)` pairs; the step is None if the stream's record cannot be read.
        cursor: The cursor of the next page, None at the end.
        sources: The positions of sources by stream, if they were requested; a record that cannot be read has none.
    """

    streams: list[tuple[str, int | None]] = field(default_factory=list)
    cursor: str | None = None
    sources: Mapping[str, Sequence[ConsumedSource]] = field(default_factory=dict)
