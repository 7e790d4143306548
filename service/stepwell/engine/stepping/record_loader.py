"""`RecordLoader`: the records from which the rows of a batch continue, from the cache or from the store: `Records`.

Most rows are checked together, by their positions; the others are decided by the records in the store, those with more
than a position one by one.
"""

from __future__ import annotations

import secrets
import time
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

import numpy as np

from stepwell.engine.packing import all_true, prediction_bytes
from stepwell.engine.protocol.decide import Decision, decide
from stepwell.engine.stepping.batch import Batch, InputLayout, join_rows
from stepwell.engine.stepping.record_cache import EMPTY_SLOT, CachedRecord
from stepwell.engine.tenant_limits import Reservation
from stepwell.errors import ServiceError, wrong_state_size
from stepwell.store.commits import Outcome, replica_probe
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.record import HEADER_BYTES, Kind, Record, decode
from stepwell.store.record_arrays import (
    decode_records,
    empty_sources,
    put_headers,
    read_headers,
    sources_table,
    take_headers,
)
from stepwell.store.state_store import checked
from stepwell.types import ENDS, STARTS
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.stepping.batch import ColumnBatch
    from stepwell.engine.stepping.pipeline import PipelineDeps
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.engine.stepping.replies import Replies

_ItemT = TypeVar("_ItemT")


class Records(NamedTuple):
    """The records from which rows of a batch continue: all of its rows, or those that are to be applied.

    Attributes:
        batch: The batch.
        at: The rows in the batch, in ascending order.
        headers: `(rows,)` of `HEADER_DTYPE`.
        states: Packed states, `(rows, bytes)` uint8.
        expiry_set_at: When each record's expiry was set, on the store's clock, `(rows,)` float64.
        sources: The table of positions of sources, see `record_arrays`; None: the records have none.
        one: The record of a batch of one row, if it was cached; headers, times and sources are empty then.
        created: The rows in the batch whose streams are missing; their records are those of new streams.
    """

    batch: Batch
    at: Sequence[int]
    headers: Array
    states: Array
    expiry_set_at: Array
    sources: Array | None = None
    one: CachedRecord | None = None
    created: frozenset[int] = frozenset()

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
        at = np.array(rows, np.intp)
        return self._replace(
            at=self.of(self.at, rows),
            headers=take_headers(self.headers, at),
            states=self.states.take(at, axis=0),
            expiry_set_at=self.expiry_set_at.take(at),
            sources=None if self.sources is None else self.sources.take(at, axis=0),
        )

    @staticmethod
    def of(items: Sequence[_ItemT], rows: Sequence[int]) -> Sequence[_ItemT]:
        """Return the items of some rows."""
        return items if len(rows) == len(items) else [*map(items.__getitem__, rows)]

    def places(self, rows: Collection[int]) -> list[int]:
        """Return the indices in `at` of those of some rows in the batch that are there, in ascending order."""
        at, n = self.at, len(self.at)
        if 4 * len(rows) > n:
            return [j for j, i in enumerate(at) if i in rows]
        places = [(bisect_left(at, i), i) for i in sorted(rows)] if rows else []  # `at` is in ascending order
        return [j for j, i in places if j < n and at[j] == i]

    def objects(self) -> list[tuple[int, QueuedStep]]:
        """Return the rows that have an object, each with its index in `at`."""
        rows, at = self.batch.rows, self.at
        return [(j, rows[at[j]]) for j in self.places(rows)] if rows else []

    @property
    def length(self) -> int:
        """T of each row; a row that skips timesteps is alone."""
        row = self.batch.rows.get(self.at[0])
        return self.batch.length if row is None else self.batch.length - row.skipped

    def inputs(self, layout: InputLayout) -> Mapping[str, Array]:
        """Return each input of the timesteps that are to be applied, `(rows, T, *row)`."""
        row = self.batch.rows.get(self.at[0])
        if row is None or not row.skipped:
            return self.batch.inputs(self.at, layout)
        return join_rows(layout, [row.applied.inputs], row.applied.length)

    def of_equal_lengths(self) -> list[Records]:
        """Return the rows in parts that can be run together: a row that skips timesteps is run alone."""
        rows = self.batch.rows
        alone = [j for j, i in enumerate(self.at) if i in rows and rows[i].skipped] if rows else []
        if not alone:
            return [self] if self.at else []
        together = [j for j in range(len(self.at)) if j not in alone]
        return [self.select(part) for part in ([together] if together else []) + [[j] for j in alone]]


