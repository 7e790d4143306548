"""Rows of many streams as blocks: chunks of equal length of some of the streams."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from stepwell_export.runtime.manifest import Array

CHUNK = 128
"""Timesteps of a stream in one block, a power of two."""

_MOST_BYTES = 48 << 20


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of recorded data, those of each stream in their order.

    Attributes:
        codes: The stream of each row, `(n,)`.
        positions: The number of each row over all files, from 0, `(n,)` int64.
        inputs: `(n, *row)` by input.
        times: The time of each row, `(n,)` float64; None: it is not known.
    """

    codes: Array
    positions: Array
    inputs: dict[str, Array]
    times: Array | None = None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        """Bytes in memory, with those of sorting the rows by stream."""
        return sum(array.nbytes for array in self.inputs.values()) + 3 * self.positions.nbytes

    def where(self, keep: Array | slice) -> Rows:
        """Return the rows of a slice, or those that a mask `(n,)` keeps."""
        inputs = {name: array[keep] for name, array in self.inputs.items()}
        return Rows(self.codes[keep], self.positions[keep], inputs, None if self.times is None else self.times[keep])

    def groups(self, width: int) -> list[Group]:
        """Divide the streams into groups of at most `width` streams, of about equally many rows each."""
        order = np.argsort(self.codes, kind="stable")
        codes, starts, counts = np.unique(self.codes[order], return_index=True, return_counts=True)
        by_count = np.argsort(-counts, kind="stable")
        parts = (by_count[start : start + width] for start in range(0, len(codes), width))
        return [Group(self, order, codes[part], starts[part], counts[part]) for part in parts]


@dataclass(frozen=True, slots=True)
class Block:
    """A chunk of each of some streams.

    Attributes:
        codes: The streams, `(N,)`.
        positions: The number of each timestep's row over all files, `(N, T)` int64.
        inputs: `(N, T, *row)` by input.
    """

    codes: Array
    positions: Array
    inputs: dict[str, Array]

    @property
    def size(self) -> int:
        """Timesteps in the block."""
        return self.positions.size


class Group:
    """Some streams' rows, as blocks that follow each other in time."""

    def __init__(self, rows: Rows, order: Array, codes: Array, starts: Array, counts: Array) -> None:
        """Use `Rows.groups`."""
        self._rows, self._order = rows, order
        self._codes, self._starts, self._left = codes, starts.copy(), counts.copy()

    def blocks(
        self, chunk: Callable[[], int] = lambda: CHUNK, leave_out: Collection[int] = frozenset()
    ) -> Iterator[Block]:
        """Yield blocks of `chunk` timesteps, and of smaller powers of two for the rest.

        Args:
            chunk: Returns the number of timesteps of the next block at most, a power of two.
            leave_out: Codes of streams that are left out from now on; it may grow meanwhile.
        """
        while True:
            if leave_out:
                self._left[np.isin(self._codes, list(leave_out))] = 0
            most = int(self._left.max(initial=0))
            if not most:
                return
            length = min(chunk(), 1 << (most.bit_length() - 1))
            taken = np.flatnonzero(self._left >= length)
            index = self._order[self._starts[taken, None] + np.arange(length)]
            rows = self._rows
            yield Block(
                self._codes[taken], rows.positions[index], {name: array[index] for name, array in rows.inputs.items()}
            )  # fmt: skip
            self._starts[taken] += length
            self._left[taken] -= length


def gathered(parts: Iterable[Rows], most_bytes: int = _MOST_BYTES) -> Iterator[Rows]:
    """Join consecutive rows, so that long chunks of many streams are together; memory stays bounded."""
    held: list[Rows] = []
    for rows in parts:
        held.append(rows)
        if sum(each.nbytes for each in held) >= most_bytes:
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(parts: Sequence[Rows]) -> Rows:
    if len(parts) == 1:
        return parts[0]
    return Rows(
        np.concatenate([rows.codes for rows in parts]),
        np.concatenate([rows.positions for rows in parts]),
        {name: np.concatenate([rows.inputs[name] for rows in parts]) for name in parts[0].inputs},
    )
