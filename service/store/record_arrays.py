"""Records of many streams as NumPy arrays; `record.py` describes the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from zlib_ng.zlib_ng import crc32

from model_export.manifest import Array
from service.store.record import HEADER_BYTES, MAGIC, MAGIC_2, MAX_SOURCES, Record, SourcePosition

HEADER_DTYPE: Final = np.dtype(
    [
        ("magic", "S4"),
        ("header_bytes", "<u4"),
        ("epoch", "<u8"),
        ("step", "<u8"),
        ("length", "<u4"),
        ("flags", "<u4"),
        ("op_id", "V16"),
        ("history_hash", "V16"),
        ("fingerprint", "V8"),
        ("output_bytes", "<u4"),
        ("state_bytes", "<u4"),
        ("moved", "<u4"),
        ("crc", "<u4"),
        ("updated_ms", "<u8"),
        ("created_ms", "<u8"),
    ]
)
"""dtype of a record's header."""

SOURCE_DTYPE: Final = np.dtype([("digest", "V8"), ("at", "<u8")])
"""dtype of one source's position. A record has `MAX_SOURCES` of them, those that it does not use at `NO_POSITION`."""
NO_POSITION: Final = 2**64 - 1

_EPOCH_AT: Final = slice(8, 16)
_MOVED_AT: Final = slice(80, 84)
_CRC_AT: Final = slice(84, 88)
_GUARD_AT: Final = slice(8, 64)


def empty_header(fingerprint: bytes) -> Array:
    """Return the header of a stream before its first operation, `(1,)` of `HEADER_DTYPE`."""
    header = np.zeros(1, HEADER_DTYPE)
    header["magic"], header["header_bytes"] = MAGIC, HEADER_BYTES
    header["fingerprint"] = np.frombuffer(fingerprint, "V8")
    return header


def read_headers(records: Sequence[bytes]) -> Array:
    """Return the headers of encoded records, `(records,)` of `HEADER_DTYPE`, as those of format 1."""
    headers = np.frombuffer(b"".join([record[:HEADER_BYTES] for record in records]), HEADER_DTYPE).copy()
    headers["magic"], headers["header_bytes"] = MAGIC, HEADER_BYTES
    return headers


def empty_sources(rows: int) -> Array:
    """Return the sources of records without any, `(rows, MAX_SOURCES)` of `SOURCE_DTYPE`."""
    sources = np.zeros((rows, MAX_SOURCES), SOURCE_DTYPE)
    sources["at"] = NO_POSITION
    return sources


def sources_table(rows: Sequence[Sequence[SourcePosition]]) -> Array:
    """Return the sources of records, `(rows, MAX_SOURCES)` of `SOURCE_DTYPE`."""
    table = empty_sources(len(rows))
    for i, sources in enumerate(rows):
        for j, (digest, at) in enumerate(sources):
            table[i, j] = np.void(digest), at
    return table


def sources_in(row: Array) -> tuple[SourcePosition, ...]:
    """Return the sources of one record, from its row of such a table."""
    positions = zip(row["digest"].tolist(), row["at"].tolist(), strict=True)
    return tuple([SourcePosition(digest, at) for digest, at in positions if at != NO_POSITION])


def advance_sources(table: Array, digests: Array, at: Array) -> Array | None:
    """Return the sources of records after a chunk of each was applied; None: they have to be advanced one by one.

    They are advanced together if each chunk is behind the position of its record's newest source, or its record has no
    source, and all records then have the same number of sources.

    Args:
        table: The sources before, `(rows, MAX_SOURCES)` of `SOURCE_DTYPE`.
        digests: The chunks' sources, `(rows,)` V8.
        at: Their positions, `(rows, T)` uint64.
    """
    newest = table[:, 0]
    is_new = newest["at"] == NO_POSITION
    is_behind = (newest["digest"] == digests) & (newest["at"] < at[:, 0])
    counts = np.maximum((table["at"] != NO_POSITION).sum(axis=1), 1)
    if not (is_new | is_behind).all() or (counts != counts[0]).any():
        return None
    advanced = table.copy()
    advanced["digest"][:, 0], advanced["at"][:, 0] = digests, at[:, -1]
    return advanced


def encode_sources(table: Array, answered_at: Array) -> Array:
    """Return what records of format 2 have behind their headers, `(rows, bytes)` uint8.

    Args:
        table: Their sources, `(rows, MAX_SOURCES)` of `SOURCE_DTYPE`, the same number in each row and at least one.
        answered_at: The positions of their answers, `(rows, answers)` uint64.
    """
    rows, count = len(table), int((table[0]["at"] != NO_POSITION).sum())
    counts = np.broadcast_to(np.array([count, answered_at.shape[1]], "<u4").view(np.uint8), (rows, 8))
    used = np.ascontiguousarray(table[:, :count]).view(np.uint8).reshape(rows, count * SOURCE_DTYPE.itemsize)
    answers = np.ascontiguousarray(answered_at, "<u8").view(np.uint8).reshape(rows, -1)
    return np.concatenate([counts, used, answers], axis=1)