class RecordLoader:
    """Loads the records of one model version's rows; if a record cannot be decoded, its row gets the error as reply."""

    def __init__(self, deps: PipelineDeps, replies: Replies) -> None:
        self._served = deps.served
        self._model = deps.served.step_model
        self._store = deps.store
        self._cache = deps.cache
        self._observer = deps.observer
        self._replies = replies
        self._quota = deps.quota
        self._answer_bytes = prediction_bytes(deps.served.manifest.answered)
        self._placement = deps.placement

    async def load(self, batch: Batch, deadline: float) -> tuple[Records, list[QueuedStep]]:
        """Return the records from which rows of a batch certainly continue, and the rows to be attempted again.

        A cached record to which its row does not certainly apply is not used: only the record in the store decides an
        error or a replay. So a record that another worker has advanced is mostly detected here, and costs a load
        instead of a conflict. The rows in neither result have their response.
        """
        cache = self._cache
        slots = cache.slots_for(batch.names)
        records = Records(
            batch,
            range(len(batch)),
            cache.headers(slots),
            cache.states(slots),
            cache.expiry_set_at(slots),
            cache.sources(slots),
        )
        applies = batch.certainly_apply(records.headers)
        applies &= slots != EMPTY_SLOT  # the empty slot has the header of a stream without a step
        if records.sources is not None:
            applies &= ~batch.have_passed(records.sources)
        if batch.dry_run or (batch.lifecycle in STARTS and self._placement.may_begin_elsewhere()):
            applies[:] = False  # no commit would detect a stale record
        if all_true(applies):
            self._observer.cache_lookup(len(batch), 0)
            if batch.lifecycle in STARTS:
                self._start(records)
            return records, []
        return await self._load_missed(records, np.flatnonzero(~applies).tolist(), deadline)

    async def _load_missed(
        self, records: Records, missed: Sequence[int], deadline: float
    ) -> tuple[Records, list[QueuedStep]]:
        """Return what `load` does, for a batch with rows that do not certainly apply to their cached records."""
        batch, rows = records.batch, records.batch.rows
        to_load = [i for i in missed if i not in rows or not (rows[i].is_loaded or rows[i].answered)]
        if not batch.dry_run:
            self._observer.cache_lookup(len(batch) - len(to_load), len(to_load))
        unusual, answered = list(missed), frozenset[int]()
        if to_load:
            keyed = [rows[i] for i in to_load if i in rows and rows[i].may_have_entry]
            values = await self._values([batch.names[i] for i in to_load], keyed, deadline, exact=batch.dry_run)
            records, applied, answered = self._decide_together(records, to_load, values)
            unusual = [i for i in missed if i not in applied and i not in answered]
            for i, value in zip(to_load, values, strict=False):
                if i not in applied and i not in answered:
                    self._set_stored(batch.row(i), value, exact=batch.dry_run)
            self._set_entries(keyed, values[len(to_load) :])
        if not unusual and not answered:
            return records, []
        decided = [batch.row(i) for i in unusual]
        if self._store.waits_for_replica and not batch.dry_run:
            await self._confirm_replicated(decided, deadline)
        to_run = [i for i, row in zip(unusual, decided, strict=True) if self._applies(row)]
        if to_run:
            records = self._scatter(records, to_run)
        to_confirm = [rows[i] for i in frozenset(unusual).difference(to_run) if not rows[i].answered]
        remaining = await self._confirm_missing(to_confirm, deadline)
        excluded = answered.union(unusual).difference(to_run)
        return records.select([i for i in range(len(batch)) if i not in excluded]), remaining

    def _decide_together(
        self, records: Records, to_load: Sequence[int], values: Sequence[object]
    ) -> tuple[Records, frozenset[int], frozenset[int]]:
        """Decide rows by what was loaded without an object for each; all others have to be decided one by one.

        Returns:
            The records, and the rows that are certainly applied: they continue the record that was loaded, or begin a
            missing stream; and the rows that have their response.
        """
        batch, is_by_position, placement = records.batch, records.batch.is_decided_by_position, self._placement
        loaded = [*zip(to_load, values, strict=False)]
        created = list[int]()
        if self._quota is None and not placement.may_begin_elsewhere():
            created = [i for i, value in loaded if value is None and batch.begins_stream(i)]
            if created:
                records = self._begin(records, created)
        found = [
            (i, value)
            for i, value in loaded
            if type(value) is bytes
            and len(value) >= HEADER_BYTES
            and is_by_position(i)
            and not placement.may_move(batch.names[i])
        ]
        if not found or batch.lifecycle in STARTS:
            return records, frozenset(created), frozenset()
        applies = batch.apply_to([i for i, _ in found], read_headers([value for _, value in found])).tolist()
        records, continued = self._continue(records, [*compress(found, applies)])
        others = [one for one, does in zip(found, applies, strict=True) if not does and one[0] not in batch.rows]
        return records, frozenset([*created, *continued]), self._answer_together(batch, others)

    def _continue(self, records: Records, found: Sequence[tuple[int, bytes]]) -> tuple[Records, list[int]]:
        """Take over the records of rows that are at their positions, and return the rows that certainly apply to them.

        Args:
            records: The records.
            found: Rows, and the records that were loaded; they are not checked yet.
        """
        batch, at = records.batch, [i for i, _ in found]
        decoded = None
        if found:
            decoded = decode_records([value for _, value in found], self._served.fingerprint, self._model.state_bytes)
        if decoded is None:
            return records, []
        put_headers(records.headers, at, decoded.headers)
        records.states[at], records.expiry_set_at[at] = decoded.states, -np.inf
        if records.sources is None and decoded.sources is not None:
            records = records._replace(sources=empty_sources(len(batch)))
        if records.sources is None:
            return records, at
        records.sources[at] = empty_sources(1) if decoded.sources is None else decoded.sources
        passed = batch.have_passed(records.sources)
        return records, [i for i in at if not passed[i]]

    def _answer_together(self, batch: Batch, found: Sequence[tuple[int, bytes]]) -> frozenset[int]:
        """Reply to rows that their record rejects, or that repeat its newest operation, a step without key and source.

        Args:
            batch: The batch.
            found: Rows without an object, and the records that were loaded; they are not checked yet.

        Returns:
            The rows that have their response.
        """
        if not found or batch.sources is not None or self._store.waits_for_replica or self._served.parts:
            return frozenset()
        columns, fingerprint = cast("ColumnBatch", batch), self._served.fingerprint
        nbytes = {"all": batch.length, "last": 1, "none": 0}[batch.keep] * self._answer_bytes
        replayed, errors = dict[int, Record](), dict[int, ServiceError]()
        for i, value in found:
            try:
                record = decode(value)
                if decide(record, columns.intent(i)) is not Decision.REPLAY:
                    continue
                if (record.flags, record.fingerprint, len(record.outputs)) == (Kind.STEP, fingerprint, nbytes):
                    replayed[i] = record
            except ServiceError as exc:
                errors[i] = exc
        if replayed:
            self._replies.replay_together(columns, replayed)
        if errors:
            self._replies.reject_together(columns, errors)
        return frozenset([*replayed, *errors])

    def _begin(self, records: Records, rows: Sequence[int]) -> Records:
        """Write the records of new streams for rows whose streams are missing."""
        headers, states, new = records.headers, records.states, np.array([EMPTY_SLOT])
        put_headers(headers, rows, self._cache.headers(new))
        headers["epoch"][rows] = np.frombuffer(secrets.token_bytes(8 * len(rows)), np.uint64)
        headers["created_ms"][rows] = int(time.time() * 1000)
        states[rows], records.expiry_set_at[rows] = self._cache.states(new), -np.inf
        if records.sources is not None:
            records.sources[rows] = empty_sources(1)
        return records._replace(created=records.created.union(rows))

    def _scatter(self, records: Records, rows: Sequence[int]) -> Records:
        """Write the loaded records of rows that were decided one by one; rows of missing streams become new streams."""
        batch, headers, states = records.batch, records.headers, records.states
        records.expiry_set_at[rows] = -np.inf
        decided = [batch.rows[i] for i in rows]
        if records.sources is not None:
            records.sources[rows] = sources_table([() if r.record is None else r.record.sources for r in decided])
        if existing := [i for i in rows if batch.rows[i].record is not None]:
            put_headers(headers, existing, read_headers([batch.rows[i].stored for i in existing]))
        if created := [i for i in rows if batch.rows[i].record is None]:
            records = self._begin(records, created)
        if batch.lifecycle in STARTS:
            self._start(records)
        elif existing:
            states[existing] = [np.frombuffer(batch.rows[i].record.state, np.uint8) for i in existing]  # type: ignore[union-attr]
        for i, row in zip(rows, decided, strict=True):
            if (placed := row.placed) is not None:
                headers["moved"][i] = placed.moved
                headers["fingerprint"][i] = np.void(self._served.fingerprint)
                if placed.tail:
                    states[i, -len(placed.tail) :] = np.frombuffer(placed.tail, np.uint8)
        return records

    def _start(self, records: Records) -> None:
        """Let streams begin again from the initial state, by no release."""
        records.headers["moved"] = 0
        records.states[:] = np.frombuffer(self._model.initial_state, np.uint8)

    async def _confirm_missing(self, rows: list[QueuedStep], deadline: float) -> list[QueuedStep]:
        """Load the streams again whose rows are to be rejected because they are missing; return these rows.

        The command that loads a batch returns nothing for a value of another type, too.
        """
        if rows:
            keyed = [row for row in rows if row.may_have_entry]
            values = await self._values([row.name for row in rows], keyed, deadline, exact=True)
            for row, value in zip(rows, values, strict=False):
                self._set_stored(row, value, exact=True)
            self._set_entries(keyed, values[len(rows) :])
        return [row for row in rows if not row.answered]

    async def _values(
        self, names: Sequence[str], keyed: Sequence[QueuedStep], deadline: float, *, exact: bool
    ) -> Sequence[bytes | ServiceError | None]:
        """Return the stored values of records, then the idempotency entry or end entry of each row that may have one.

        Args:
            names: The records' keys.
            keyed: The rows that may have an entry.
            deadline: On the loop's clock.
            exact: A value that is not a record is an error, never a missing stream.
        """
        started = time.perf_counter()
        entries = [str(row.entry_key) for row in keyed]
        values = await self._store.load_with_errors([*names, *entries], deadline=deadline, exact=exact)
        self._observer.store_latency("load", time.perf_counter() - started)
        return values

    def _set_stored(self, row: QueuedStep, value: bytes | ServiceError | None, *, exact: bool) -> None:
        """Set a row's record as it was loaded; a bad record fails its own stream only."""
        try:
            stored = checked(value)
            row.set_stored(stored, None if stored is None else decode(stored), exact=exact)
        except ServiceError as exc:
            row.set_stored(None, None)
            self._replies.reply(row, exc)

    def _set_entries(self, rows: Sequence[QueuedStep], values: Sequence[bytes | ServiceError | None]) -> None:
        for row, entry in zip(rows, values, strict=True):
            try:
                if (stored := checked(entry)) is not None:
                    row.set_idempotency_entry(IdempotencyEntry.decode(stored))
            except ServiceError as exc:
                self._replies.reply(row, exc)

    async def _confirm_replicated(self, rows: Sequence[QueuedStep], deadline: float) -> None:
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
            intent = row.intent(self._served.fingerprint)
            return row.entry is not None or decide(row.record, intent) is not Decision.APPLY
        except ServiceError as exc:
            return exc.applied == "yes"

    # ---------------------------------------------------------------- rows that are decided one by one

    def _applies(self, row: QueuedStep) -> bool:
        """Whether a row is to be applied to its loaded record; else it has its response, or its stream is missing."""
        if row.answered:
            return False
        record = row.record
        if record is not None and row.reservation is not None:
            row.reservation.end(begun=False)  # another writer has created the stream in the meantime
        try:
            if row.entry is not None:
                self._replies.replay_by_key(row, row.entry)
            elif decide(record, row.intent(None)) is not Decision.APPLY:
                assert record is not None
                self._replies.replay(row, record)
            elif not self._placement.place(row):
                pass  # the model that steps the stream replies
            elif (
                (record := row.record) is not None
                and len(record.state) != self._model.state_bytes
                and row.timestep.lifecycle not in STARTS
            ):
                raise wrong_state_size(len(record.state), self._model.state_bytes)
            else:
                if record is None and row.timestep.lifecycle not in ENDS and not row.dry_run:
                    self._reserve_stream(row)
                row.skip_passed(self._answer_bytes, self._served.version)
                return True
        except ServiceError as exc:
            if exc.code != "stream_not_found" or row.is_exact:
                self._replies.reply(row, exc)
        return False

    def _reserve_stream(self, row: QueuedStep) -> None:
        """Reserve a stream of the tenant's quota, once per row, however often the row is attempted."""
        if self._quota is not None:
            row.reservation = row.reservation or Reservation(self._quota, row.timestep.key.tenant)
            row.reservation.take()
