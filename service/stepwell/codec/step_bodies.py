"""The bodies that step streams: a struct each, from which decoders, strict checks and OpenAPI schemas are derived.

A body is carried onward as it was sent; the decoder adds the arrays of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from stepwell.codec.sources import SourceOfStep, SourceOfStreams, source_of
from stepwell.codec.strict.parse import parse
from stepwell.errors import ServiceError
from stepwell.types import BatchSources, Create, RequestFields, Timestep
from stepwell_client.wire.formats import Format, encode
from stepwell_client.wire.ids import SEQ_LIMIT, STREAM_ID, decode_state_id
from stepwell_client.wire.outcomes import ReturnMode
from stepwell_export.runtime.manifest import Array

# ------------------------------------------------------------------- the values of fields

_TENSOR = {
    "description": "Nested arrays of the declared shape; a bare number where the shape is []. In msgpack also packed.",
    "example": [0.1, 0.2, 0.3, 0.4],
}
TENSORS = {"type": "object", "additionalProperties": _TENSOR, "example": {"x": [0.1, 0.2, 0.3, 0.4]}}
"""The schema of tensors by name."""

Inputs = Annotated[
    Raw,
    Meta(
        description="One tensor per input of the model; for a model with one input, the tensor alone is accepted too.",
        extra_json_schema={"anyOf": [TENSORS, {}], "example": {"x": [0.1, 0.2, 0.3, 0.4]}},
    ),
]
Seq = Annotated[
    int,
    Meta(
        ge=1,
        lt=SEQ_LIMIT,
        description="Number of the first timestep of this request, from 1 since creation or reset.",
    ),
]
StateId = Annotated[
    str,
    Meta(
        pattern="^[A-Za-z0-9_-]{22}$",
        max_length=22,  # `$` also matches before a newline at the end
        description="Hash of the stream's history.",
        extra={"expected": "a state_id of an earlier response, 22 characters"},
    ),
]
# The value of a stream id is checked later: an invalid one fails alone.
StreamId = Annotated[
    str, Meta(extra={"expected": "a stream id"}, extra_json_schema={"pattern": f"^{STREAM_ID.pattern}$"})
]
StreamIds = Annotated[list[StreamId], Meta(extra={"expected": "a list of stream ids"})]
CreateMode = Annotated[
    Create,
    Meta(
        description="auto: create a missing stream; never: an error if it is missing; must: an error if it exists.",
        extra_json_schema={"default": "auto"},
    ),
]
Return = Annotated[
    ReturnMode, Meta(description="Which predictions are returned.", extra_json_schema={"default": "all"})
]
HasTimeAxis = Annotated[bool, Meta(description="The inputs have a time axis.", extra_json_schema={"default": False})]

PackedStateText = Annotated[
    str,
    Meta(
        description="A packed state: base64url of the model's fingerprint, the states' bytes, and a checksum.",
        extra={"expected": "a packed state, as in an earlier response"},
        extra_json_schema={"pattern": "^[A-Za-z0-9_-]+$"},
    ),
]
GivenStates = Annotated[
    PackedStateText | list[PackedStateText | None] | None,
    Meta(
        description="The state before the timestep; null: the initial state. A list: one for each row of the inputs.",
        extra={"expected": "a packed state, null, or a list of these"},
    ),
]

# ------------------------------------------------------------------- bodies


class StepOptions(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The optional fields of every body that steps streams; each sets the field of the same name of `RequestFields`."""

    create: CreateMode | UnsetType = UNSET

    @property
    def n_rows(self) -> int | None:
        """How many rows its columns have; None: it has no columns."""
        return None

    def options(self) -> dict[str, Any]:
        """Return the given fields that are fields of `RequestFields` too."""
        return _given(self, RequestFields.__struct_fields__)


