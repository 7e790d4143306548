"""`ColumnarBatch`: a batch in columns, from the door to the answer. Does no I/O.

As long as everything goes its usual way, nothing is made for a single one of its timesteps; looked at as a sequence of
rows, it makes them.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import overload

import numpy as np

from model_export.manifest import Array
from service.engine.protocol.decide import expected_previous_step
from service.engine.protocol.op_ids import OpIdHasher
from service.engine.stepping.queued import QueuedStep
from service.errors import ServiceError
from service.types import (
    BatchOutput,
    BulkPrediction,
    BulkTimesteps,
    Prediction,
    ReplyCallback,
    ReturnMode,
    StreamHandle,
    Timestep,
    Transport,
)

_log = logging.getLogger(__name__)
_NO_AFTER = bytes(16)

_Single = tuple[StreamHandle, str, int | None, bytes | None, tuple[bytes, ...], ReplyCallback, float]
StepOutcome = Prediction | ServiceError
BulkOutcomes = BulkPrediction | list[StepOutcome]
"""The answers to timesteps that came together: in columns where all went its usual way, else one by one."""


class ResultGatherer:
    """Gathers the answers to timesteps that are moved one by one, until all are there."""

    __slots__ = ("_done", "_left", "_results")

    def __init__(self, asked: Sequence[Timestep | ServiceError], done: Callable[[list[StepOutcome]], None]) -> None:
        """Begin; where nothing is to be waited for, all is done at once.

        Args:
            asked: The requests, or what is wrong with them.
            done: Takes the answers, in the same order.
        """
        self._results: list[StepOutcome] = list(asked)  # type: ignore[arg-type]  # until they are there
        self._left = sum([not isinstance(one, ServiceError) for one in asked])
        self._done = done
        if not self._left:
            done(self._results)

    def receive(self, i: int, result: StepOutcome) -> None:
        """Take an answer."""
        self._results[i] = result
        self._left -= 1
        if not self._left:
            self._done(self._results)


class ColumnarBatch(Sequence[QueuedStep]):
    """Timesteps of different streams, equally long, without idempotency keys, each continuing its stream.

    Attributes:
        names: Where the store has their streams.
        op_ids: Names of the operations, 16 bytes each.
        length: T of each.
        keep: Which of its predictions are wanted, and kept.
        oldest: When the first of them came, on the loop's clock.
        doors: How many of them came which way.
        answered: All are answered.
    """

    names: Sequence[str]
    op_ids: Sequence[bytes]
    length: int
    keep: ReturnMode
    oldest_received: float
    rows_by_transport: Mapping[Transport, int]
    answered: bool = False
    _seqs: Sequence[int | None]
    _afters: Sequence[bytes | None]

    @abstractmethod
    def inputs(self, join: Callable[[Sequence[Sequence[bytes]], int], dict[str, Array]]) -> Mapping[str, Array]:
        """Return each input, `(rows, T, *row)`.

        Args:
            join: Makes that of each row's bytes of each input, and T.
        """

    @abstractmethod
    def reply(self, made: BatchOutput, version: int) -> None:
        """Answer all: they were applied now, to streams that were there. Nothing is raised."""

    @abstractmethod
    def refuse(self, error: ServiceError) -> None:
        """Answer all with the same refusal."""

    @abstractmethod
    def latencies(self, now: float) -> Sequence[float]:
        """Return the seconds since each of them came."""

    @abstractmethod
    def _build_row(self) -> list[QueuedStep]: ...

    @cached_property
    def _rows(self) -> list[QueuedStep]:
        return self._build_row()

    def matches_expected_position(self, heads: Array) -> Array:
        """Return for each timestep whether it applies to its record for certain: see `decide.applies_without_store`.

        Args:
            heads: The records' headers, `(rows,)` of `HEAD`; a missing stream has the header of step 0.

        Returns:
            `(rows,)` bool.
        """
        seqs, afters = self._seqs, self._afters
        if None in seqs:
            steps = np.array([0 if seq is None else seq for seq in seqs], np.int64)
            sure: Array = (heads["step"].view(np.int64) == steps - 1) | (steps == 0)
        else:
            sure = heads["step"].view(np.int64) == np.array(seqs, np.int64) - 1
        if (without := afters.count(None)) < len(afters):
            histories = b"".join([after or _NO_AFTER for after in afters])
            same: Array = heads["chain"] == np.frombuffer(histories, "V16")
            sure &= same if not without else same | np.array([after is None for after in afters])
        return sure

    @property
    def has_first_step(self) -> bool:
        """Whether one of these timesteps is the first of its stream."""
        return 1 in self._seqs

    @property
    def may_match_missing(self) -> bool:
        """Whether one of these timesteps could match the header that stands for a missing stream."""
        return 1 in self._seqs or None in self._seqs

    def __len__(self) -> int:
        return len(self.op_ids)

    @overload
    def __getitem__(self, at: int) -> QueuedStep: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[QueuedStep]: ...

    def __getitem__(self, at: int | slice) -> QueuedStep | Sequence[QueuedStep]:
        return self._rows[at]


class BulkBatch(ColumnarBatch):
    """Timesteps that one message brought."""

    def __init__(
        self, asked: BulkTimesteps, op_ids: Sequence[bytes], received: float, done: Callable[[BulkOutcomes], None]
    ) -> None:
        """Begin.

        Args:
            asked: The requests.
            op_ids: Names of the operations.
            received: When they came.
            done: Takes the answers.
        """
        self.names, self.op_ids = asked.names, op_ids
        self.length, self.keep = asked.length, asked.keep
        self.oldest_received, self.rows_by_transport = received, {asked.transport: len(op_ids)}
        self._seqs, self._afters = asked.seqs, asked.afters
        self._timesteps = asked
        self._done = done

    def inputs(self, join: Callable[[Sequence[Sequence[bytes]], int], dict[str, Array]]) -> Mapping[str, Array]:
        """Return each input as it came."""
        return self._timesteps.inputs

    def reply(self, made: BatchOutput, version: int) -> None:
        """Answer all in columns."""
        self.answered = True
        try:
            self._done(BulkPrediction(made, version))
        except Exception:  # noqa: BLE001 - the waiter's fault; what was committed stays so
            _log.exception("Taking an answer failed")

    def refuse(self, error: ServiceError) -> None:
        """Answer all at once."""
        self.answered = True
        self._done([error] * len(self))

    def latencies(self, now: float) -> Sequence[float]:
        """Return the same of each."""
        return [now - self.oldest_received] * len(self)

    def _build_row(self) -> list[QueuedStep]:
        asked = self._timesteps.rows()
        gathering = ResultGatherer(asked, self._done)
        shape = self.length if self.keep == "all" else (self.length, self.keep, "on")
        return [
            QueuedStep(
                ask,
                partial(gathering.receive, at),
                self.oldest_received,
                ask.name,
                shape,
                op_id,
                expected_previous_step(ask),
                answered=self.answered,
            )
            for at, (ask, op_id) in enumerate(zip(asked, self.op_ids, strict=True))
        ]


class CoalescedBatch(ColumnarBatch):
    """Single timesteps that were submitted one by one; their columns are built when the batch is closed."""

    length = 1
    keep: ReturnMode = "all"

    def __init__(self) -> None:
        """Begin with none."""
        self._added: list[_Single] = []
        self.add = self._added.append
        """Add one: stream, its record's key, `seq`, `after`, the bytes of each input, callback, time of receipt."""

    def close(self, request_names: OpIdHasher) -> None:
        """Take no more; whatever is raised, `names` are there and `refuse` answers all."""
        columns = zip(*self._added, strict=True)
        streams, self.names, self._seqs, self._afters, self._packed, self._dones, self._received = columns
        self.op_ids = request_names.for_rows(1, self._seqs, self._afters, self._packed)
        self._streams = streams
        self.oldest_received = self._received[0]
        transports = [stream.transport for stream in streams]
        self.rows_by_transport = {transport: transports.count(transport) for transport in set(transports)}

    def inputs(self, join: Callable[[Sequence[Sequence[bytes]], int], dict[str, Array]]) -> Mapping[str, Array]:
        """Return what each brought, joined."""
        return join(self._packed, 1)

    def reply(self, made: BatchOutput, version: int) -> None:
        """Answer each."""
        self.answered = True
        for at, done in enumerate(self._dones):
            try:
                done(Prediction(made, at, False, False, version))
            except Exception:  # noqa: BLE001 - one waiter's fault must not fail the others; it is logged
                _log.exception("Taking an answer failed")

    def refuse(self, error: ServiceError) -> None:
        """Answer each."""
        self.answered = True
        for done in self._dones:
            done(error)

    def latencies(self, now: float) -> Sequence[float]:
        """Return it of each."""
        return [now - received for received in self._received]

    def _build_row(self) -> list[QueuedStep]:
        return [
            QueuedStep(
                timestep := stream.timestep(inputs, seq, after),
                done,
                received,
                name,
                1,
                op_id,
                expected_previous_step(timestep),
                answered=self.answered,
            )
            for (stream, name, seq, after, inputs, done, received), op_id in zip(self._added, self.op_ids, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._added)
