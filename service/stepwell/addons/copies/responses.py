"""The documents of responses, a struct each, from which the OpenAPI schemas are derived."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from stepwell.addons.api_schemas.responses import Document, Position, PositionResponse, Time
from stepwell.addons.copies.bodies import Fingerprint, States
from stepwell.codec.step_bodies import PackedStateText, StateId, StreamId
from stepwell_export.runtime.manifest import NAME

SnapshotName = Annotated[str, Meta(extra_json_schema={"pattern": f"^{NAME.pattern}$"})]


class ForkResponse(PositionResponse, kw_only=True):
    """The response to a fork."""

    stream: StreamId


class NewSnapshotResponse(PositionResponse, kw_only=True):
    """The response to a request that creates a snapshot."""

    name: SnapshotName


class StateResponse(Document, kw_only=True):
    """The state of a stream."""

    states: States
    step: Position
    fingerprint: Fingerprint


class PackedStateResponse(Document, kw_only=True):
    """The state of a stream, with `?packed=true`."""

    state: PackedStateText
    step: Position


class SnapshotEntry(Document, kw_only=True):
    """A snapshot of a stream, without its state."""

    name: SnapshotName
    version: int | None
    step: Position
    state_id: StateId
    taken_at: Time


class SnapshotResponse(SnapshotEntry, kw_only=True):
    """A snapshot of a stream."""

    states: States
    fingerprint: Fingerprint


class SnapshotsResponse(Document, kw_only=True):
    """The snapshots of a stream."""

    snapshots: list[SnapshotEntry]