class StepBody(StepOptions, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a step."""

    inputs: Inputs
    seq: Seq | UnsetType = UNSET
    after: StateId | UnsetType = UNSET
    source: SourceOfStep | UnsetType = UNSET

    def options(self) -> dict[str, Any]:
        """Return the given fields that are fields of a `Timestep` too, but `inputs`.

        `after` is returned as 16 bytes, `source` as a `Source`.
        """
        options = _given(self, _TIMESTEP_FIELDS)
        if self.after is not UNSET:
            options["after"] = decode_state_id(self.after)
        if self.source is not UNSET:
            options["source"] = source_of(self.source)
        return options


class StepsBody(StepBody, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a chunk."""

    keep: Return | UnsetType = msgspec.field(name="return", default=UNSET)


class PeekBody(StepsBody, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a peek."""

    chunk: HasTimeAxis | UnsetType = UNSET


class FeedMessage(PeekBody, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A message of the feed of one stream; `id` is returned with the reply."""

    id: Raw | UnsetType = UNSET


class StreamMessage(FeedMessage, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A message for one stream, of a feed for many streams."""

    stream: StreamId


class BulkBody(StepOptions, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a step of many streams: each column has one item per stream."""

    streams: StreamIds
    inputs: Inputs
    seq: list[Seq | None] | UnsetType = UNSET
    after: list[StateId | None] | UnsetType = UNSET
    source: SourceOfStreams | UnsetType = UNSET

    @property
    def n_rows(self) -> int:
        """How many rows its columns have."""
        return len(self.streams)


class BulkStepsBody(BulkBody, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a chunk of many streams."""

    keep: Return | UnsetType = msgspec.field(name="return", default=UNSET)


class BulkMessage(BulkStepsBody, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A message with columns, of a feed for many streams; `id` is returned with the reply."""

    chunk: HasTimeAxis | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


class RunBody(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a timestep whose state is in the request; with a list of states, of one timestep for each."""

    inputs: Inputs
    state: GivenStates

    @property
    def n_rows(self) -> int | None:
        """How many rows its columns have: one for each state of a list; None: it has no columns."""
        return len(self.state) if isinstance(self.state, list) else None


# ------------------------------------------------------------------- decoded bodies


@dataclass(slots=True)
class DecodedStep:
    """A decoded body that steps one stream.

    Attributes:
        body: The body as it was sent, with valid fields.
        inputs: `(T, *row)` per model input, its declared dtype, checked and finite.
        chunk: The inputs have a time axis, so the response has one too.
    """

    body: StepBody
    inputs: dict[str, Array]
    chunk: bool

    @property
    def length(self) -> int:
        """T; 1 if the inputs have no time axis."""
        return len(next(iter(self.inputs.values())))

    @property
    def keep(self) -> ReturnMode:
        """Which predictions are returned."""
        return _keep(self.body)


@dataclass(slots=True)
class DecodedBulk:
    """A decoded body that steps many streams, as columns.

    Attributes:
        body: The body as it was sent, with valid fields; each stream once.
        inputs: `(N, T, *row)` per model input; the rows in `faults` must not be used.
        chunk: The inputs have a time axis, so the response has one too.
        faults: Errors of single rows, by index; the other rows are valid.
        sources: Where each stream's timesteps stand in their log; None: the body has no `source`.
    """

    body: BulkBody
    inputs: dict[str, Array]
    chunk: bool
    faults: dict[int, ServiceError] = field(default_factory=dict)
    sources: BatchSources | None = None

    @property
    def length(self) -> int:
        """T; 1 if the inputs have no time axis."""
        length: int = next(iter(self.inputs.values())).shape[1]
        return length

    @property
    def keep(self) -> ReturnMode:
        """Which predictions are returned."""
        return _keep(self.body)

    def column(self, given: list[Any] | UnsetType) -> list[Any]:
        """Return a column of the body, with one None per stream if it was not given."""
        return [None] * len(self.body.streams) if given is UNSET else given


@dataclass(slots=True)
class DecodedRun:
    """A decoded body of timesteps whose states are in the request.

    Attributes:
        body: The body as it was sent, with valid fields.
        inputs: `(N, 1, *row)` per model input; the rows in `faults` must not be used.
        faults: Errors of single rows, by index; the other rows are valid.
    """

    body: RunBody
    inputs: dict[str, Array]
    faults: dict[int, ServiceError] = field(default_factory=dict)

    @property
    def states(self) -> list[str | None]:
        """The state of each row, which is not checked yet."""
        return self.body.state if isinstance(self.body.state, list) else [self.body.state]


_TIMESTEP_FIELDS = [name for name in Timestep.__struct_fields__ if name not in ("inputs", "source")]


def _given(body: StepOptions, names: Iterable[str]) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(body, name, UNSET)) is not UNSET}


def _keep(body: StepOptions) -> ReturnMode:
    keep: ReturnMode | UnsetType = getattr(body, "keep", UNSET)
    return "all" if keep is UNSET else keep


# ------------------------------------------------------------------- replies of feeds


def correlation_of(message: StepOptions) -> dict[str, Any]:
    """Return the first fields of a feed's reply: the message's stream, and its id."""
    correlation: dict[str, Any] = {"stream": message.stream} if isinstance(message, StreamMessage) else {}
    if isinstance(message, FeedMessage | BulkMessage) and message.id is not UNSET:
        correlation["id"] = message.id
    return correlation


def correlation_in(document: Any, body_format: Format) -> dict[str, Any]:
    """Return the same of a parsed message, which may be invalid."""
    if not isinstance(document, dict):
        return {}
    correlation: dict[str, Any] = {"stream": document["stream"]} if isinstance(document.get("stream"), str) else {}
    return correlation | ({"id": Raw(encode(document["id"], body_format))} if "id" in document else {})


def guess_correlation(message: bytes, body_format: Format) -> dict[str, Any]:
    """Return the same of a message that was not decoded, as far as it can be parsed."""
    try:
        return correlation_in(parse(message, body_format), body_format)
    except ServiceError:
        return {}
