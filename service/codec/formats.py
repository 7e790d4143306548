"""The two formats of bodies, and how each tells that it is meant."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec

_MSGPACK_TYPES = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")


class Format(Enum):
    """A format of bodies; `value` is its media type."""

    JSON = "application/json"
    MSGPACK = "application/msgpack"
    BYTES = "application/octet-stream"  # answers of the Open Inference Protocol alone: a document, then raw bytes

    __hash__ = object.__hash__  # an enum's own is Python code, and formats are looked up twice per step


JSON = Format.JSON
MSGPACK = Format.MSGPACK

_ENCODE = {JSON: msgspec.json.Encoder().encode, MSGPACK: msgspec.msgpack.Encoder().encode}


def encode(document: Any, form: Format) -> bytes:
    """Return a document of plain values (and `msgspec.Raw` of the same format) as bytes."""
    return _ENCODE[form](document)


def format_of_body(content_type: str | None) -> Format:
    """Return the format of a request's body. Everything but msgpack is read as JSON: curl says form by default."""
    if content_type is None or content_type == "application/json":
        return JSON
    return MSGPACK if content_type.partition(";")[0].strip().lower() in _MSGPACK_TYPES else JSON


def format_of_answer(accept: str | None, body: Format) -> Format:
    """Return the format that is wanted: the first that `Accept` names, else the body's own."""
    if accept is None or accept == "*/*":
        return body
    for part in accept.split(","):
        media = part.partition(";")[0].strip().lower()
        if media in _MSGPACK_TYPES:
            return MSGPACK
        if media in ("application/json", "application/*+json"):
            return JSON
    return body
