"""`Batch`: timesteps of different streams as a table, from request to response. Does no I/O.

A batch has one column per field. An object per timestep, its `QueuedStep`, is created only for the rows that need one:
those that `RecordLoader` has to decide one by one.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, overload

import numpy as np

from stepwell.engine.protocol.decide import StepIntent, applies_without_store, begins_stream
from stepwell.engine.protocol.positions import advanced, passed_timesteps
from stepwell.engine.stepping.outcomes import BulkOutcomes, BulkResults
from stepwell.engine.stepping.queued import QueuedStep, call_back
from stepwell.errors import ServiceError
from stepwell.store.record import SourcePosition, history_hash_of, step_of
from stepwell.store.record_arrays import have_passed, sources_in
from stepwell.types import (
    BatchSources,
    BulkPrediction,
    BulkTimesteps,
    Create,
    Lifecycle,
    Prediction,
    ReplyCallback,
    Source,
    StreamHandle,
    StreamKey,
    Transport,
)
from stepwell_client.wire.outcomes import ReturnMode
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    import asyncio

    from stepwell.engine.stepping.record_cache import CachedRecord
    from stepwell.models.served import ServedModel

_log = logging.getLogger(__name__)
_NO_AFTER = bytes(16)

InputLayout = Sequence[tuple[str, str, tuple[int, ...]]]
"""Name, dtype and shape of each input of a model, sorted by name."""

_Single = tuple[StreamHandle, str, int | None, bytes | None, Source | None, tuple[bytes, ...], ReplyCallback, float]


def join_rows(layout: InputLayout, data: Sequence[Sequence[bytes]], length: int) -> dict[str, Array]:
    """Return the inputs of a batch, `(rows, T, *row)` by name.

    Args:
        layout: The inputs.
        data: Each row's bytes of each input, sorted by input name.
        length: T, the timesteps of each row.
    """
    rows = len(data)
    return {
        name: np.frombuffer(b"".join(column), dtype).reshape(rows, length, *row)
        for (name, dtype, row), column in zip(layout, zip(*data, strict=True), strict=True)
    }


class Batch(Sequence[QueuedStep]):
    """Timesteps of different streams that are run together: equally long, and with as many predictions returned.

    Attributes:
        decoded_by: The model version that decoded the requests.
        names: Keys of the streams' records.
        op_ids: Op ids, 16 bytes each.
        length: T of each row.
        keep: Which of each row's predictions are returned, and stored.
        lifecycle: As in `Timestep`, of all rows.
        dry_run: Only the predictions are requested; nothing is committed.
        oldest_received: When the first of them was received, on the monotonic clock.
        youngest_received: When the last of them was received, likewise.
        source_ids: The ids of the rows' sources.
        sources: Where the rows' timesteps stand in their logs, as columns; None: they are from none, or each row of
            `rows` has its own.
        rows: The rows that have an object, by index.
        sent: The rows whose commit was sent, and the result is not known yet.
        expiry: Due at the next deadline of a row; None: all rows have about the same deadline.
    """

    decoded_by: ServedModel
    names: Sequence[str]
    op_ids: Sequence[bytes]
    length: int
    keep: ReturnMode
    lifecycle: Lifecycle = "on"
    dry_run: bool = False
    oldest_received: float
    youngest_received: float
    source_ids: Sequence[str] = ()
    sources: BatchSources | None = None
    rows: dict[int, QueuedStep]
    sent: Sequence[int] = ()
    expiry: asyncio.TimerHandle | None = None
    _seqs: Sequence[int | None]
    _afters: Sequence[bytes | None]

    @abstractmethod
    def inputs(self, rows: Sequence[int], layout: InputLayout) -> Mapping[str, Array]:
        """Return each input of some rows, `(rows, T, *row)`."""

    @abstractmethod
    def names_with_version(self) -> Sequence[str]:
        """Return the keys of the records of rows whose request names a version."""

    @abstractmethod
    def waited(self, rows: Sequence[int], now: float) -> Sequence[float]:
        """Return for how many seconds each of some rows has waited; `now` is on the monotonic clock."""

    @abstractmethod
    def by_transport(self, rows: Sequence[int]) -> Mapping[Transport, int]:
        """Return how many of some rows reached the service by each transport."""

    @abstractmethod
    def reject(self, error: ServiceError) -> None:
        """Reply to all rows with the same error; none has a response yet."""

    @abstractmethod
    def row(self, i: int) -> QueuedStep:
        """Return the object of a row."""

    @abstractmethod
    def unanswered(self) -> list[QueuedStep]:
        """Return the rows that have no response yet."""

    @abstractmethod
    def part(self, rows: Sequence[int]) -> Batch:
        """Return some of the rows as a batch that replies to them; before any has a response."""

    def certainly_apply(self, headers: Array) -> Array:
        """Return for each row whether it certainly applies to a record: see `decide.applies_without_store`.

        A row that was loaded already, that has a key or its response, does not.

        Args:
            headers: The records' headers, `(rows,)` of `HEADER_DTYPE`; a missing stream has the header of step 0.

        Returns:
            `(rows,)` bool.
        """
        applies = _at_position(headers, self._seqs, self._afters)
        if decided := [i for i, row in self.rows.items() if not row.is_decided_by_position]:
            applies[decided] = False
        return applies

    def apply_to(self, rows: Sequence[int], headers: Array) -> Array:
        """Return the same for some rows that are decided by their position, and their records' headers."""
        return _at_position(headers, [self._seqs[i] for i in rows], [self._afters[i] for i in rows])

    def is_decided_by_position(self, i: int) -> bool:
        """Whether a row certainly applies to a record at the right position, if the record was loaded now."""
        row = self.rows.get(i)
        return row is None or row.is_decided_by_position

    def begins_stream(self, i: int) -> bool:
        """Whether a row is certainly applied if its stream is missing; one with an object is decided by itself."""
        return False

    def have_passed(self, sources: Array) -> Array:
        """Return for each row whether its first timestep was applied before, by its record's positions, `(rows,)` bool.

        Args:
            sources: The table of the records' positions of sources.
        """
        if self.sources is None:
            return np.zeros(len(self), bool)
        return have_passed(sources, self.sources.digests, self.sources.at[:, 0])

    def continues(self, record: CachedRecord) -> bool:
        """Whether it is a single timestep that certainly applies to a record: see `certainly_apply`."""
        if self.rows or len(self._seqs) != 1 or self.length != 1 or self.keep != "all":
            return False
        header = record.header
        if not applies_without_store(step_of(header), history_hash_of(header), self._seqs[0], self._afters[0]):
            return False
        return not record.sources if self.sources is None else self.sources_after(record.sources) is not None

    def sources_after(self, sources: tuple[SourcePosition, ...]) -> tuple[SourcePosition, ...] | None:
        """Return the positions of sources after a batch of one row; None: it has to be decided by its record.

        Args:
            sources: The positions in the stream's record before it.
        """
        assert self.sources is not None
        source = self.sources.row(0)
        after, is_replaced = advanced(sources, source)
        return None if is_replaced or passed_timesteps(sources, source) else after

    def __len__(self) -> int:
        return len(self.op_ids)

    @overload
    def __getitem__(self, i: int) -> QueuedStep: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[QueuedStep]: ...

    def __getitem__(self, i: int | slice) -> QueuedStep | Sequence[QueuedStep]:
        return [self.row(j) for j in range(len(self))[i]] if isinstance(i, slice) else self.row(range(len(self))[i])


