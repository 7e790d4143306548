"""The field `source` of a body: where its timesteps stand in the log that they were read from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import UNSET, Meta, Struct, UnsetType

from stepwell.codec.strict.parse import bad_request
from stepwell.types import BatchSources, Source, source_digest
from stepwell_client.wire.formats import Format
from stepwell_client.wire.ids import POSITION_LIMIT
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import Array

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


def check_source(source: SourceField | UnsetType, length: int) -> None:
    """Check that a body's source has a position for each of its timesteps, and that they grow.

    Raises:
        ServiceError: `bad_request`.
    """
    if source is not UNSET and (length != 1 or type(source.at) is not int):  # one position fits one timestep
        _check_positions(_positions(source), length, "`source.at`")


def sources_of(
    source: SourceColumns | UnsetType, count: int, body_format: Format, length: int, *, chunk: bool
) -> BatchSources | None:
    """Return the source of each stream of columns; None: the body has none.

    Args:
        source: The source of the body.
        count: Number of streams.
        body_format: The body's format; JSON has no packed positions.
        length: T.
        chunk: The columns have a time axis.

    Raises:
        ServiceError: `bad_request`.
    """
    if source is UNSET:
        return None
    ids, at = source.id, source.at
    rows: Any = at if isinstance(at, list) else _unpacked(at, body_format)
    for name, given in (("id", count if isinstance(ids, str) else len(ids)), ("at", len(rows))):
        if given != count:
            bad_request(
                f"`source.{name}` has {counted(given, 'entry', 'entries')} for {counted(count, 'stream')}; "
                "expected one for each."
            )
    if not _fits(rows, chunk=chunk):
        expected = "a list of positions for each stream" if chunk else "a position for each stream"
        bad_request(f"`source.at` does not fit the columns; expected {expected}.")
    at_columns = _columns(rows, length, chunk=chunk)
    return BatchSources(_digests(ids, count), at_columns, [ids] if isinstance(ids, str) else ids)


def source_of(source: SourceField) -> Source:
    """Return the source of a body that steps one stream."""
    at = source.at
    return Source.of(source.id, (at,) if type(at) is int else _positions(source))


def _positions(source: SourceField) -> tuple[int, ...]:
    return tuple(source.at) if isinstance(source.at, list) else (source.at,)


def _digests(ids: str | list[str], count: int) -> Array:
    """Return the digest of the log of each of `count` streams, `(streams,)` uint64."""
    digest_of = {one: source_digest(one) for one in ({ids} if isinstance(ids, str) else set(ids))}
    digests = digest_of[ids] * count if isinstance(ids, str) else b"".join([digest_of[one] for one in ids])
    return np.frombuffer(digests, "<u8")


def _fits(rows: Any, *, chunk: bool) -> bool:
    """Whether the positions have a time axis if they are of chunks, and none if they are not."""
    if isinstance(rows, np.ndarray):
        return (rows.ndim > 1) == chunk
    return not any(isinstance(row, list) != chunk for row in rows)


def _columns(rows: Any, length: int, *, chunk: bool) -> Array:
    """Return positions as columns, `(streams, T)` uint64, after a check of all streams at once.

    Raises:
        ServiceError: `bad_request`, for the first stream whose positions are wrong.
    """
    if not chunk or isinstance(rows, np.ndarray) or all(len(row) == length for row in rows):
        at: Array = rows.view("<u8") if isinstance(rows, np.ndarray) else np.array(rows, np.uint64)
        at = at.reshape(len(rows), -1)
        if at.shape[1] == length and (length == 1 or (at[:, 1:] > at[:, :-1]).all()):
            return at
    for i, row in enumerate(rows):
        _check_positions(row if chunk else (row,), length, f"`source.at[{i}]`")
    raise AssertionError("a row is wrong")


def _unpacked(packed: PackedPositions, body_format: Format) -> Array:
    size = math.prod(packed.s)
    if body_format is Format.JSON or len(packed.b) != 8 * size:
        bad_request(
            f"`source.at` is a packed array of {len(packed.b)} bytes; expected a list, or in msgpack {8 * size} bytes "
            f"for the shape {packed.s}."
        )
    rows = np.frombuffer(packed.b, "<i8")
    if size and rows.min() < 0:
        bad_request(f"`source.at` has the position {rows.min()}; expected 0 or more.")
    return rows.reshape(packed.s)


def _check_positions(at: Sequence[int], length: int, name: str) -> None:
    if len(at) != length:
        bad_request(
            f"{name} has {counted(len(at), 'position')} for {counted(length, 'timestep')}; expected one for each."
        )
    for before, after in itertools.pairwise(at):
        if after <= before:
            bad_request(f"{name} has {after} behind {before}; expected strictly growing positions.")
