"""The formats of bodies, of the tensors in them, and the headers that select them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EVENT_STREAM = "text/event-stream"
"""The media type of server-sent events."""

_MSGPACK_TYPES = ("application/msgpack", "application/x-msgpack", "application/vnd.msgpack")


class Format(Enum):
    """A format of bodies; `value` is its media type."""

    JSON = "application/json"
    MSGPACK = "application/msgpack"
    BYTES = "application/octet-stream"  # responses of the Open Inference Protocol only: a document, then raw bytes

    __hash__ = object.__hash__  # that of `Enum` is Python code, and formats are looked up twice per step


JSON = Format.JSON
MSGPACK = Format.MSGPACK

_ENCODE = {JSON: msgspec.json.Encoder().encode, MSGPACK: msgspec.msgpack.Encoder().encode}


def encode(document: Any, body_format: Format) -> bytes:
    """Encode a document of plain values (and `msgspec.Raw` of the same format)."""
    return _ENCODE[body_format](document)


def encode_tensor(array: Array, body_format: Format) -> Any:
    """Encode an array as nested lists, or packed for msgpack."""
    if body_format is JSON:
        return array.tolist()
    raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return {"d": array.dtype.name, "s": list(array.shape), "b": raw.tobytes()}


def encode_tensors(arrays: Mapping[str, Array], body_format: Format) -> dict[str, Any]:
    """Encode arrays by name."""
    return {name: encode_tensor(array, body_format) for name, array in arrays.items()}


def format_of_body(content_type: str | None) -> Format:
    """Return the format of a request's body: JSON unless the type is msgpack, as curl sends a form type by default."""
    if content_type is None or content_type == "application/json":
        return JSON
    return MSGPACK if content_type.partition(";")[0].strip().lower() in _MSGPACK_TYPES else JSON


def format_of_answer(accept: str | None, body: Format) -> Format:
    """Return the format of the response: the one that `Accept` prefers, of equal ones the first, else that of the body.

    A weight of 0 excludes no format: a client that accepts none gets that of the body.
    """
    if accept is None or accept == "*/*":
        return body
    chosen, highest = body, 0.0
    for part in accept.split(","):
        media, *parameters = [text.strip() for text in part.lower().split(";")]
        if media in _MSGPACK_TYPES:
            found = MSGPACK
        elif media in ("application/json", "application/*+json"):
            found = JSON
        elif media in ("*/*", "application/*"):
            found = body
        else:
            continue
        if (weight := _weight(parameters)) > highest:
            chosen, highest = found, weight
    return chosen


def prefers_events(accept: str | None) -> bool:
    """Return whether `Accept` prefers server-sent events to JSON and msgpack; of equal ones, the first is preferred."""
    if accept is None or EVENT_STREAM not in accept.lower():
        return False
    chosen, highest = "", 0.0
    for part in accept.split(","):
        media, *parameters = [text.strip() for text in part.lower().split(";")]
        if media in (EVENT_STREAM, "application/json", *_MSGPACK_TYPES) and (weight := _weight(parameters)) > highest:
            chosen, highest = media, weight
    return chosen == EVENT_STREAM


def _weight(parameters: Iterable[str]) -> float:
    weights = [text.removeprefix("q=") for text in parameters if text.startswith("q=")]
    try:
        return float(weights[0]) if weights else 1.0
    except ValueError:
        return 1.0
