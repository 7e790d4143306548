"""Immutable values that transports, engine and store exchange; no behaviour."""

from __future__ import annotations

from stepwell.types.sources import BatchSources, Source, source_digest
from stepwell.types.steps import (
    ENDS,
    STARTS,
    BatchOutput,
    BulkParts,
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
from stepwell.types.streams import (
    ConsumedSource,
    StreamList,
    StreamPosition,
    StreamStatus,
)
from stepwell_client.wire.outcomes import ReturnMode

__all__ = [
    "ENDS",
    "STARTS",
    "BatchOutput",
    "BatchSources",
    "BulkParts",
    "BulkPrediction",
    "BulkTimesteps",
    "ConsumedSource",
    "Create",
    "Lifecycle",
    "Prediction",
    "ReplyCallback",
    "RequestFields",
    "ReturnMode",
    "Source",
    "StreamHandle",
    "StreamKey",
    "StreamList",
    "StreamPosition",
    "StreamStatus",
    "Timestep",
    "Transport",
    "source_digest",
]
