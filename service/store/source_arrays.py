"""Positions of sources of many records as one NumPy array; `record.py` describes how a record stores them.

A table of them is `(rows, MAX_SOURCES, 2)` uint64: for each record the sources used last first, each with its digest as
a little-endian number and its position. Entries that are not used have the position `NO_POSITION`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from model_export.manifest import Array
from service.store.record import MAX_SOURCES, SourcePosition

NO_POSITION: Final = 2**64 - 1
TABLE_BYTES: Final = 16 * MAX_SOURCES
"""Bytes of one record's row of a table."""
_DIGEST: Final = 0
_AT: Final = 1


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


def sources_in(row: Array) -> tuple[SourcePosition, ...]:
    """Return the sources of one record, from its row of a table."""
    return tuple([SourcePosition(digest.to_bytes(8, "little"), at) for digest, at in row.tolist() if at != NO_POSITION])


def advance_sources(table: Array, digests: Array, at: Array) -> Array | None:
    """Return the sources of records after a chunk of each was applied; None: they have to be advanced one by one.

    They are advanced together if each chunk is behind the position of its record's newest source, or its record has no
    source, and all records then have the same number of sources.

    Args:
        table: The sources before.
        digests: The digests of the chunks' sources, `(rows,)` uint64.
        at: Their positions, `(rows, T)` uint64.
    """
    newest_at = table[:, 0, _AT]
    is_behind = (table[:, 0, _DIGEST] == digests) & (newest_at < at[:, 0])
    if not (is_behind | (newest_at == NO_POSITION)).all():
        return None
    is_used = table[..., _AT] != NO_POSITION
    is_used[:, 0] = True  # from now on
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
