"""The worker's hot records. They can only save a read: no refusal and no replay is ever decided on them alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from operator import itemgetter

import numpy as np

from model_export.manifest import Array
from service.store.record_arrays import HEAD

EMPTY_SLOT = 0  # the slot of streams that are not here; it holds what a new stream begins with
_OPAQUE = np.dtype(f"V{HEAD.itemsize}")  # moved as a whole: NumPy would copy field by field, ten times as long
_OVERHEAD = 260  # bytes of Python objects around one record: its name, a dict entry, two list slots


class CacheMemory:
    """The memory of all models' caches: each has what it needs, and where that is too much an equal share."""

    def __init__(self, limit_bytes: int) -> None:
        """Begin without a cache.

        Args:
            limit_bytes: Memory for all of them.
        """
        self._limit = limit_bytes
        self._caches: list[RecordCache] = []

    def new_cache(self, head: Array, state: bytes) -> RecordCache:
        """Return an empty cache; the others give it room as far as they do not need it, and more when it is full."""
        cache = RecordCache(head, state, 0, on_full=self._divide)
        self._caches.append(cache)
        self._divide()
        return cache

    def remove(self, cache: RecordCache) -> None:
        """Take a cache's room back."""
        self._caches.remove(cache)
        self._divide()

    def _divide(self) -> None:
        """Set every cache's bound: four times what is in it, so that each grows in a few steps, or its share."""
        least = self._limit // (8 * max(len(self._caches), 1))
        needs = {cache: max(4 * cache.nbytes, least) for cache in self._caches}
        bounds: dict[RecordCache, int] = {}
        left = self._limit
        for n, (cache, need) in enumerate(sorted(needs.items(), key=itemgetter(1))):
            bounds[cache] = min(need, left // (len(needs) - n))
            left -= bounds[cache]
        for cache, bound in bounds.items():
            cache.limit(bound + left // len(bounds))


class RecordCache:
    """Hot records of one model, in arrays, bounded in bytes.

    When it is full, the next record takes the slot of one that was not asked for since the hand last passed by
    (CLOCK, nearly the least recently used).
    """

    def __init__(
        self, head: Array, state: bytes, limit_bytes: int, *, on_full: Callable[[], None] | None = None
    ) -> None:
        """Begin empty.

        Args:
            head: The header of a stream that has not begun, `(1,)` of `HEAD`.
            state: The packed state that it begins with.
            limit_bytes: Memory for it all. It is taken as records come, not at once.
            on_full: Called once after each `limit` that left room, when that is used up.
        """
        self._row_bytes = HEAD.itemsize + len(state) + 8 + _OVERHEAD
        self._heads = head.view(_OPAQUE)
        self._states = np.frombuffer(state, np.uint8)[None]
        self._refreshed = np.full(1, -np.inf)
        self._slot_of: dict[str, int] = {}
        self._names: list[str] = [""]  # of the slots that were ever used
        self._free: list[int] = []
        self._asked_for = bytearray(1)
        self._hand = 1
        self._on_full = on_full
        self.limit(limit_bytes)

    @property
    def nbytes(self) -> int:
        """Memory that its records take."""
        return len(self._slot_of) * self._row_bytes

    @property
    def is_full(self) -> bool:
        """Whether the next record takes another one's place."""
        return len(self._slot_of) >= self._slots - 1

    def limit(self, limit_bytes: int) -> None:
        """Set another bound; where more is in use, what lies beyond it is forgotten."""
        self._slots = 1 + max(limit_bytes // self._row_bytes, 1)
        if len(self._names) > self._slots:
            self._forget_from(self._slots)
            for table in (self._heads, self._states, self._refreshed):
                table.resize((self._slots, *table.shape[1:]), refcheck=False)  # in place: nobody has a view of it
        elif len(self._heads) < self._slots:
            self._heads, self._states, self._refreshed = map(
                self._enlarged, (self._heads, self._states, self._refreshed)
            )
        self._may_grow = not self.is_full

    def _enlarged(self, table: Array) -> Array:
        new = np.empty((self._slots, *table.shape[1:]), table.dtype)  # the kernel gives the memory when it is written
        new[: len(self._names)] = table[: len(self._names)]
        return new

    def _forget_from(self, slot: int) -> None:
        """Forget what has this slot or a later one; to look for the coldest of a million would take a second."""
        for name in self._names[slot:]:
            if self._slot_of.get(name, EMPTY_SLOT) >= slot:
                del self._slot_of[name]
        del self._names[slot:], self._asked_for[slot:]
        self._free = [free for free in self._free if free < slot]
        self._hand = 1

    def slots_for(self, names: Sequence[str]) -> Array:
        """Return the slots of streams' records as last seen, which may be stale; `EMPTY_SLOT` where there is none.

        A slot is good until the next `put` or `limit`.

        Returns:
            `(names,)`, to index arrays with.
        """
        slots = np.array([*map(self._slot_of.get, names, repeat(EMPTY_SLOT))], np.intp)
        np.frombuffer(self._asked_for, np.uint8)[slots] = 1
        return slots

    def headers(self, slots: Array) -> Array:
        """Return copies of the headers, `(slots,)` of `HEAD`."""
        return self._heads.take(slots).view(HEAD)

    def states(self, slots: Array) -> Array:
        """Return copies of the packed states, `(slots, bytes)` uint8."""
        return self._states.take(slots, axis=0)

    def expiry_set_at(self, slots: Array) -> Array:
        """Return when, on the store's clock, each record's expiry was surely set, `(slots,)` float64."""
        return self._refreshed.take(slots)

    def put(self, names: Sequence[str], heads: Array, states: Array, refreshed: Array | float) -> None:
        """Remember what the store now holds; shapes as above."""
        find = self._slot_of.get
        slots = np.array([find(name) or self._allocate_slot(name) for name in names], np.intp)
        self._heads[slots] = heads.view(_OPAQUE)
        self._states[slots] = states
        self._refreshed[slots] = refreshed
        if self._may_grow and self.is_full and self._on_full is not None:
            self._may_grow = False
            self._on_full()

    def drop(self, name: str) -> None:
        """Forget a stream: on any doubt."""
        slot = self._slot_of.pop(name, EMPTY_SLOT)
        if slot:
            self._free.append(slot)

    def __len__(self) -> int:
        """Streams remembered."""
        return len(self._slot_of)

    def _allocate_slot(self, name: str) -> int:
        """Give a slot to a stream."""
        if self._free:
            slot = self._free.pop()
            self._names[slot] = name
        elif len(self._names) < self._slots:
            slot = len(self._names)
            self._names.append(name)
            self._asked_for.append(0)
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
            if not self._asked_for[slot]:
                return slot
            self._asked_for[slot] = 0
