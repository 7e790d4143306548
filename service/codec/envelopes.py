"""Decoded request bodies, and their envelopes: every field but the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NoReturn, get_args

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from model_export.manifest import Array
from service.codec.formats import Format, encode
from service.codec.strict_parse import json_type, parse, preview
from service.errors import ServiceError
from service.ids import SEQ_LIMIT, is_state_id
from service.types import Create, ReturnMode

Seq = Annotated[int, Meta(ge=1, lt=SEQ_LIMIT)]


class StepBody(Struct, gc=False):
    """A decoded body that steps one stream.

    Attributes:
        inputs: `(T, *row)` per model input, its declared dtype, checked and finite.
        length: T; 1 if the body has no time axis.
        chunk: The body has a time axis, so the response has one too.
        seq: Step of the first timestep, or None.
        after: State id, 16 bytes, or None.
        create: What to do if the stream is missing.
        keep: Which predictions are returned.
    """

    inputs: dict[str, Array]
    length: int
    chunk: bool
    seq: int | None
    after: bytes | None
    create: Create
    keep: ReturnMode


@dataclass(slots=True)
class BulkBody:
    """A decoded body that steps many streams, as columns.

    Attributes:
        streams: Their ids, each once.
        inputs: `(N, T, *row)` per model input; the rows in `faults` must not be used.
        length: T; 1 if the body has no time axis.
        chunk: The body has a time axis, so the response has one too.
        seqs: One per stream, None if not given.
        afters: One per stream, None if not given.
        create: What to do if a stream is missing.
        keep: Which predictions are returned.
        faults: Errors of single rows, by index; the other rows are valid.
    """

    streams: list[str]
    inputs: dict[str, Array]
    length: int
    chunk: bool
    seqs: list[int | None]
    afters: list[bytes | None]
    create: Create
    keep: ReturnMode
    faults: dict[int, ServiceError] = field(default_factory=dict)


@dataclass(slots=True)
class FeedMessage:
    """One message of a feed.

    Attributes:
        body: Its timesteps.
        stream: Its stream id; None with columns, and on the feed of one stream.
        id: The client's id of the message, encoded in the message's format, or None.
    """

    body: StepBody | BulkBody
    stream: str | None
    id: Raw | None


# ------------------------------------------------------------------- for the typed decoders


class StepEnvelope(Struct, forbid_unknown_fields=True, gc=False):
    """The body of a step."""

    inputs: Raw
    seq: Seq | UnsetType = UNSET
    after: str | UnsetType = UNSET
    create: Create | UnsetType = UNSET


class StepsEnvelope(StepEnvelope, forbid_unknown_fields=True, gc=False):
    """The body of a chunk."""

    keep: ReturnMode | UnsetType = msgspec.field(name="return", default=UNSET)


class PeekEnvelope(StepsEnvelope, forbid_unknown_fields=True, gc=False):
    """The body of a peek."""

    chunk: bool | UnsetType = UNSET


class BulkEnvelope(Struct, forbid_unknown_fields=True, gc=False):
    """The body of a step of many streams."""

    streams: list[str]
    inputs: Raw
    seq: list[Seq | None] | UnsetType = UNSET
    after: list[str | None] | UnsetType = UNSET
    create: Create | UnsetType = UNSET


class BulkStepsEnvelope(BulkEnvelope, forbid_unknown_fields=True, gc=False):
    """The body of a chunk of many streams."""

    keep: ReturnMode | UnsetType = msgspec.field(name="return", default=UNSET)


class FeedEnvelope(StepsEnvelope, forbid_unknown_fields=True, gc=False):
    """A message of a feed for one stream."""

    stream: str | UnsetType = UNSET
    chunk: bool | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


class FeedColumnsEnvelope(BulkStepsEnvelope, forbid_unknown_fields=True, gc=False):
    """A message of a feed for many streams."""

    chunk: bool | UnsetType = UNSET
    id: Raw | UnsetType = UNSET


Envelope = StepEnvelope | BulkEnvelope


# ------------------------------------------------------------------- for the strict parser, which gives exact errors


def _is_seq(value: Any) -> bool:
    return type(value) is int and 1 <= value < SEQ_LIMIT


def _is_after(value: Any) -> bool:
    return isinstance(value, str) and is_state_id(value)


def _is_list_of(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(item is None or is_item(item) for item in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _one_of(literal: Any) -> tuple[Callable[[Any], bool], str]:
    values = get_args(literal)
    return (lambda value: value in values), "one of " + ", ".join(f'"{value}"' for value in values)


_SEQ = (_is_seq, f"an integer from 1 to {SEQ_LIMIT - 1}")
_AFTER = (_is_after, "a state_id of an earlier response, 22 characters")
_STEP_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "stream": (lambda value: isinstance(value, str), "a stream id"),
    "seq": _SEQ,
    "after": _AFTER,
    "create": _one_of(Create),
    "return": _one_of(ReturnMode),
    "chunk": (lambda value: isinstance(value, bool), "true or false"),
}
_BULK_CHECKS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    **_STEP_CHECKS,
    "streams": (_is_texts, "a list of stream ids"),
    "seq": (_is_list_of(_is_seq), f"a list of one per stream: {_SEQ[1]}, or null"),
    "after": (_is_list_of(_is_after), f"a list of one per stream: {_AFTER[1]}, or null"),
}


def check_envelope(document: Any, optional: tuple[str, ...], *, required: tuple[str, ...]) -> dict[str, Any]:
    """Return a body's document after checking its keys, and all its values but the tensors.

    Args:
        document: The body as plain values.
        optional: The optional keys.
        required: The required keys; with `streams` among them, `seq` and `after` are columns.

    Raises:
        ServiceError: `bad_request`.
    """
    if not isinstance(document, dict):
        bad_request(
            f"The body is {json_type(document)}; expected an object{' with ' if required else ''}"
            f"{' and '.join(required)}."
        )
    for key in document:
        if key not in required and key not in optional:
            bad_request(f"The body has the key {preview(key)}; expected {_listed((*required, *optional))}.")
    for key in required:
        if key not in document:
            bad_request(f"The body has no `{key}`; it has {_listed(tuple(map(preview, document))) or 'no keys'}.")
    checks = _BULK_CHECKS if "streams" in required else _STEP_CHECKS
    for key, value in document.items():
        if key in checks and not checks[key][0](value):
            bad_request(f"`{key}` is {_shown(value)}; expected {checks[key][1]}.")
    return document


def correlation_fields(stream: str | None, message_id: Raw | None) -> dict[str, Any]:
    """Return the first fields of a feed's response: the stream, and the client's id of the message."""
    fields: dict[str, Any] = {} if stream is None else {"stream": stream}
    if message_id is not None:
        fields["id"] = message_id
    return fields


def guess_correlation(message: bytes, body_format: Format) -> dict[str, Any]:
    """Return the correlation fields of a rejected message, as far as it can be parsed."""
    try:
        document = parse(message, body_format)
    except ServiceError:
        return {}
    if not isinstance(document, dict):
        return {}
    stream = document.get("stream")
    message_id = Raw(encode(document["id"], body_format)) if "id" in document else None
    return correlation_fields(stream if isinstance(stream, str) else None, message_id)


def bad_request(problem: str) -> NoReturn:
    """Raise `bad_request`; `problem` gives what was found and what was expected."""
    raise ServiceError("bad_request", problem, fix="Send the body as /docs describes it.")


def _shown(value: Any) -> str:
    """Return a preview of a value; a short list is shown by its items."""
    if isinstance(value, list) and len(value) <= 4:
        return f"[{', '.join(map(preview, value))}]"
    return preview(value)


def _listed(keys: tuple[str, ...]) -> str:
    return ", ".join(keys[:20])