def _at_position(headers: Array, seqs: Sequence[int | None], afters: Sequence[bytes | None]) -> Array:
    if None in seqs:
        steps = np.array([0 if seq is None else seq for seq in seqs], np.int64)
        applies: Array = (headers["step"].view(np.int64) == steps - 1) | (steps == 0)
    else:
        applies = headers["step"].view(np.int64) == np.array(seqs, np.int64) - 1
    if (n_without := afters.count(None)) < len(afters):
        state_ids = b"".join([after or _NO_AFTER for after in afters])
        same: Array = headers["history_hash"] == np.frombuffer(state_ids, "V16")
        applies &= same if not n_without else same | np.array([after is None for after in afters])
    return applies


class RowBatch(Batch):
    """Timesteps that have objects already: with a key or an end, chunks, dry runs, and what is attempted again."""

    def __init__(self, rows: Sequence[QueuedStep]) -> None:
        self.rows = dict(enumerate(rows))
        first, self.decoded_by = rows[0].timestep, rows[0].decoded_by
        self.names, self.op_ids = [row.name for row in rows], [row.op_id for row in rows]
        self.length, self.keep, self.lifecycle, self.dry_run = (
            first.length,
            first.keep,
            first.lifecycle,
            rows[0].dry_run,
        )
        received = [row.received for row in rows]
        self.source_ids = [row.timestep.source.id for row in rows if row.timestep.source is not None]
        self.oldest_received, self.youngest_received = min(received), max(received)
        self._seqs = [row.timestep.seq for row in rows]
        self._afters = [row.timestep.after for row in rows]

    def inputs(self, rows: Sequence[int], layout: InputLayout) -> Mapping[str, Array]:
        """Return the rows' bytes, joined."""
        return join_rows(layout, [self.rows[i].timestep.inputs for i in rows], self.length)

    def have_passed(self, sources: Array) -> Array:
        """Return the same, by the source of each row."""
        timesteps = [row.timestep for row in self.rows.values()]
        return np.array([
            timestep.source is not None and passed_timesteps(sources_in(kept), timestep.source) > 0
            for timestep, kept in zip(timesteps, sources, strict=True)
        ])  # fmt: skip

    def names_with_version(self) -> Sequence[str]:
        """Return the keys of the records of rows whose request names a version."""
        return [row.name for row in self.rows.values() if row.timestep.version is not None]

    def waited(self, rows: Sequence[int], now: float) -> Sequence[float]:
        """Return the same, by the object of each row."""
        return [now - self.rows[i].received for i in rows]

    def by_transport(self, rows: Sequence[int]) -> Mapping[Transport, int]:
        """Return the same, by the request of each row."""
        return Counter([self.rows[i].timestep.transport for i in rows])

    def reject(self, error: ServiceError) -> None:
        """Reply to each row with the error."""
        for row in self.rows.values():
            row.reject(error)

    def row(self, i: int) -> QueuedStep:
        """Return the object of a row."""
        return self.rows[i]

    def unanswered(self) -> list[QueuedStep]:
        """Return the rows that have no response yet."""
        return [row for row in self.rows.values() if not row.answered]

    def part(self, rows: Sequence[int]) -> RowBatch:
        """Return a batch of the same objects."""
        return RowBatch([self.rows[i] for i in rows])


