"""`RecordLoader`: the records of a batch's streams, from the cache or from the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from model_export.manifest import Array
from service.engine.packing import all_true
from service.engine.protocol.decide import Decision, applies_without_store, decide
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import EMPTY_SLOT, RecordCache
from service.engine.stepping.replies import Replies
from service.errors import ServiceError
from service.store.commits import Outcome
from service.store.record import IdempotencyEntry, decode
from service.store.state_store import checked

if TYPE_CHECKING:
    from service.engine.observer import EngineObserver
    from service.store.state_store import StateStore


class RecordLoader:
    """Loads the records of one model version's rows; a row whose record cannot be read is answered with the error."""

    def __init__(
        self, store: StateStore, cache: RecordCache, observer: EngineObserver, replies: Replies, fingerprint: bytes
    ) -> None:
        self._store = store
        self._cache = cache
        self._observer = observer
        self._replies = replies
        self._fingerprint = fingerprint

    async def load_records(self, rows: Sequence[QueuedStep], deadline: float) -> tuple[Array, Array, Array, bool]:
        """Return the record of every row's stream, in columns.

        Returns:
            Headers, states and refreshes of the cached ones, blank ones of the others; and whether there are others,
            which were read from the store.

        A cached record that does not surely let its row apply is as good as none: only the store may refuse or
        replay. So a record that another worker moved on is mostly noticed here, and costs a read, not a conflict.
        """
        misses = 0
        comes_after = np.array([row.expected_step for row in rows], np.int64)
        while True:
            slots = self._cache.slots_for([row.name for row in rows])
            fresh = [at for at, row in enumerate(rows) if row.is_loaded]
            if fresh:
                slots[fresh] = EMPTY_SLOT
            heads = self._cache.headers(slots)
            sure = heads["step"].view(np.int64) == comes_after  # unsigned ones would be compared as floats
            sure &= slots != EMPTY_SLOT
            unread = [] if all_true(sure) else self._rows_to_load(rows, heads, slots, ~sure)
            if not unread:
                self._observer.cache_lookup(len(rows) - misses, misses)
                # All is copied now: what is answered next may bring in a new model, which shares the cache's memory.
                return heads, self._cache.states(slots), self._cache.expiry_set_at(slots), bool(fresh)
            misses += len(unread)
            await self.load_rows(unread, deadline)  # meanwhile other batches may take slots: look again

    @staticmethod
    def _rows_to_load(rows: Sequence[QueuedStep], heads: Array, slots: Array, doubtful: Array) -> list[QueuedStep]:
        """Return those of the doubtful rows that have to be read: their steps alone did not say that they apply."""
        places = np.flatnonzero(doubtful)
        parts = (slots[places], heads["step"][places], heads["chain"][places])
        cached = zip(places.tolist(), *(part.tolist() for part in parts), strict=True)
        return [
            rows[at]
            for at, slot, step, chain in cached
            if not rows[at].is_loaded and not (slot and applies_without_store(step, chain, rows[at].timestep))
        ]

    async def load_rows(self, rows: Sequence[QueuedStep], deadline: float, *, exact: bool = False) -> None:
        """Load each row's record and the entry of its idempotency key from the store.

        Args:
            rows: The rows; each is marked as loaded, or answered with what is wrong with its record.
            deadline: On the loop's clock.
            exact: A value that is not a record is an error, never a missing stream.
        """
        keyed = [row for row in rows if row.timestep.idempotency_key is not None or row.timestep.lifecycle == "last"]
        began = time.perf_counter()
        found = await self._store.load_with_errors(
            [row.name for row in rows] + [str(row.entry_key) for row in keyed], deadline=deadline, exact=exact
        )
        self._observer.store_latency("load", time.perf_counter() - began)
        for row, answer in zip(rows, found, strict=False):
            try:
                stored = checked(answer)
                row.set_stored(stored, None if stored is None else decode(stored))
            except ServiceError as exc:  # a bad record stops its own stream only
                row.set_stored(None, None)
                self._replies.reply(row, exc)
        for row, entry in zip(keyed, found[len(rows) :], strict=True):
            try:
                if (stored := checked(entry)) is not None:
                    row.set_idempotency_entry(IdempotencyEntry.decode(stored))
            except ServiceError as exc:
                self._replies.reply(row, exc)

    async def confirm_replicated(self, rows: Sequence[QueuedStep], deadline: float) -> None:
        """Wait until a replica has what retries are answered from: their answer promises what the first one did."""
        while doubtful := [row for row in rows if row.is_loaded and not row.answered and self._is_replay(row)]:
            confirmations = [
                self._store.replica_probe(row.name, row.stored, None if row.entry is None else row.entry_key)
                for row in doubtful
            ]
            answers = await self._store.commit(confirmations, deadline=deadline)
            for at, row in enumerate(doubtful):
                try:
                    answer = answers[at]
                    row.confirmed = answer.outcome in (Outcome.DUPLICATE, Outcome.KEY_REPLAY)
                    if not row.confirmed:  # it moved on meanwhile
                        row.set_stored(answer.stored, None if answer.stored is None else decode(answer.stored))
                except ServiceError as exc:
                    self._replies.reply(row, exc)

    def _is_replay(self, row: QueuedStep) -> bool:
        """Whether what was read, and not confirmed yet, shows that the row had been applied."""
        if row.confirmed:
            return False
        try:
            intent = row.intent(self._fingerprint)
            return row.entry is not None or decide(row.record, intent) is Decision.REPLAY
        except ServiceError as exc:
            return exc.applied == "yes"
