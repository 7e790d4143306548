"""Where timesteps stand in the logs that they were read from."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Final, NamedTuple, Self

import numpy as np
from msgspec import Struct

from model_export.manifest import Array

_MARK: Final = b"source"


class Source(Struct, frozen=True, gc=False):
    """Where the timesteps of a request stand in the log that they were read from.

    Attributes:
        digest: Digest of the log's id, 8 bytes.
        at: The position of each timestep, strictly growing, 0 or more.
    """

    digest: bytes
    at: tuple[int, ...]

    def encode(self) -> bytes:
        """Return the bytes that an op id covers: a mark, the digest and the positions, `14 + 8 T` bytes."""
        return _MARK + self.digest + struct.pack(f"<{len(self.at)}Q", *self.at)


class BatchSources(NamedTuple):
    """Where the timesteps of a batch stand in their logs: a `Source` for each row, as columns.

    Attributes:
        digests: The digests of the logs' ids, each as a little-endian number, `(rows,)` uint64.
        at: The positions, `(rows, T)` uint64.
    """

    digests: Array
    at: Array

    @classmethod
    def of(cls, sources: Sequence[Source]) -> Self:
        """Return the columns of sources that have equally many positions."""
        positions = np.fromiter(chain.from_iterable([one.at for one in sources]), np.uint64)
        digests = np.frombuffer(b"".join([one.digest for one in sources]), "<u8")
        return cls(digests, positions.reshape(len(sources), -1))

    def rows(self) -> list[Source]:
        """Return the source of each row."""
        digests = self.digests.astype("<u8", copy=False).view("V8").tolist()
        return [*map(Source, digests, map(tuple, self.at.tolist()))]

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
        return type(self)(self.digests[rows], self.at[rows])