class ColumnBatch(Batch):
    """Timesteps in columns: an object is created only for a row that needs one.

    Attributes:
        is_answered: All rows have their response.
    """

    is_answered: bool = False

    def __init__(self, decoded_by: ServedModel) -> None:
        self.decoded_by = decoded_by
        self.rows = {}
        self._answered = set[int]()  # rows without an object that have their response

    @abstractmethod
    def _new_row(self, i: int) -> QueuedStep: ...

    @abstractmethod
    def key(self, i: int) -> StreamKey:
        """Return the stream of a row."""

    @abstractmethod
    def _create(self, i: int) -> Create: ...

    @abstractmethod
    def _done(self, i: int) -> ReplyCallback: ...

    @abstractmethod
    def _reply(self, rows: Sequence[int], found: BulkPrediction, at: Sequence[int]) -> None: ...

    def reply_to(self, rows: Sequence[int], found: BulkPrediction, at: Sequence[int]) -> None:
        """Reply to rows without an object. Raises nothing.

        Args:
            rows: The rows.
            found: What has their predictions.
            at: Where it has them.
        """
        if len(rows) == len(self.op_ids):
            self.is_answered = True
        else:
            self._answered.update(rows)
        self._reply(rows, found, at)

    def begins_stream(self, i: int) -> bool:
        """Whether a row without an object is applied if its stream is missing; see `decide.begins_stream`."""
        return i not in self.rows and begins_stream(self._seqs[i], self._afters[i], self._create(i))

    def intent(self, i: int) -> StepIntent:
        """Return a row without a source as `decide` needs it, whatever the model that would run."""
        return StepIntent(self.op_ids[i], self.length, self._seqs[i], self._afters[i], self._create(i), None)

    def reject(self, error: ServiceError) -> None:
        """Reply to all rows with the error."""
        self.reject_rows(dict.fromkeys(range(len(self)), error))

    def reject_rows(self, errors: Mapping[int, ServiceError]) -> None:
        """Reply to rows without an object with errors. Raises nothing."""
        self._answered.update(errors)
        for i, error in errors.items():
            call_back(self._done(i), error, self.key(i))

    def row(self, i: int) -> QueuedStep:
        """Return the object of a row."""
        row = self.rows.get(i)
        if row is None:
            row = self.rows[i] = self._new_row(i)
            row.answered = self.is_answered or i in self._answered
        return row

    def unanswered(self) -> list[QueuedStep]:
        """Return the rows that have no response yet."""
        if self.is_answered:
            return []
        return [row for i in range(len(self)) if i not in self._answered and not (row := self.row(i)).answered]


