"""Decoding of a message's bytes into a document: JSON, msgpack, a line of CSV, or raw bytes."""

from __future__ import annotations

import csv
from collections.abc import Callable
from typing import Any

import msgspec

from stepwell.addons.connect.config import BodyFormat
from stepwell.addons.connect.formats.bodies import SchemaBodies
from stepwell.addons.connect.messages import BadMessageError, BrokerMessage
from stepwell.addons.recorded.csv_header import CsvHeader
from stepwell_client.wire.texts import counted

_json = msgspec.json.Decoder().decode
_msgpack = msgspec.msgpack.Decoder().decode
DATA_FIELD = b"data"
"""The only field of an entry of a Redis stream that is a body."""


class TextValue(str):
    """A field of a Redis entry or a cell of CSV: where a number is expected, the number that it has; else its text.

    A text of JSON or msgpack is never a number.
    """

    __slots__ = ()


def decoder_of(body_format: BodyFormat, bodies: SchemaBodies | None = None) -> Callable[[BrokerMessage], Any]:
    """Return the function that decodes messages of a format, with the schemas that it has; it raises `BadMessageError`.

    Entries of a Redis stream are decoded by their fields: the only field `data` has a body of the format, and other
    entries are dictionaries of `TextValue`.
    """
    decode_body = _DECODERS[body_format] if bodies is None else bodies.decode

    def decode(message: BrokerMessage) -> Any:
        fields = message.fields
        if message.header is not None:
            return _named(message.header, message.body)
        if fields is None:
            return decode_body(message.body)
        if len(fields) == 1 and DATA_FIELD in fields:
            return decode_body(fields[DATA_FIELD])
        try:
            return {name.decode(): TextValue(value.decode()) for name, value in fields.items()}
        except UnicodeDecodeError as exc:
            raise BadMessageError("bad_message", f"a field is not UTF-8: {exc}") from exc

    return decode


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


def _named(header: CsvHeader, body: bytes) -> dict[str, TextValue]:
    cells = _decode_csv(body, header.delimiter)
    if len(cells) != len(header.names):
        raise BadMessageError(
            "bad_message",
            f"the line has {counted(len(cells), 'cell')}; expected {len(header.names)}, as in the first line",
        )
    return dict(zip(header.names, cells, strict=True))


def _decode_csv(body: bytes, delimiter: str = ",") -> list[TextValue]:
    try:
        [row] = csv.reader([body.decode().rstrip("\r\n")], delimiter=delimiter, strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError) as exc:
        raise BadMessageError(
            "bad_message", f"the message is not one line of CSV, in which no cell has a line break: {exc}"
        ) from exc
    return [TextValue(cell) for cell in row]


def _decode_raw(body: bytes) -> Any:
    return body


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "json": _decode_json,
    "msgpack": _decode_msgpack,
    "csv": _decode_csv,
    "raw": _decode_raw,
}
