"""`RecordLoader`: loads the records of a batch's streams, from the cache or from the store."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stepwell.engine.packing import all_true
from stepwell.engine.protocol.decide import Decision, applies_without_store, decide
from stepwell.engine.protocol.positions import passed_timesteps
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.record_cache import EMPTY_SLOT
from stepwell.engine.stepping.replies import Replies
from stepwell.errors import ServiceError
from stepwell.store.commits import Outcome, replica_probe
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import decode
from stepwell.store.record_arrays import sources_in
from stepwell.store.state_store import checked
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.stepping.pipeline import PipelineDeps
    from stepwell.types import Timestep


class RecordLoader:
    """Loads the records of one model version's rows; if a record cannot be decoded, its row gets the error as reply."""

    def __init__(self, deps: PipelineDeps, replies: Replies) -> None:
        self._store = deps.store
        self._cache = deps.cache
        self._observer = deps.observer
        self._replies = replies
        self._fingerprint = deps.served.fingerprint

    async def load_records(self, rows: Sequence[QueuedStep], deadline: float) -> tuple[Array, Array, Array, bool]:
        """Return the record of every row's stream, as columns.

        A cached record to which its row does not certainly apply is not used: only the record in the store decides an
        error or a replay. So a record that another worker has advanced is mostly detected here, and costs a load
        instead of a conflict.

        Returns:
            Headers, states, and times at which the expiry was set, of the cached records; the empty slot's for rows
            loaded from the store; and whether there are such rows.
        """
        misses = 0
        expected_steps = np.array([row.expected_step for row in rows], np.int64)
        while True:
            slots = self._cache.slots_for([row.name for row in rows])
            loaded = [i for i, row in enumerate(rows) if row.is_loaded]
            if loaded:
                slots[loaded] = EMPTY_SLOT
            headers, sources = self._cache.headers(slots), self._cache.sources(slots)
            applies = headers["step"].view(np.int64) == expected_steps  # uint64 and int64 would be compared as floats
            applies &= slots != EMPTY_SLOT
            to_load = [] if all_true(applies) else self._rows_to_load(rows, headers, slots, ~applies, sources)
            if not to_load:
                for i, row in enumerate(rows):
                    row.cached_sources = () if sources is None or row.is_loaded else sources_in(sources[i])
                self._observer.cache_lookup(len(rows) - misses, misses)
                # Copied now: a later reply may load a new model, which takes part of the cache's memory.
                return headers, self._cache.states(slots), self._cache.expiry_set_at(slots), bool(loaded)
            misses += len(to_load)
            await self.load_rows(to_load, deadline)  # other batches may change slots in the meantime: read them again

    @staticmethod
    def _rows_to_load(
        rows: Sequence[QueuedStep], headers: Array, slots: Array, unmatched: Array, sources: Array | None
    ) -> list[QueuedStep]:
        """Return the rows to load, of those for which the cached step alone does not show that they apply."""
        indices = np.flatnonzero(unmatched)
        parts = (slots[indices], headers["step"][indices], headers["history_hash"][indices])
        cached = zip(indices.tolist(), *(part.tolist() for part in parts), strict=True)
        return [
            rows[i]
            for i, slot, step, history_hash in cached
            if not rows[i].is_loaded
            and not (
                slot
                and applies_without_store(step, history_hash, rows[i].timestep)
                and (sources is None or not _has_passed(sources[i], rows[i].timestep))
            )
        ]

    async def load_rows(self, rows: Sequence[QueuedStep], deadline: float, *, exact: bool = False) -> None:
        """Load each row's record and its idempotency entry or end entry from the store.

        Args:
            rows: The rows; each is marked as loaded, or gets the error in its record as its reply.
            deadline: On the loop's clock.
            exact: A value that is not a record is an error, never a missing stream.
        """
        keyed = [row for row in rows if row.timestep.idempotency_key is not None or row.timestep.lifecycle == "last"]
        started = time.perf_counter()
        loaded = await self._store.load_with_errors(
            [row.name for row in rows] + [str(row.entry_key) for row in keyed], deadline=deadline, exact=exact
        )
        self._observer.store_latency("load", time.perf_counter() - started)
        for row, raw in zip(rows, loaded, strict=False):
            try:
                stored = checked(raw)
                row.set_stored(stored, None if stored is None else decode(stored), exact=exact)
            except ServiceError as exc:  # a bad record fails its own stream only
                row.set_stored(None, None)
                self._replies.reply(row, exc)
        for row, entry in zip(keyed, loaded[len(rows) :], strict=True):
            try:
                if (stored := checked(entry)) is not None:
                    row.set_idempotency_entry(IdempotencyEntry.decode(stored))
            except ServiceError as exc:
                self._replies.reply(row, exc)

    async def confirm_replicated(self, rows: Sequence[QueuedStep], deadline: float) -> None:
        """Wait until a Redis replica has what replays are built from: a replay is as durable as the first response."""
        while unconfirmed := [row for row in rows if row.is_loaded and not row.answered and self._is_replay(row)]:
            probes = [
                replica_probe(row.name, row.stored, None if row.entry is None else row.entry_key) for row in unconfirmed
            ]
            results = await self._store.commit(probes, deadline=deadline)
            for i, row in enumerate(unconfirmed):
                try:
                    result = results[i]
                    row.confirmed = result.outcome in (Outcome.DUPLICATE, Outcome.KEY_REPLAY)
                    if not row.confirmed:  # the stream has changed in the meantime
                        row.set_stored(result.stored, None if result.stored is None else decode(result.stored))
                except ServiceError as exc:
                    self._replies.reply(row, exc)

    def _is_replay(self, row: QueuedStep) -> bool:
        """Whether what was loaded shows that the row was applied before, and is not confirmed yet."""
        if row.confirmed:
            return False
        try:
            intent = row.intent(self._fingerprint)
            return row.entry is not None or decide(row.record, intent) is not Decision.APPLY
        except ServiceError as exc:
            return exc.applied == "yes"


def _has_passed(sources: Array, timestep: Timestep) -> bool:
    """Whether one of a request's timesteps was applied before, by the positions of a cached record."""
    return timestep.source is not None and passed_timesteps(sources_in(sources), timestep.source) > 0