class BulkBatch(ColumnBatch):
    """The timesteps of one bulk request."""

    def __init__(
        self,
        decoded_by: ServedModel,
        bulk: BulkTimesteps,
        op_ids: Sequence[bytes],
        received: float,
        done: Callable[[BulkOutcomes], None],
    ) -> None:
        """Build the batch from the request's columns.

        Args:
            decoded_by: The model version that decoded it.
            bulk: The request.
            op_ids: Op ids of its rows, 16 bytes each.
            received: When it was received, on the monotonic clock.
            done: Called with the results.
        """
        super().__init__(decoded_by)
        self.names, self.op_ids = bulk.names, op_ids
        self.length, self.keep = bulk.length, bulk.keep
        self.oldest_received = self.youngest_received = received
        self._seqs, self._afters = bulk.seqs, bulk.afters
        if bulk.sources is not None:
            self.sources, self.source_ids = bulk.sources, bulk.sources.ids
        self._bulk = bulk
        self._done_all = done
        self._results: BulkResults | None = None

    def inputs(self, rows: Sequence[int], layout: InputLayout) -> Mapping[str, Array]:
        """Return the request's arrays."""
        if len(rows) == len(self.names):
            return self._bulk.inputs
        at = np.array(rows, np.intp)
        return {name: array.take(at, axis=0) for name, array in self._bulk.inputs.items()}

    def names_with_version(self) -> Sequence[str]:
        """Return the keys of all rows or of none: the request names a version for all."""
        return [] if self._bulk.version is None else self.names

    def waited(self, rows: Sequence[int], now: float) -> Sequence[float]:
        """Return the same number for each row: all were received at once."""
        return [now - self.oldest_received] * len(rows)

    def by_transport(self, rows: Sequence[int]) -> Mapping[Transport, int]:
        """Return the number of rows: all have one transport."""
        return {self._bulk.transport: len(rows)}

    def _reply(self, rows: Sequence[int], found: BulkPrediction, at: Sequence[int]) -> None:
        """Reply with columns, once all rows have their results."""
        try:
            if len(rows) == len(self.names):
                self._done_all(found)
            else:
                self._gather().receive_columns(rows, found, at)
        except Exception:  # noqa: BLE001 - a fault of the caller's callback; the commit is valid
            model, tenant = self._bulk.keys[0].model, self._bulk.keys[0].tenant
            _log.exception("The callback of a bulk request failed (model=%s, tenant=%s)", model, tenant)

    def part(self, rows: Sequence[int]) -> BulkBatch:
        """Return a batch of some of the columns' rows; its results are kept until all parts have theirs."""
        done = partial(self._gather().receive_part, rows)
        op_ids = [self.op_ids[i] for i in rows]
        return BulkBatch(self.decoded_by, self._bulk.select(rows), op_ids, self.oldest_received, done)

    def key(self, i: int) -> StreamKey:
        """Return the stream of a row."""
        return self._bulk.keys[i]

    def _create(self, i: int) -> Create:
        return self._bulk.create

    def _done(self, i: int) -> ReplyCallback:
        return partial(self._gather().receive, i)

    def _gather(self) -> BulkResults:
        if self._results is None:
            self._results = BulkResults(len(self), self._done_all)
        return self._results

    def _new_row(self, i: int) -> QueuedStep:
        timestep = self._bulk.row(i)
        shape = self.length if self.keep == "all" else (self.length, self.keep, "on")
        return QueuedStep(
            timestep, self._done(i), self.oldest_received, timestep.name, self.decoded_by, shape, self.op_ids[i]
        )


