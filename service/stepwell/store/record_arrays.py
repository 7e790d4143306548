"""Records of many streams as NumPy arrays; `record.py` describes the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from zlib_ng.zlib_ng import crc32

from stepwell.store.record import HEADER_BYTES, MAGIC, MAGIC_2, MAX_SOURCES, Record, SourcePosition, version_of
from stepwell_export.runtime.manifest import Array

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

OPAQUE_HEADER: Final = np.dtype(f"V{HEADER_DTYPE.itemsize}")
"""dtype of a header that is copied as a whole: field by field, NumPy takes ten times as long."""

NO_POSITION: Final = 2**64 - 1
"""The position of an entry of a table of sources that is not used.

A table is `(rows, MAX_SOURCES, 2)` uint64: for each record the sources used last first, each with its digest as a
little-endian number and its position.
"""
TABLE_BYTES: Final = 16 * MAX_SOURCES
"""Bytes of one record's row of a table of sources."""
_DIGEST: Final = 0
_AT: Final = 1

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


def take_headers(headers: Array, rows: Array | Sequence[int]) -> Array:
    """Return copies of some headers, `(rows,)` of `HEADER_DTYPE`."""
    return headers.view(OPAQUE_HEADER).take(rows).view(HEADER_DTYPE)


def put_headers(headers: Array, rows: Sequence[int], new: Array) -> None:
    """Overwrite some headers; `new` is `(rows,)` of `HEADER_DTYPE`, or `(1,)`, the same for all."""
    headers.view(OPAQUE_HEADER)[rows] = new.view(OPAQUE_HEADER)


def empty_sources(rows: int) -> Array:
    """Return the table of records without any source."""
    sources = np.zeros((rows, MAX_SOURCES, 2), "<u8")
    sources[..., _AT] = NO_POSITION
    return sources


def sources_table(rows: Sequence[Sequence[SourcePosition]]) -> Array:
    """Return the table of records with these sources."""
    table = empty_sources(len(rows))
    for i, sources in enumerate(rows):
        for j, (digest, at) in enumerate(sources):
            table[i, j] = int.from_bytes(digest, "little"), at
    return table


def have_sources(table: Array) -> Array:
    """Return whether each record has a source, `(rows,)` bool."""
    has: Array = table[:, 0, _AT] != NO_POSITION
    return has


def have_passed(table: Array, digests: Array, at: Array) -> Array:
    """Return whether each record's position of a source is at or behind another one, `(rows,)` bool.

    Args:
        table: The sources of the records.
        digests: The digest of the source, `(rows,)` uint64.
        at: The other position, `(rows,)` uint64.
    """
    positions = table[..., _AT]
    is_same = (table[..., _DIGEST] == digests[:, None]) & (positions != NO_POSITION)
    passed: Array = (is_same & (positions >= at[:, None])).any(axis=1)
    return passed


def sources_in(row: Array) -> tuple[SourcePosition, ...]:
    """Return the sources of one record, from its row of a table."""
    return tuple([SourcePosition(digest.to_bytes(8, "little"), at) for digest, at in row.tolist() if at != NO_POSITION])


def digests_in(table: Array) -> set[bytes]:
    """Return the digests of all sources in a table."""
    used = table[table[..., _AT] != NO_POSITION]
    return {digest.to_bytes(8, "little") for digest in used[:, _DIGEST].tolist()}


def advance_sources(table: Array, digests: Array, at: Array) -> Array | None:
    """Return the sources of records after a chunk of each was applied; None: they have to be advanced one by one.

    They are advanced together if each chunk is behind the position of its record's newest source, or its record has no
    source, and all records then have the same number of sources.

    Args:
        table: The sources before.
        digests: The digests of the chunks' sources, `(rows,)` uint64.
        at: Their positions, `(rows, T)` uint64.
    """
    newest_at, others_at = table[:, 0, _AT], table[:, 1:, _AT]
    is_behind = (table[:, 0, _DIGEST] == digests) & (newest_at < at[:, 0])
    if not is_behind.all() and not (is_behind | (newest_at == NO_POSITION)).all():
        return None
    if not (others_at == NO_POSITION).all():
        is_used = others_at != NO_POSITION
        if not (is_used == is_used[0]).all():
            return None
    advanced = table.copy()
    advanced[:, 0, _DIGEST], advanced[:, 0, _AT] = digests, at[:, -1]
    return advanced


def encode_sources(table: Array, answered_at: Array) -> Array:
    """Return what records of format 2 have behind their headers, `(rows, bytes)` uint8.

    Args:
        table: Their sources, the same number in each row and at least one.
        answered_at: The positions of their answers, `(rows, answers)` uint64.
    """
    count, n_answers = int((table[0, :, _AT] != NO_POSITION).sum()), answered_at.shape[1]
    section = np.empty((len(table), 1 + 2 * count + n_answers), "<u8")
    section[:, 0] = count | n_answers << 32
    section[:, 1 : 1 + 2 * count] = table[:, :count].reshape(len(table), -1)
    section[:, 1 + 2 * count :] = answered_at
    return section.view(np.uint8)


