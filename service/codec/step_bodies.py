"""The bodies that step streams: a struct each, from which decoders, strict checks and OpenAPI schemas are derived.

A body is carried onward as it was sent; the decoder adds the arrays of its inputs.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NoReturn

import msgspec
import numpy as np
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from model_export.manifest import Array
from service.codec.formats import Format, encode
from service.codec.strict.parse import parse
from service.errors import ServiceError
from service.ids import POSITION_LIMIT, SEQ_LIMIT, STREAM_ID, decode_state_id
from service.types import Create, RequestFields, ReturnMode, Source, Timestep

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
SourceId = Annotated[str, Meta(min_length=1, max_length=255)]
At = Annotated[int, Meta(ge=0, le=POSITION_LIMIT - 1)]


class SourceField(Struct, forbid_unknown_fields=True, gc=False):
    """Where the timesteps of a body stand in the log that they were read from."""

    id: Annotated[SourceId, Meta(description="The log: for example a topic and its partition.")]
    at: Annotated[
        At | list[At],
        Meta(description="The position of the timestep in it; for a chunk one for each timestep, strictly growing."),
    ]


class PackedPositions(Struct, forbid_unknown_fields=True, gc=False):
    """Positions in msgpack, as an int64 array."""

    d: Literal["int64"]
    s: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1, max_length=2)]
    b: bytes


class SourceColumns(Struct, forbid_unknown_fields=True, gc=False):
    """The same for columns: one row for each stream."""

    id: Annotated[SourceId | list[SourceId], Meta(description="The log of all streams, or one for each stream.")]
    at: Annotated[
        list[At | list[At]] | PackedPositions,
        Meta(description="A position for each stream; for chunks a list of them for each stream."),
    ]


SourceOfStep = Annotated[
    SourceField,
    Meta(
        description="Timesteps that were applied from this position of this source before are not applied again.",
        extra={
            "expected": '{"id": text of 1 to 255 characters, "at": an integer from 0 to '
            f"{POSITION_LIMIT - 1}, or a list of one for each timestep}}"
        },
    ),
]
SourceOfStreams = Annotated[
    SourceColumns,
    Meta(
        description="Timesteps that were applied from these positions before are not applied again.",
        extra={
            "expected": '{"id": text of 1 to 255 characters, or one for each stream, "at": a list of one per stream}'
        },
    ),
]
HasTimeAxis = Annotated[bool, Meta(description="The inputs have a time axis.", extra_json_schema={"default": False})]

# ------------------------------------------------------------------- bodies


class StepOptions(Struct, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The optional fields of every body that steps streams; each sets the field of the same name of `RequestFields`."""

    create: CreateMode | UnsetType = UNSET

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
            options["source"] = Source(source_digest(self.source.id), _positions(self.source))
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


class BulkStepsBody(BulkBody, kw_only=True, forbid_unknown_fields=True, gc=False):
    """The body of a chunk of many streams."""

    keep: Return | UnsetType = msgspec.field(name="return", default=UNSET)


class BulkMessage(BulkStepsBody, kw_only=True, forbid_unknown_fields=True, gc=False):
    """A message with columns, of a feed for many streams; `id` is returned with the reply."""

    chunk: HasTimeAxis | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


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
        sources: Where each stream's timesteps stand in their log; empty: the body has no `source`.
    """

    body: BulkBody
    inputs: dict[str, Array]
    chunk: bool
    faults: dict[int, ServiceError] = field(default_factory=dict)
    sources: Sequence[Source] = ()

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


# ------------------------------------------------------------------- positions of sources


def check_source(body: StepBody, length: int) -> None:
    """Check that the body's source has a position for each of its timesteps, and that they grow.

    Raises:
        ServiceError: `bad_request`.
    """
    if body.source is not UNSET:
        _check_positions(_positions(body.source), length, "`source.at`")


def sources_of(body: BulkBody, body_format: Format, length: int, *, chunk: bool) -> list[Source]:
    """Return the source of each stream of columns; none if the body has none.

    Args:
        body: The body, whose `streams` are valid.
        body_format: Its format; JSON has no packed positions.
        length: T.
        chunk: The columns have a time axis.

    Raises:
        ServiceError: `bad_request`.
    """
    if body.source is UNSET:
        return []
    count, ids, at = len(body.streams), body.source.id, body.source.at
    ids = [ids] * count if isinstance(ids, str) else ids
    rows: Any = at if isinstance(at, list) else _unpacked(at, body_format)
    for name, column in (("id", ids), ("at", rows)):
        if len(column) != count:
            bad_request(f"`source.{name}` has {len(column)} entries for {count} streams; expected one for each.")
    if any(isinstance(row, list) != chunk for row in rows):
        expected = "a list of positions for each stream" if chunk else "a position for each stream"
        bad_request(f"`source.at` does not fit the columns; expected {expected}.")
    positions = [tuple(row) if chunk else (row,) for row in rows]
    for i, row in enumerate(positions):
        _check_positions(row, length, f"`source.at[{i}]`")
    digests = {one: source_digest(one) for one in set(ids)}
    return [Source(digests[one], row) for one, row in zip(ids, positions, strict=True)]


def source_digest(source_id: str) -> bytes:
    """Return the digest by which a record names a source, 8 bytes."""
    return hashlib.blake2b(source_id.encode(), digest_size=8).digest()


def _positions(source: SourceField) -> tuple[int, ...]:
    return tuple(source.at) if isinstance(source.at, list) else (source.at,)


def _unpacked(packed: PackedPositions, body_format: Format) -> Any:
    size = math.prod(packed.s)
    if body_format is Format.JSON or len(packed.b) != 8 * size:
        bad_request(
            f"`source.at` is a packed array of {len(packed.b)} bytes; expected a list, or in msgpack {packed.s}."
        )
    rows = np.frombuffer(packed.b, "<i8")
    if size and rows.min() < 0:
        bad_request(f"`source.at` has the position {rows.min()}; expected 0 or more.")
    return rows.reshape(packed.s).tolist()


def _check_positions(at: Sequence[int], length: int, name: str) -> None:
    if len(at) != length:
        bad_request(f"{name} has {len(at)} positions for {length} timesteps; expected one for each.")
    for before, after in itertools.pairwise(at):
        if after <= before:
            bad_request(f"{name} has {after} behind {before}; expected strictly growing positions.")


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


def bad_request(problem: str) -> NoReturn:
    """Raise `bad_request`; `problem` gives what was found and what was expected."""
    raise ServiceError("bad_request", problem, fix="Send the body as /docs describes it.")
