"""`ColumnarBatch`: a batch as columns, from request to response. Does no I/O.

In the usual case no object is created per timestep. Only access to the batch as a sequence creates its rows.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import overload

import numpy as np

from stepwell.engine.protocol.decide import expected_previous_step
from stepwell.engine.protocol.op_ids import OpIdHasher
from stepwell.engine.protocol.positions import advanced, passed_timesteps
from stepwell.engine.stepping.columns.outcomes import BulkOutcomes, ResultGatherer
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.errors import ServiceError
from stepwell.store.record import SourcePosition
from stepwell.store.record_arrays import advance_sources, empty_sources, encode_sources
from stepwell.types import (
    BatchOutput,
    BatchSources,
    BulkPrediction,
    BulkTimesteps,
    Prediction,
    ReplyCallback,
    Source,
    StreamHandle,
    Transport,
)
from stepwell_client.wire.outcomes import ReturnMode
from stepwell_export.runtime.manifest import Array

_log = logging.getLogger(__name__)
_NO_AFTER = bytes(16)

_Single = tuple[StreamHandle, str, int | None, bytes | None, Source | None, tuple[bytes, ...], ReplyCallback, float]


class ColumnarBatch(Sequence[QueuedStep]):
    """Timesteps of different streams, equally long, without idempotency keys, each continuing its stream.

    Attributes:
        names: Keys of the streams' records.
        op_ids: Op ids, 16 bytes each.
        length: T of each row.
        keep: Which of each row's predictions are returned, and stored.
        oldest_received: When the first of them was received, on the monotonic clock.
        rows_by_transport: Number of rows by transport.
        youngest_received: When the last of them was received, likewise.
        answered: Whether all rows have their response.
        is_sent: The commit of the rows as columns was sent, and the result is not known yet.
        sources: Where the rows' timesteps stand in their logs; None: they are from none.
    """

    names: Sequence[str]
    op_ids: Sequence[bytes]
    length: int
    keep: ReturnMode
    oldest_received: float
    youngest_received: float
    rows_by_transport: Mapping[Transport, int]
    answered: bool = False
    is_sent: bool = False
    sources: BatchSources | None = None
    _seqs: Sequence[int | None]
    _afters: Sequence[bytes | None]

    @abstractmethod
    def inputs(self, join: Callable[[Sequence[Sequence[bytes]], int], dict[str, Array]]) -> Mapping[str, Array]:
        """Return each input, `(rows, T, *row)`.

        Args:
            join: Builds these arrays from each row's bytes of each input, and T.
        """

    @abstractmethod
    def reply(self, output: BatchOutput, version: int) -> None:
        """Reply to all rows: they were applied now, to streams that existed. Raises nothing.

        Args:
            output: Their predictions.
            version: The version that computed them.
        """

    @abstractmethod
    def reject(self, error: ServiceError) -> None:
        """Reply to all rows with the same error."""

    @abstractmethod
    def latencies(self, now: float) -> Sequence[float]:
        """Return each row's seconds since receipt."""

    @abstractmethod
    def _build_rows(self) -> list[QueuedStep]: ...

    @property
    def has_answered_row(self) -> bool:
        """Whether one of its rows, accessed by itself, has its response already."""
        return "_rows" in self.__dict__ and any([row.answered for row in self._rows])  # noqa: C419 - see all_finite

    @cached_property
    def _rows(self) -> list[QueuedStep]:
        return self._build_rows()

    def matches_expected_position(self, headers: Array) -> Array:
        """Return for each timestep whether it certainly applies to its record: see `decide.applies_without_store`.

        Args:
            headers: The records' headers, `(rows,)` of `HEADER_DTYPE`; a missing stream has the header of step 0.

        Returns:
            `(rows,)` bool.
        """
        seqs, afters = self._seqs, self._afters
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

    def certainly_continues(self, step: int, history_hash: bytes) -> bool:
        """Whether it is a single timestep that certainly applies to a record: see `matches_expected_position`."""
        if len(self._seqs) != 1 or self.length != 1 or self.keep != "all":
            return False
        seq, after = self._seqs[0], self._afters[0]
        return (seq is None or seq == step + 1) and (after is None or after == history_hash)

    def sources_after(self, sources: tuple[SourcePosition, ...]) -> tuple[SourcePosition, ...] | None:
        """Return the positions of sources after a batch of one row; None: it has to be decided row by row.

        Args:
            sources: The positions in the stream's record before it.
        """
        if self.sources is None:
            return None if sources else ()
        [source] = self.sources.rows()
        after, is_replaced = advanced(sources, source)
        return None if is_replaced or passed_timesteps(sources, source) else after

    def advance_sources(self, sources: Array | None) -> tuple[Array, Array] | None:
        """Return the positions of sources after the batch, and the same as bytes of the records.

        Args:
            sources: The table of the positions before it; None: no record has any.

        Returns:
            None: The rows have to be processed one by one.
        """
        if self.sources is None:
            return None
        before = empty_sources(len(self)) if sources is None else sources
        digests, at, _ = self.sources
        after = advance_sources(before, digests, at)
        return None if after is None else (after, encode_sources(after, at if self.keep == "all" else at[:, -1:]))

    @abstractmethod
    def names_with_version(self) -> Sequence[str]:
        """Return the keys of the records of rows whose request names a version."""

    @property
    def has_first_step(self) -> bool:
        """Whether one of these timesteps is the first of its stream."""
        return 1 in self._seqs

    @property
    def may_match_missing(self) -> bool:
        """Whether one of these timesteps could match the header of a missing stream."""
        return 1 in self._seqs or None in self._seqs

    def __len__(self) -> int:
        return len(self.op_ids)

    @overload
    def __getitem__(self, i: int) -> QueuedStep: ...

    @overload
    def __getitem__(self, i: slice) -> Sequence[QueuedStep]: ...

    def __getitem__(self, i: int | slice) -> QueuedStep | Sequence[QueuedStep]:
        return self._rows[i]


