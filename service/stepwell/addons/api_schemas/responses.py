"""The documents of responses: a struct each, from which the OpenAPI schemas are derived.

The service builds them as plain values of the same fields; tests compare both.
"""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from stepwell.codec.step_bodies import TENSORS, StateId, StreamId
from stepwell.error_codes import CODES
from stepwell_client.wire.ids import SEQ_LIMIT
from stepwell_client.wire.outcomes import Applied, Retry

Position = Annotated[int, Meta(ge=0, lt=SEQ_LIMIT)]
Tensors = Annotated[dict[str, Any], Meta(extra_json_schema=TENSORS)]
_FLAG = {"const": True}
Replayed = Annotated[
    bool, Meta(description="The request was applied before; this is its first response.", extra_json_schema=_FLAG)
]
ReplayedRows = Annotated[list[int], Meta(description="Indices of the rows that were applied before.")]
Created = Annotated[bool, Meta(description="This request created the stream.", extra_json_schema=_FLAG)]
Version = Annotated[
    int,
    Meta(
        ge=1,
        description="The model version that responded; present with a `source`, or if it is another one than before.",
    ),
]
TimestepVersions = Annotated[
    list[int | None],
    Meta(description="The version that responded to each timestep, null if not known; present if they are several."),
]
Skipped = Annotated[
    int, Meta(ge=1, description="Number of first timesteps that were applied before, by their positions in `source`.")
]
SourceChanged = Annotated[
    bool,
    Meta(description="The record keeps this source in place of the one used longest ago.", extra_json_schema=_FLAG),
]
Unknown = Annotated[
    int, Meta(ge=1, description="In msgpack: number of first timesteps whose outputs are not known, and zeros.")
]
Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
Objects = list[dict[str, Any]]


class Problem(Struct):
    """An error, as in RFC 9457."""

    type: Annotated[str, Meta(extra_json_schema={"format": "uri-reference"})]
    title: str
    status: int
    detail: Annotated[str, Meta(description="What was found, what was expected, what to do.")]
    code: Annotated[str, Meta(extra_json_schema={"enum": list(CODES)})]
    applied: Annotated[Applied, Meta(description="Whether this request was applied to the stream.")]
    retry: Retry
    step: Annotated[int, Meta(description="The stream's step.")] | UnsetType = UNSET
    expected: Annotated[int, Meta(description="The `seq` that the stream expects next.")] | UnsetType = UNSET
    at: Annotated[int, Meta(description="The stream's position of the request's `source`.")] | UnsetType = UNSET
    revision: Annotated[int, Meta(description="The revision of the release.")] | UnsetType = UNSET
    state_id: StateId | UnsetType = UNSET


class Document(Struct, forbid_unknown_fields=True, kw_only=True):
    """A document with its declared fields only."""


class StepResponse(Document, kw_only=True):
    """The response to a step or a chunk."""

    outputs: Tensors
    step: Annotated[int, Meta(description="The number of the request's last timestep.")]
    state_id: Annotated[StateId | None, Meta(description="Null if the stream has been stepped further since.")]
    replayed: Replayed | UnsetType = UNSET
    created: Created | UnsetType = UNSET
    version: Version | UnsetType = UNSET
    versions: TimestepVersions | UnsetType = UNSET
    skipped: Skipped | UnsetType = UNSET
    source_changed: SourceChanged | UnsetType = UNSET
    unknown: Unknown | UnsetType = UNSET


class BulkResponse(Document, kw_only=True):
    """The response to columns; a row that failed is null in each column."""

    outputs: Tensors
    step: list[int | None]
    state_id: list[StateId | None]
    errors: Annotated[dict[str, Problem], Meta(description="By row index, as text.")]
    replayed: Annotated[list[int], Meta(description="Indices of the rows that were applied before.")] | UnsetType = (
        UNSET
    )
    skipped: (
        Annotated[list[int], Meta(description="For each row, its first timesteps that were applied before.")]
        | UnsetType
    ) = UNSET
    source_changed: (
        Annotated[list[int], Meta(description="Indices of the rows whose source replaced another.")] | UnsetType
    ) = UNSET
    version: (
        Annotated[
            list[int | None],
            Meta(description="For each row, `version` of the response to a chunk."),
        ]
        | UnsetType
    ) = UNSET
    versions: (
        Annotated[
            list[list[int | None] | None],
            Meta(description="For each row, `versions` of the response to a chunk; null: all are `version`."),
        ]
        | UnsetType
    ) = UNSET
    unknown: (
        Annotated[list[int], Meta(description="In msgpack: for each row, its first timesteps without known outputs.")]
        | UnsetType
    ) = UNSET