class CoalescedBatch(ColumnBatch):
    """Single timesteps that were submitted one by one; their columns are built when the batch is closed.

    Attributes:
        room: Number of timesteps that may still be added.
        has_source: Whether all of them have a source, or none has.
    """

    length = 1
    keep: ReturnMode = "all"

    def __init__(self, decoded_by: ServedModel, room: int, *, has_source: bool) -> None:
        super().__init__(decoded_by)
        self.room, self.has_source = room, has_source
        self._added: list[_Single] = []
        self.add = self._added.append
        """Add a timestep: stream, its record's key, `seq`, `after`, source, packed inputs, callback, receipt time."""

    def close(self, op_ids_of: Callable[..., Sequence[bytes]]) -> None:
        """Build the columns; nothing is added later. If it raises, `names` is set and `reject` replies to all rows.

        Args:
            op_ids_of: Returns the op ids of the rows; see `OpIdHasher.for_rows`.
        """
        columns = zip(*self._added, strict=True)
        self._streams, self.names, self._seqs, self._afters, sources, self._packed, self._dones, self._received = (
            columns
        )
        if self.has_source:
            self.sources = BatchSources.of(sources)
            self.source_ids = self.sources.ids
        self.op_ids = op_ids_of(1, self._seqs, self._afters, self._packed, self.sources)
        self.oldest_received, self.youngest_received = self._received[0], self._received[-1]

    def part(self, rows: Sequence[int]) -> CoalescedBatch:
        """Return a closed batch of some of the timesteps."""
        part = CoalescedBatch(self.decoded_by, 0, has_source=self.has_source)
        part._added += [self._added[i] for i in rows]
        part.close(lambda *_: [self.op_ids[i] for i in rows])
        return part

    def inputs(self, rows: Sequence[int], layout: InputLayout) -> Mapping[str, Array]:
        """Return the rows' bytes, joined."""
        return join_rows(layout, self._packed if len(rows) == len(self._packed) else [self._packed[i] for i in rows], 1)

    def names_with_version(self) -> Sequence[str]:
        """Return the keys of the records of rows whose request names a version."""
        return [name for stream, name, *_ in self._added if stream.version is not None]

    def waited(self, rows: Sequence[int], now: float) -> Sequence[float]:
        """Return the same, by the time at which each row was submitted."""
        received = self._received if len(rows) == len(self._received) else [self._received[i] for i in rows]
        return [now - at for at in received]

    def by_transport(self, rows: Sequence[int]) -> Mapping[Transport, int]:
        """Return the same, by the stream of each row."""
        if len(rows) == 1:  # `Counter` takes longer than the rest
            return {self._streams[rows[0]].transport: 1}
        return Counter([self._streams[i].transport for i in rows])

    def _reply(self, rows: Sequence[int], found: BulkPrediction, at: Sequence[int]) -> None:
        """Reply to each row."""
        dones, output, versions, shows_version = self._dones, found.batch, found.versions, found.shows_version
        replayed, created = found.replayed, found.created
        for i, j in zip(rows, at, strict=True):
            try:
                dones[i](Prediction(output, j, replayed, j in created, versions[j], shows_version=shows_version))
            except Exception:  # noqa: BLE001 - a fault in one callback must not fail the others; it is logged
                key = self._streams[i].key
                _log.exception("The callback of a step failed (model=%s, stream=%s)", key.model, key.stream)

    def key(self, i: int) -> StreamKey:
        """Return the stream of a row."""
        return self._added[i][0].key

    def _create(self, i: int) -> Create:
        return self._added[i][0].create

    def _done(self, i: int) -> ReplyCallback:
        return self._added[i][6]

    def _new_row(self, i: int) -> QueuedStep:
        stream, name, seq, after, source, inputs, done, received = self._added[i]
        timestep = stream.timestep(inputs, seq, after, source)
        return QueuedStep(timestep, done, received, name, self.decoded_by, 1, self.op_ids[i])

    def __len__(self) -> int:
        return len(self._added)