class BulkBatch(ColumnarBatch):
    """The timesteps of one bulk request."""

    def __init__(
        self, bulk: BulkTimesteps, op_ids: Sequence[bytes], received: float, done: Callable[[BulkOutcomes], None]
    ) -> None:
        """Build the batch from the request's columns.

        Args:
            bulk: The request.
            op_ids: Op ids of its rows, 16 bytes each.
            received: When it was received, on the monotonic clock.
            done: Called with the results.
        """
        self.names, self.op_ids = bulk.names, op_ids
        self.length, self.keep = bulk.length, bulk.keep
        self.oldest_received = self.youngest_received = received
        self.rows_by_transport = {bulk.transport: len(op_ids)}
        self._seqs, self._afters = bulk.seqs, bulk.afters
        self.sources = bulk.sources
        self._bulk = bulk
        self._done = done

    def inputs(self, join: Callable[[Sequence[Sequence[bytes]], int], dict[str, Array]]) -> Mapping[str, Array]:
        """Return the request's arrays unchanged."""
        return self._bulk.inputs

    def reply(self, output: BatchOutput, version: int) -> None:
        """Reply with columns."""
        self.answered = True
        try:
            self._done(BulkPrediction(output, [version] * len(self), self.sources is not None))
        except Exception:  # noqa: BLE001 - a fault of the caller's callback; the commit is valid
            model, tenant = self._bulk.keys[0].model, self._bulk.keys[0].tenant
            _log.exception("The callback of a bulk request failed (model=%s, tenant=%s)", model, tenant)

    def reject(self, error: ServiceError) -> None:
        """Reply to all rows in one call."""
        self.answered = True
        self._done([error] * len(self))

    def names_with_version(self) -> Sequence[str]:
        """Return the keys of all rows or of none: the request names a version for all."""
        return [] if self._bulk.version is None else self.names

    def latencies(self, now: float) -> Sequence[float]:
        """Return the request's seconds since receipt, for each row."""
        return [now - self.oldest_received] * len(self)

    def _build_rows(self) -> list[QueuedStep]:
        timesteps = self._bulk.rows()
        gatherer = ResultGatherer(timesteps, self._done)
        shape = self.length if self.keep == "all" else (self.length, self.keep, "on")
        return [
            QueuedStep(
                timestep,
                partial(gatherer.receive, i),
                self.oldest_received,
                timestep.name,
                shape,
                op_id,
                expected_previous_step(timestep),
                answered=self.answered,
            )
            for i, (timestep, op_id) in enumerate(zip(timesteps, self.op_ids, strict=True))
        ]


class CoalescedBatch(ColumnarBatch):
    """Single timesteps that were submitted one by one; their columns are built when the batch is closed.

    Attributes:
        room: Number of timesteps that may still be added.
        has_source: Whether all of them have a source, or none has.
    """

    length = 1
    keep: ReturnMode = "all"

    def __init__(self, room: int, *, has_source: bool) -> None:
        self.room, self.has_source = room, has_source
        self._added: list[_Single] = []
        self.add = self._added.append
        """Add a timestep: stream, its record's key, `seq`, `after`, source, packed inputs, callback, receipt time."""

    def close(self, op_id_hasher: OpIdHasher) -> None:
        """Build the columns; nothing is added later. If it raises, `names` is set and `reject` replies to all rows."""
        columns = zip(*self._added, strict=True)
        streams, self.names, self._seqs, self._afters, sources, self._packed, self._dones, self._received = columns
        if self.has_source:
            self.sources = BatchSources.of(sources)
        self.op_ids = op_id_hasher.for_rows(1, self._seqs, self._afters, self._packed, self.sources)
        self._streams = streams
        self.oldest_received, self.youngest_received = self._received[0], self._received[-1]
        transports = [stream.transport for stream in streams]
        self.rows_by_transport = {transport: transports.count(transport) for transport in set(transports)}

    def inputs(self, join: Callable[[Sequence[Sequence[bytes]], int], dict[str, Array]]) -> Mapping[str, Array]:
        """Return the rows' bytes, joined."""
        return join(self._packed, 1)

    def reply(self, output: BatchOutput, version: int) -> None:
        """Reply to each row."""
        self.answered = True
        shows_version = self.has_source
        for i, done in enumerate(self._dones):
            try:
                done(Prediction(output, i, False, False, version, shows_version=shows_version))
            except Exception:  # noqa: BLE001 - a fault in one callback must not fail the others; it is logged
                key = self._streams[i].key
                _log.exception("The callback of a step failed (model=%s, stream=%s)", key.model, key.stream)

    def reject(self, error: ServiceError) -> None:
        """Reply to each row with the error."""
        self.answered = True
        for done in self._dones:
            done(error)

    def names_with_version(self) -> Sequence[str]:
        """Return the keys of the records of rows whose request names a version."""
        return [name for stream, name, *_ in self._added if stream.version is not None]

    def latencies(self, now: float) -> Sequence[float]:
        """Return each row's seconds since receipt."""
        return [now - received for received in self._received]

    def _build_rows(self) -> list[QueuedStep]:
        return [
            QueuedStep(
                timestep := stream.timestep(inputs, seq, after, source),
                done,
                received,
                name,
                1,
                op_id,
                expected_previous_step(timestep),
                answered=self.answered,
            )
            for (stream, name, seq, after, source, inputs, done, received), op_id in zip(
                self._added, self.op_ids, strict=True
            )
        ]

    def __len__(self) -> int:
        return len(self._added)