class PeekResponse(Document, kw_only=True):
    """The response to a peek."""

    outputs: Tensors
    step: Annotated[int, Meta(description="The step that the stream would be at.")]
    state_id: (
        Annotated[StateId, Meta(description="The stream's current state id; absent if the stream does not exist.")]
        | UnsetType
    ) = UNSET
    version: Version | UnsetType = UNSET


class PositionResponse(Document, kw_only=True):
    """The response to a reset or an imported state."""

    step: Position
    state_id: StateId
    replayed: Replayed | UnsetType = UNSET


class LastSource(Document, kw_only=True):
    """The position of the source that a stream has used last."""

    at: int


class SourceEntry(Document, kw_only=True):
    """How far a stream has consumed one source."""

    id: Annotated[str | None, Meta(description="Null if it is not stored any more.")]
    at: Annotated[int, Meta(description="The position of the newest timestep that was applied from it.")]


Sources = Annotated[
    list[SourceEntry], Meta(description="The sources used last, the newest use first; a record keeps four.")
]


class StatusResponse(Document, kw_only=True):
    """The position and the times of a stream."""

    stream: StreamId
    model: str
    version: int | None
    step: int
    state_id: StateId
    created_at: Time
    updated_at: Time
    expires_in_s: float
    outputs: Tensors | UnsetType = UNSET
    source: LastSource | UnsetType = UNSET
    sources: Sources | UnsetType = UNSET


class StreamEntry(Document, kw_only=True):
    """A stream in a list; the step is null if its record cannot be read."""

    stream: StreamId
    step: int | None
    sources: Annotated[Sources, Meta(description="With `?sources=true`.")] | UnsetType = UNSET


class StreamsResponse(Document, kw_only=True):
    """One page of a model's streams, and the cursor of the next page."""

    streams: list[StreamEntry]
    cursor: str | None


class ModelDescription(Struct, kw_only=True):
    """The description of a model."""

    name: str
    version: int
    versions: list[int]
    inputs: Objects
    outputs: Objects
    states: Objects
    feedback: (
        Annotated[dict[str, Any], Meta(description="By input, the output that it is computed from in a rollout.")]
        | UnsetType
    ) = UNSET
    latency: (
        Annotated[int, Meta(description="The largest latency of the outputs, in samples; none: they have no samples.")]
        | UnsetType
    ) = UNSET
    every: (
        Annotated[str, Meta(description="The time between two timesteps, such as `1s`; none: it is not known.")]
        | UnsetType
    ) = UNSET
    bytes_per_stream: int
    parity: dict[str, Any] | None


class ModelsResponse(Document, kw_only=True):
    """The models that are served."""

    models: list[ModelDescription]


class ReloadResponse(Document, kw_only=True):
    """The models that were loaded, and why others were not."""

    loaded: list[str]
    failed: list[str]
    not_kept: (
        Annotated[list[str], Meta(description="Models whose files are not kept for streams that need them, and why.")]
        | UnsetType
    ) = UNSET
    ignored: (
        Annotated[list[str], Meta(description="Files of the models folders that look like models but are none.")]
        | UnsetType
    ) = UNSET


class AliveResponse(Document, kw_only=True):
    """The process is alive."""

    alive: Annotated[bool, Meta(extra_json_schema=_FLAG)]


class ReadyResponse(Document, kw_only=True):
    """Whether requests can be served, and the reasons why not."""

    ready: bool
    reasons: list[str]
    notes: (
        Annotated[list[str], Meta(description="What an operator should read although requests can be served.")]
        | UnsetType
    ) = UNSET


class ServiceResponse(Document, kw_only=True):
    """Version and limits of the service, and what is known of its store."""

    version: str
    durability: Annotated[str, Meta(description="What a confirmed commit survives: `memory`, `fsync` or `replica`.")]
    store: dict[str, Any]
    limits: dict[str, Any]
    history: Annotated[
        dict[str, int],
        Meta(description="Commits that are kept of each stream, by model; `*`: of every other model."),
    ]
    tenant: Annotated[str, Meta(description="The tenant of the caller's key.")]