def decode_sources(sections: Array) -> Array | None:
    """Return the table of records of format 2; None: they have different numbers of sources, or are corrupt.

    Args:
        sections: What the records have behind their headers, `(rows, bytes)` uint8.
    """
    rows, size = sections.shape
    if size % 8:
        return None
    section = np.ascontiguousarray(sections).view("<u8")
    count, n_answers = divmod(int(section[0, 0]), 1 << 32)[::-1]
    if not 1 <= count <= MAX_SOURCES or section.shape[1] != 1 + 2 * count + n_answers:
        return None
    if (section[:, 0] != section[0, 0]).any():
        return None
    table = empty_sources(rows)
    table[:, :count] = section[:, 1 : 1 + 2 * count].reshape(rows, count, 2)
    return table


def record_with_sources(  # noqa: PLR0917 - the parts of a record
    header: Array,
    outputs: bytes,
    state: bytes,
    sources: tuple[SourcePosition, ...],
    answered_at: tuple[int, ...],
    versions: tuple[int, ...],
) -> Record:
    """Return the record with a header, a scalar of `HEADER_DTYPE`, and the positions of its sources.

    Args:
        header: The header.
        outputs: Packed predictions.
        state: The packed state.
        sources: As in `Record`.
        answered_at: As in `Record`.
        versions: The version that computed each answer of `answered_at`.
    """
    epoch, step, length, flags, updated_ms, created_ms, moved = (
        int(header[name]) for name in ("epoch", "step", "length", "flags", "updated_ms", "created_ms", "moved")
    )
    op_id, history_hash, fingerprint = (header[name].tobytes() for name in ("op_id", "history_hash", "fingerprint"))
    position = epoch, step, length, flags, op_id, history_hash, fingerprint
    versions = () if set(versions) <= {version_of(flags)} else versions
    return Record(*position, updated_ms, created_ms, outputs, state, sources, answered_at, moved, versions)


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


class DecodedRecords(NamedTuple):
    """Records of one model.

    Attributes:
        headers: `(records,)` of `HEADER_DTYPE`, as those of format 1.
        states: Packed states, `(records, bytes)` uint8.
        sources: The table of positions of sources; None: the records have none.
    """

    headers: Array
    states: Array
    sources: Array | None


def decode_records(records: Sequence[object], fingerprint: bytes, state_bytes: int) -> DecodedRecords | None:
    """Decode records of one model that have equal lengths, with the checks of `decode`.

    Args:
        records: The stored value of each stream; at least one.
        fingerprint: The model's fingerprint.
        state_bytes: Bytes of the model's packed state.

    Returns:
        None if a record is missing or corrupt (`decode` then gives the error), or if one has another length, model or
        number of sources than the others.
    """
    checked = _checked_table(records)
    if checked is None:
        return None
    table, headers = checked
    is_expected = (headers["state_bytes"] == state_bytes) & (headers["fingerprint"] == np.frombuffer(fingerprint, "V8"))
    if not is_expected.all():
        return None
    sources, header_bytes = None, int(headers["header_bytes"][0])
    if header_bytes != HEADER_BYTES:
        sources = decode_sources(table[:, HEADER_BYTES:header_bytes])
        if sources is None:
            return None
        headers["magic"], headers["header_bytes"] = MAGIC, HEADER_BYTES
    return DecodedRecords(headers, table[:, table.shape[1] - state_bytes :], sources)


def are_records(values: Sequence[object]) -> bool:
    """Return whether values are records of equal lengths that `decode` accepts; False: check each by itself."""
    return _table_without_sources(values) is not None


def with_epochs(records: Sequence[object], epochs: bytes) -> tuple[Array, list[bytes]] | None:
    """Return records with other epochs, as `record.with_epoch` does, after the checks of `decode`.

    Args:
        records: Encoded records.
        epochs: 8 bytes for each.

    Returns:
        The headers before that, `(records,)` of `HEADER_DTYPE`, and the encoded records. None if a record has another
        length or positions of sources, or is corrupt.
    """
    checked = _table_without_sources(records)
    if checked is None:
        return None
    table, headers = checked
    table[:, _EPOCH_AT] = np.frombuffer(epochs, np.uint8).reshape(len(table), 8)
    table[:, _MOVED_AT] = 0
    table[:, _CRC_AT] = _checksums(table).view(np.uint8).reshape(len(table), 4)
    return headers, _rows(table)


def _table_without_sources(values: Sequence[object]) -> tuple[Array, Array] | None:
    """Return what `_checked_table` does; None, too, if the records have positions of sources."""
    checked = _checked_table(values)
    return checked if checked is not None and checked[1]["header_bytes"][0] == HEADER_BYTES else None


def _checked_table(values: Sequence[object]) -> tuple[Array, Array] | None:
    """Return values as an array, `(values, bytes)` uint8 with checksums of zero, and their headers.

    None if they are not all records of one format, have different lengths or a wrong checksum, or if there are none.
    """
    records = [value for value in values if isinstance(value, bytes)]
    size = len(records[0]) if records else 0
    if len(records) < len(values) or size < HEADER_BYTES or any([len(record) != size for record in records]):  # noqa: C419 - generators are slow
        return None
    table = np.frombuffer(b"".join(records), np.uint8).reshape(len(records), size).copy()
    headers = table[:, :HEADER_BYTES].copy().view(HEADER_DTYPE)[:, 0]
    table[:, _CRC_AT] = 0
    header_bytes = max(HEADER_BYTES, int.from_bytes(records[0][4:8], "little"))
    magic = MAGIC if header_bytes == HEADER_BYTES else MAGIC_2
    valid = (headers["magic"] == magic) & (headers["header_bytes"] == header_bytes)
    lengths = headers["output_bytes"].astype(np.uint64) + headers["state_bytes"]
    valid &= lengths + header_bytes == size
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
