"""`Records`: the records from which rows of a batch continue, as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from stepwell.engine.stepping.record_cache import CachedRecord
from stepwell.store.record_arrays import read_headers
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.stepping.batch import Batch, Join

_ItemT = TypeVar("_ItemT")


class Records(NamedTuple):
    """The records from which rows of a batch continue: all of its rows, or those that are to be applied.

    Attributes:
        batch: The batch.
        at: The rows in the batch.
        headers: `(rows,)` of `HEADER_DTYPE`.
        states: Packed states, `(rows, bytes)` uint8.
        expiry_set_at: When each record's expiry was set, on the store's clock, `(rows,)` float64.
        sources: The table of positions of sources, see `record_arrays`; None: the records have none.
        one: The record of a batch of one row, if it was cached; headers, times and sources are empty then.
    """

    batch: Batch
    at: Sequence[int]
    headers: Array
    states: Array
    expiry_set_at: Array
    sources: Array | None = None
    one: CachedRecord | None = None

    @classmethod
    def of_one(cls, batch: Batch, cached: CachedRecord) -> Records:
        """Return the cached record of a batch of one row: for one row, a call of NumPy takes longer than its work."""
        return cls(batch, _FIRST, _NOTHING, cached.state, _NOTHING, None, cached)

    def in_columns(self) -> Records:
        """Return the same without `one`."""
        if self.one is None:
            return self
        header, _, expiry_set_at, sources = self.one
        if sources:
            self.batch.row(0).cached_sources = sources
        return self._replace(headers=read_headers([header]), expiry_set_at=np.array([expiry_set_at]), one=None)

    def select(self, rows: Sequence[int]) -> Records:
        """Return some of the records."""
        if self.one is not None or len(rows) == len(self.at):
            return self if rows else self._replace(at=())
        return self._replace(
            at=self.of(self.at, rows),
            headers=self.headers[rows],
            states=self.states[rows],
            expiry_set_at=self.expiry_set_at[rows],
            sources=None if self.sources is None else self.sources[rows],
        )

    @staticmethod
    def of(items: Sequence[_ItemT], rows: Sequence[int]) -> Sequence[_ItemT]:
        """Return the items of some rows."""
        return items if len(rows) == len(items) else [items[i] for i in rows]

    @property
    def is_whole(self) -> bool:
        """Whether these are all rows of the batch, and none of them has an object."""
        return len(self.at) == len(self.batch) and not self.batch.rows

    @property
    def length(self) -> int:
        """T of each row; a row that skips timesteps is alone."""
        row = self.batch.rows.get(self.at[0])
        return self.batch.length if row is None else self.batch.length - row.skipped

    def inputs(self, join: Join) -> Mapping[str, Array]:
        """Return each input of the timesteps that are to be applied, `(rows, T, *row)`."""
        row = self.batch.rows.get(self.at[0])
        if row is None or not row.skipped:
            return self.batch.inputs(self.at, join)
        return join([row.applied.inputs], row.applied.length)

    def of_equal_lengths(self) -> list[Records]:
        """Return the rows in parts that can be run together: a row that skips timesteps is run alone."""
        rows = self.batch.rows
        alone = [j for j, i in enumerate(self.at) if i in rows and rows[i].skipped] if rows else []
        if not alone:
            return [self] if self.at else []
        together = [j for j in range(len(self.at)) if j not in alone]
        return [self.select(part) for part in ([together] if together else []) + [[j] for j in alone]]


_FIRST = range(1)
_NOTHING = np.empty(0)
