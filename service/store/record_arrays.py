"""Records of many streams at once, in arrays; `record.py` has the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from zlib_ng.zlib_ng import crc32

from model_export.manifest import Array
from service.store.record import HEADER_BYTES, MAGIC

HEAD: Final = np.dtype(
    [
        ("magic", "S4"),
        ("header_bytes", "<u4"),
        ("epoch", "<u8"),
        ("step", "<u8"),
        ("length", "<u4"),
        ("flags", "<u4"),
        ("op_id", "V16"),
        ("chain", "V16"),
        ("fingerprint", "V8"),
        ("output_bytes", "<u4"),
        ("state_bytes", "<u4"),
        ("codec", "<u4"),
        ("crc", "<u4"),
        ("updated_ms", "<u8"),
        ("created_ms", "<u8"),
    ]
)
"""A record's header, one element of an array of them."""

_CRC_AT: Final = slice(84, 88)
_GUARD_AT: Final = slice(8, 64)


def empty_header(fingerprint: bytes) -> Array:
    """Return the header that a stream has before its first operation, shape `(1,)` of `HEAD`."""
    head = np.zeros(1, HEAD)
    head["magic"], head["header_bytes"] = MAGIC, HEADER_BYTES
    head["fingerprint"] = np.frombuffer(fingerprint, "V8")
    return head


def read_headers(records: Sequence[bytes]) -> Array:
    """Return the headers of encoded records, shape `(records,)` of `HEAD`."""
    return np.frombuffer(b"".join([record[:HEADER_BYTES] for record in records]), HEAD)


def guards(heads: Array) -> Array:
    """Return each header's 56 bytes that the store compares, `(headers, 56)` uint8."""
    return heads.view(np.uint8).reshape(len(heads), HEADER_BYTES)[:, _GUARD_AT]


def encode_records(table: Array, heads: Array, outputs: Array, states: Array) -> None:
    """Write every record as `Record.encode` would.

    Args:
        table: Where to, `(rows, bytes of a record)` uint8; a row's bytes lie together.
        heads: Headers, `(rows,)` of `HEAD`; their lengths and checksums need not be right.
        outputs: Kept predictions, `(rows, bytes)` uint8.
        states: Packed states, `(rows, bytes)` uint8.
    """
    rows, end = len(heads), HEADER_BYTES + outputs.shape[1]
    heads["output_bytes"], heads["state_bytes"], heads["crc"] = outputs.shape[1], states.shape[1], 0
    table[:, :HEADER_BYTES] = heads.view(np.uint8).reshape(rows, HEADER_BYTES)
    table[:, HEADER_BYTES:end] = outputs
    table[:, end:] = states
    table[:, _CRC_AT] = _checksums(table).view(np.uint8).reshape(rows, 4)


def decode_records(records: Sequence[object], fingerprint: bytes, state_bytes: int) -> tuple[Array, Array] | None:
    """Read records of one model that are equally long, as `decode` would; trusts nothing.

    Args:
        records: What is stored of each stream; at least one.
        fingerprint: Of the model.
        state_bytes: What its state measures.

    Returns:
        Headers, `(records,)` of `HEAD`, and states, `(records, state_bytes)` uint8. None: one of them is missing, of
        another length or model, or not sound; `decode` tells what.
    """
    found = [record for record in records if isinstance(record, bytes)]
    size = len(found[0]) if found else 0
    output_bytes = size - HEADER_BYTES - state_bytes
    if len(found) < len(records) or output_bytes < 0 or any([len(record) != size for record in found]):  # noqa: C419 - see all_finite
        return None
    table = np.frombuffer(b"".join(found), np.uint8).reshape(len(found), size).copy()
    heads = table[:, :HEADER_BYTES].copy().view(HEAD)[:, 0]
    table[:, _CRC_AT] = 0
    sound = heads["crc"] == _checksums(table)
    wanted = {"magic": MAGIC, "header_bytes": HEADER_BYTES, "output_bytes": output_bytes, "state_bytes": state_bytes}
    for name, value in wanted.items():
        sound &= heads[name] == value
    sound &= heads["fingerprint"] == np.frombuffer(fingerprint, "V8")
    if not sound.all():
        return None
    return heads, np.ascontiguousarray(table[:, size - state_bytes :])


def _checksums(table: Array) -> Array:
    """Return the CRC-32 of each row, `(rows,)` uint32; a row's bytes lie together."""
    records = table.view(f"V{table.shape[1]}")[:, 0]
    return np.array([*map(crc32, records.tolist())], "<u4")
