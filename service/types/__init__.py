"""Immutable values that transports, engine and store exchange; no behaviour."""

from __future__ import annotations

from service.types.rollouts import RolloutRequest, RolloutResult
from service.types.sources import BatchSources, Source, source_digest
from service.types.steps import (
    ENDS,
    STARTS,
    BatchOutput,
    BulkPrediction,
    BulkTimesteps,
    Create,
    Lifecycle,
    Prediction,
    ReplyCallback,
    RequestFields,
    StreamHandle,
    StreamKey,
    Timestep,
    Transport,
)
from service.types.streams import (
    ConsumedSource,
    ImportedState,
    SnapshotStatus,
    StreamList,
    StreamPosition,
    StreamState,
    StreamStatus,
)
from service.wire.outcomes import ReturnMode

__all__ = [
    "ENDS",
    "STARTS",
    "BatchOutput",
    "BatchSources",
    "BulkPrediction",
    "BulkTimesteps",
    "ConsumedSource",
    "Create",
    "ImportedState",
    "Lifecycle",
    "Prediction",
    "ReplyCallback",
    "RequestFields",
    "ReturnMode",
    "RolloutRequest",
    "RolloutResult",
    "SnapshotStatus",
    "Source",
    "StreamHandle",
    "StreamKey",
    "StreamList",
    "StreamPosition",
    "StreamState",
    "StreamStatus",
    "Timestep",
    "Transport",
    "source_digest",
]
