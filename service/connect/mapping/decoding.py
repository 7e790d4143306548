"""Decoding of a message's bytes into a document: JSON, msgpack, a line of CSV, or raw bytes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import msgspec

from service.connect.config import BodyFormat
from service.connect.messages import BadMessageError, BrokerMessage

_json = msgspec.json.Decoder().decode
_msgpack = msgspec.msgpack.Decoder().decode
DATA_FIELD = b"data"
"""The only field of an entry of a Redis stream that is a body."""


def decoder_of(body_format: BodyFormat) -> Callable[[BrokerMessage], Any]:
    """Return the function that decodes messages of a format; it raises `BadMessageError`.

    Entries of a Redis stream are decoded by their fields: the only field `data` has a body of the format, and other
    entries are dictionaries of numbers and texts.
    """
    decode_body = _DECODERS[body_format]

    def decode(message: BrokerMessage) -> Any:
        fields = message.fields
        if fields is None:
            return decode_body(message.body)
        if len(fields) == 1 and DATA_FIELD in fields:
            return decode_body(fields[DATA_FIELD])
        try:
            return {name.decode(): number_or_text(value.decode()) for name, value in fields.items()}
        except UnicodeDecodeError as exc:
            raise BadMessageError("bad_message", f"a field is not UTF-8: {exc}") from exc

    return decode


def number_or_text(text: str) -> int | float | str:
    """Return the number that a text has, or the text."""
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return text


def _decode_json(body: bytes) -> Any:
    try:
        return _json(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise BadMessageError("bad_json", f"the message is not JSON: {exc}") from exc


def _decode_msgpack(body: bytes) -> Any:
    try:
        return _msgpack(body)
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise BadMessageError("bad_message", f"the message is not msgpack: {exc}") from exc


def _decode_csv(body: bytes) -> Any:
    try:
        [row] = csv.reader([body.decode().rstrip("\r\n")], strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError) as exc:
        raise BadMessageError("bad_message", f"the message is not one line of CSV: {exc}") from exc
    return [number_or_text(field) for field in row]


def _decode_raw(body: bytes) -> Any:
    return body


_DECODERS: dict[BodyFormat, Callable[[bytes], Any]] = {
    "json": _decode_json,
    "msgpack": _decode_msgpack,
    "csv": _decode_csv,
    "raw": _decode_raw,
}