def record_with_sources(
    header: Array, outputs: bytes, state: bytes, sources: tuple[SourcePosition, ...], answered_at: tuple[int, ...]
) -> Record:
    """Return the record with a header, a scalar of `HEADER_DTYPE`, and the positions of its sources."""
    epoch, step, length, flags, updated_ms, created_ms, moved = (
        int(header[name]) for name in ("epoch", "step", "length", "flags", "updated_ms", "created_ms", "moved")
    )
    op_id, history_hash, fingerprint = (header[name].tobytes() for name in ("op_id", "history_hash", "fingerprint"))
    position = epoch, step, length, flags, op_id, history_hash, fingerprint
    return Record(*position, updated_ms, created_ms, outputs, state, sources, answered_at, moved)


def guards(headers: Array) -> Array:
    """Return each header's guard, the 56 bytes that the store compares, `(headers, 56)` uint8."""
    return headers.view(np.uint8).reshape(len(headers), HEADER_BYTES)[:, _GUARD_AT]


def encode_records(table: Array, headers: Array, outputs: Array, states: Array, sources: Array | None = None) -> None:
    """Encode every record as `Record.encode` does.

    Args:
        table: The array to write to, `(rows, bytes of a record)` uint8; each row is contiguous.
        headers: `(rows,)` of `HEADER_DTYPE`; their lengths and checksums are overwritten.
        outputs: Packed predictions, `(rows, bytes)` uint8.
        states: Packed states, `(rows, bytes)` uint8.
        sources: What `encode_sources` returns; None: records of format 1.
    """
    header_bytes = HEADER_BYTES if sources is None else HEADER_BYTES + sources.shape[1]
    rows, end = len(headers), header_bytes + outputs.shape[1]
    headers["output_bytes"], headers["state_bytes"], headers["crc"] = outputs.shape[1], states.shape[1], 0
    table[:, :HEADER_BYTES] = headers.view(np.uint8).reshape(rows, HEADER_BYTES)
    if sources is not None:  # `headers` stay those of format 1
        table[:, :8] = np.frombuffer(MAGIC_2 + header_bytes.to_bytes(4, "little"), np.uint8)
        table[:, HEADER_BYTES:header_bytes] = sources
    table[:, header_bytes:end] = outputs
    table[:, end:] = states
    table[:, _CRC_AT] = _checksums(table).view(np.uint8).reshape(rows, 4)


def decode_records(records: Sequence[object], fingerprint: bytes, state_bytes: int) -> tuple[Array, Array] | None:
    """Decode records of one model that have equal lengths, with the checks of `decode`.

    Args:
        records: The stored value of each stream; at least one.
        fingerprint: The model's fingerprint.
        state_bytes: Bytes of the model's packed state.

    Returns:
        Headers, `(records,)` of `HEADER_DTYPE`, and states, `(records, state_bytes)` uint8. None if a record is
        missing, has another length or model, or is corrupt; `decode` then gives the error.
    """
    checked = _checked_table(records)
    if checked is None:
        return None
    table, headers = checked
    is_expected = (headers["state_bytes"] == state_bytes) & (headers["fingerprint"] == np.frombuffer(fingerprint, "V8"))
    if not is_expected.all():
        return None
    return headers, np.ascontiguousarray(table[:, table.shape[1] - state_bytes :])


def are_records(values: Sequence[object]) -> bool:
    """Return whether values are records of equal lengths that `decode` accepts; False: check each by itself."""
    return _checked_table(values) is not None


def with_epochs(records: Sequence[object], epochs: bytes) -> tuple[Array, list[bytes]] | None:
    """Return records with other epochs, as `record.with_epoch` does, after the checks of `decode`.

    Args:
        records: Encoded records.
        epochs: 8 bytes for each.

    Returns:
        The headers before that, `(records,)` of `HEADER_DTYPE`, and the encoded records. None if a record has another
        length or positions of sources, or is corrupt.
    """
    checked = _checked_table(records)
    if checked is None:
        return None
    table, headers = checked
    table[:, _EPOCH_AT] = np.frombuffer(epochs, np.uint8).reshape(len(table), 8)
    table[:, _MOVED_AT] = 0
    table[:, _CRC_AT] = _checksums(table).view(np.uint8).reshape(len(table), 4)
    return headers, _rows(table)


def _checked_table(values: Sequence[object]) -> tuple[Array, Array] | None:
    """Return values as an array, `(values, bytes)` uint8 with checksums of zero, and their headers.

    None if they are not all records of format 1, have different lengths or a wrong checksum, or if there are none.
    """
    records = [value for value in values if isinstance(value, bytes)]
    size = len(records[0]) if records else 0
    if len(records) < len(values) or size < HEADER_BYTES or any([len(record) != size for record in records]):  # noqa: C419 - see all_finite
        return None
    table = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), size).copy()
    headers = table[:, :HEADER_BYTES].copy().view(HEADER_DTYPE)[:, 0]
    table[:, _CRC_AT] = 0
    valid = (headers["magic"] == MAGIC) & (headers["header_bytes"] == HEADER_BYTES)
    lengths = headers["output_bytes"].astype(np.uint64) + headers["state_bytes"]
    valid &= lengths == size - HEADER_BYTES
    if not valid.all() or (headers["crc"] != _checksums(table)).any():
        return None
    return table, headers


def _checksums(table: Array) -> Array:
    """Return the CRC-32 of each row, `(rows,)` uint32; each row is contiguous."""
    return np.array([*map(crc32, _rows(table))], "<u4")


def _rows(table: Array) -> list[bytes]:
    """Return the bytes of each row of an array `(rows, bytes)` uint8; each row is contiguous."""
    rows: list[bytes] = table.view(f"V{table.shape[1]}")[:, 0].tolist()
    return rows
