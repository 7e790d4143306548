"""Where timesteps stand in the logs that they were read from."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, NamedTuple, Self

import numpy as np
from msgspec import Struct

from stepwell_export.runtime.manifest import Array

_MARK: Final = b"source"


@lru_cache(maxsize=1024)
def source_digest(source_id: str) -> bytes:
    """Return the digest by which a record names a source, 8 bytes."""
    return hashlib.blake2b(source_id.encode(), digest_size=8).digest()


class Source(Struct, frozen=True, gc=False):
    """Where the timesteps of a request stand in the log that they were read from.

    Attributes:
        digest: Digest of the log's id, 8 bytes.
        at: The position of each timestep, strictly growing, 0 or more.
        id: The log's id; empty: only its digest is known.
    """

    digest: bytes
    at: tuple[int, ...]
    id: str = ""

    @classmethod
    def of(cls, source_id: str, at: tuple[int, ...]) -> Self:
        """Return positions in the log with an id."""
        return cls(source_digest(source_id), at, source_id)

    def encode(self) -> bytes:
        """Return the bytes that an op id covers: a mark, the digest and the positions, `14 + 8 T` bytes."""
        return _MARK + self.digest + struct.pack(f"<{len(self.at)}Q", *self.at)


class BatchSources(NamedTuple):
    """Where the timesteps of a batch stand in their logs: a `Source` for each row, as columns.

    Attributes:
        digests: The digests of the logs' ids, each as a little-endian number, `(rows,)` uint64.
        at: The positions, `(rows, T)` uint64.
        ids: The logs' ids: one for all rows, or one for each.
    """

    digests: Array
    at: Array
    ids: Sequence[str]

    @classmethod
    def of(cls, sources: Sequence[Source]) -> Self:
        """Return the columns of sources that have equally many positions."""
        positions = np.fromiter(chain.from_iterable([one.at for one in sources]), np.uint64)
        digests = np.frombuffer(b"".join([one.digest for one in sources]), "<u8")
        return cls(digests, positions.reshape(len(sources), -1), [one.id for one in sources])

    def row(self, i: int) -> Source:
        """Return the source of a row."""
        digest = int(self.digests[i]).to_bytes(8, "little")
        return Source(digest, tuple(self.at[i].tolist()), self.ids[i if len(self.ids) > 1 else 0])

    def rows(self) -> list[Source]:
        """Return the source of each row."""
        digests = self.digests.astype("<u8", copy=False).view("V8").tolist()
        ids = self.ids if len(self.ids) == len(digests) else [*self.ids] * len(digests)
        return [*map(Source, digests, map(tuple, self.at.tolist()), ids)]

    def encode_behind(self, first: bytes, packed: Sequence[tuple[bytes, ...]]) -> list[bytes]:
        """Return for each row what `Source.encode` returns, behind other bytes.

        Args:
            first: What each row begins with.
            packed: What follows in each row, before its source; equally many bytes in all rows.
        """
        rows = len(self.at)
        own = np.frombuffer(b"".join([*chain.from_iterable(packed)]), np.uint8).reshape(rows, -1)
        head, mark_at = len(first), len(first) + own.shape[1]
        digest_at = mark_at + len(_MARK)
        table = np.empty((rows, digest_at + 8 + 8 * self.at.shape[1]), np.uint8)
        table[:, :head] = np.frombuffer(first, np.uint8)
        table[:, head:mark_at] = own
        table[:, mark_at:digest_at] = np.frombuffer(_MARK, np.uint8)
        table[:, digest_at : digest_at + 8] = self.digests.astype("<u8", copy=False).view(np.uint8).reshape(rows, 8)
        table[:, digest_at + 8 :] = self.at.astype("<u8", copy=False).view(np.uint8).reshape(rows, -1)
        return table.view(f"V{table.shape[1]}")[:, 0].tolist()  # type: ignore[no-any-return]  # NumPy's lists

    def select(self, rows: Sequence[int]) -> Self:
        """Return the sources of some rows, in this order."""
        ids = self.ids if len(self.ids) == 1 else [self.ids[row] for row in rows]
        return type(self)(self.digests[rows], self.at[rows], ids)
