"""`RecordCache`: the worker's recently used records. A cached record can save a load; it decides no error or replay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from stepwell.store.record import SourcePosition
from stepwell.store.record_arrays import (
    HEADER_DTYPE,
    OPAQUE_HEADER,
    TABLE_BYTES,
    empty_sources,
    have_sources,
    sources_in,
    sources_table,
)
from stepwell_export.runtime.manifest import Array

EMPTY_SLOT = 0  # the slot of streams that are not cached; it holds the header and state of a new stream
_OVERHEAD = 260  # bytes of Python objects per record: its name, a dict entry, two list slots


class CachedRecord(NamedTuple):
    """One stream's record in the cache; the store may have another one.

    Attributes:
        header: The header, 104 bytes.
        state: The packed state, `(1, bytes)` uint8.
        expiry_set_at: When its expiry was last set for certain, on the store's clock.
        sources: The positions of sources.
    """

    header: bytes
    state: Array
    expiry_set_at: float
    sources: tuple[SourcePosition, ...] = ()


class CacheMemory:
    """Divides memory among the caches of all models: each gets what it needs, at most an equal share if that is short.

    Args:
        limit_bytes: Memory for all caches.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._caches: list[RecordCache] = []

    def new_cache(self, header: Array, state: bytes) -> RecordCache:
        """Return an empty cache. It gets memory that the others do not need, and more when it is full.

        Args:
            header: The header of a new stream, `(1,)` of `HEADER_DTYPE`.
            state: The packed state of a new stream.
        """
        cache = RecordCache(header, state, 0, on_full=self._divide)
        self._caches.append(cache)
        self._divide()
        return cache

    def remove(self, cache: RecordCache) -> None:
        """Release a cache's memory."""
        self._caches.remove(cache)
        self._divide()

    def _divide(self) -> None:
        """Set every cache's limit: four times its current size, so that it grows in a few steps, or its equal share."""
        min_bytes = self._limit // (8 * max(len(self._caches), 1))
        needs = {cache: max(4 * cache.nbytes, min_bytes) for cache in self._caches}
        bounds: dict[RecordCache, int] = {}
        remaining = self._limit
        for n, (cache, need) in enumerate(sorted(needs.items(), key=itemgetter(1))):
            bounds[cache] = min(need, remaining // (len(needs) - n))
            remaining -= bounds[cache]
        for cache, bound in bounds.items():
            cache.limit(bound + remaining // len(bounds))


class RecordCache:
    """Recently used records of one model, in arrays, bounded in bytes.

    When it is full, the next record evicts one that was not requested since the hand last passed it (CLOCK, an
    approximation of least recently used).
    """

    def __init__(
        self, header: Array, state: bytes, limit_bytes: int, *, on_full: Callable[[], None] | None = None
    ) -> None:
        """Create an empty cache.

        Args:
            header: The header of a new stream, `(1,)` of `HEADER_DTYPE`.
            state: The packed state of a new stream.
            limit_bytes: Maximum memory. It is allocated as records are added, not at once.
            on_full: Called when the cache becomes full, once after each `limit` that left it free slots.
        """
        self._row_bytes = HEADER_DTYPE.itemsize + len(state) + 8 + _OVERHEAD
        self._headers = header.view(OPAQUE_HEADER)
        self._states = np.frombuffer(state, np.uint8)[None]
        self._expiry_set_at = np.full(1, -np.inf)
        self._sources: Array | None = None  # allocated with the first record that has any
        self._slot_of: dict[str, int] = {}
        self._names: list[str] = [""]  # of the slots that were ever used
        self._free: list[int] = []
        self._referenced = bytearray(1)
        self._hand = 1
        self._on_full = on_full
        self.limit(limit_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes that its records use."""
        return len(self._slot_of) * self._row_bytes

    @property
    def is_full(self) -> bool:
        """Whether the next record evicts another."""
        return len(self._slot_of) >= self._slots - 1

    def limit(self, limit_bytes: int) -> None:
        """Set another limit; if more is in use, records in slots beyond the limit are evicted."""
        self._limit_bytes = limit_bytes
        self._slots = 1 + max(limit_bytes // self._row_bytes, 1)
        if len(self._names) > self._slots:
            self._evict_from(self._slots)
            for table in (self._headers, self._states, self._expiry_set_at):
                table.resize((self._slots, *table.shape[1:]), refcheck=False)  # in place: there are no views of it
            if self._sources is not None:
                self._sources.resize((self._slots, *self._sources.shape[1:]), refcheck=False)
        elif len(self._headers) < self._slots:
            self._headers, self._states, self._expiry_set_at = map(
                self._enlarged, (self._headers, self._states, self._expiry_set_at)
            )
            if self._sources is not None:
                self._sources = self._enlarged(self._sources)
        self._may_grow = not self.is_full

    def _enlarged(self, table: Array) -> Array:
        new = np.empty((self._slots, *table.shape[1:]), table.dtype)  # the kernel allocates pages on their first write
        new[: len(self._names)] = table[: len(self._names)]
        return new

    def _evict_from(self, slot: int) -> None:
        """Evict this slot and all later ones. A search for the least used of a million records would take a second."""
        for name in self._names[slot:]:
            if self._slot_of.get(name, EMPTY_SLOT) >= slot:
                del self._slot_of[name]
        del self._names[slot:], self._referenced[slot:]
        self._free = [free for free in self._free if free < slot]
        self._hand = 1

    def slots_for(self, names: Sequence[str]) -> Array:
        """Return the slots of streams' cached records, which may be stale; `EMPTY_SLOT`: not cached.

        A slot is valid until the next `put` or `limit`.

        Returns:
            `(names,)`, to index arrays with.
        """
        slots = np.array([*map(self._slot_of.get, names, repeat(EMPTY_SLOT))], np.intp)
        np.frombuffer(self._referenced, np.uint8)[slots] = 1
        return slots

    def headers(self, slots: Array) -> Array:
        """Return copies of the headers, `(slots,)` of `HEADER_DTYPE`."""
        return self._headers.take(slots).view(HEADER_DTYPE)

    def states(self, slots: Array) -> Array:
        """Return copies of the packed states, `(slots, bytes)` uint8."""
        return self._states.take(slots, axis=0)

    def expiry_set_at(self, slots: Array) -> Array:
        """Return when each record's expiry was last set for certain, on the store's clock, `(slots,)` float64."""
        return self._expiry_set_at.take(slots)

    def sources(self, slots: Array) -> Array | None:
        """Return a table of copies of the positions of sources, see `record_arrays`; None: all have none."""
        if self._sources is None:
            return None
        found = self._sources.take(slots, axis=0)
        return found if have_sources(found).any() else None

    def get_one(self, name: str) -> CachedRecord | None:
        """Return a copy of one stream's cached record, which may be stale; None: it is not cached."""
        slot = self._slot_of.get(name)
        if slot is None:
            return None
        self._referenced[slot] = 1
        state, expiry_set_at = self._states[slot : slot + 1].copy(), float(self._expiry_set_at[slot])
        sources = () if self._sources is None else sources_in(self._sources[slot])
        return CachedRecord(self._headers[slot].tobytes(), state, expiry_set_at, sources)

    def put_one(self, name: str, record: CachedRecord) -> None:
        """Add or replace one stream's record."""
        header, state, expiry_set_at, sources = record
        slot = self._slot_of.get(name)
        if slot is None or (sources and self._sources is None):  # evicted since it was read, or the first one with any
            table = sources_table([sources]) if sources else None
            self.put([name], np.frombuffer(header, HEADER_DTYPE), state, expiry_set_at, table)
            return
        self._headers[slot] = np.frombuffer(header, OPAQUE_HEADER)[0]
        self._states[slot] = state[0]
        self._expiry_set_at[slot] = expiry_set_at
        if self._sources is not None:
            self._sources[slot] = sources_table([sources])[0]

    def put(
        self,
        names: Sequence[str],
        headers: Array,
        states: Array,
        expiry_set_at: Array | float,
        sources: Array | None = None,
    ) -> None:
        """Add or replace records, as the store now has them; shapes as above. Without `sources`, they have none."""
        if sources is not None and self._sources is None:
            self._row_bytes += TABLE_BYTES
            self.limit(self._limit_bytes)
            self._sources = self._enlarged(empty_sources(len(self._names)))
        slot_of = self._slot_of.get
        found = [*map(slot_of, names)]
        if None in found:  # an allocation may evict one of the others, so each is looked up after those before it
            found = [slot_of(name) or self._allocate_slot(name) for name in names]
        slots = np.array(found, np.intp)
        self._headers[slots] = headers.view(OPAQUE_HEADER)
        self._states[slots] = states
        self._expiry_set_at[slots] = expiry_set_at
        if self._sources is not None:
            self._sources[slots] = empty_sources(1) if sources is None else sources
        if self._may_grow and self.is_full and self._on_full is not None:
            self._may_grow = False
            self._on_full()

    def drop(self, name: str) -> None:
        """Drop a stream's record, whenever the store may have another one."""
        slot = self._slot_of.pop(name, EMPTY_SLOT)
        if slot:
            self._free.append(slot)

    def clear(self) -> None:
        """Drop all records."""
        self._evict_from(1)

    def indices_of(self, names: Sequence[str], indices: Sequence[int]) -> list[int]:
        """Return those of some indices of `names`, in ascending order, whose streams' records are cached."""
        slot_of = self._slot_of
        if slot_of.keys().isdisjoint(names):
            return []
        is_cached = [*map(slot_of.__contains__, names)]
        return [i for i in indices if is_cached[i]]

    def __contains__(self, name: str) -> bool:
        """Whether a stream's record is cached."""
        return name in self._slot_of

    def __len__(self) -> int:
        """The number of cached records."""
        return len(self._slot_of)

    def _allocate_slot(self, name: str) -> int:
        if self._free:
            slot = self._free.pop()
            self._names[slot] = name
        elif len(self._names) < self._slots:
            slot = len(self._names)
            self._names.append(name)
            self._referenced.append(0)
        else:
            slot = self._evict_slot()
            del self._slot_of[self._names[slot]]
            self._names[slot] = name
        self._slot_of[name] = slot
        return slot

    def _evict_slot(self) -> int:
        while True:
            slot = self._hand
            self._hand = slot + 1 if slot + 1 < self._slots else 1
            if not self._referenced[slot]:
                return slot
            self._referenced[slot] = 0
