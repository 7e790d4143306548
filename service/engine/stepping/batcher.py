"""`Batcher`: the waiting timesteps of one model, taken out in batches of different streams."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from service.background import cancel
from service.engine.protocol.decide import expected_previous_step
from service.engine.protocol.op_ids import OpIdHasher
from service.engine.stepping.batch_queue import BatchQueue
from service.engine.stepping.columnar_batch import BulkBatch, BulkOutcomes, CoalescedBatch, ColumnarBatch
from service.engine.stepping.columnar_pipeline import ColumnarPipeline
from service.engine.stepping.dry_run import DryRunPipeline
from service.engine.stepping.model_runner import ModelRunner
from service.engine.stepping.overload import QueueAdmission
from service.engine.stepping.pipeline import BatchPipeline
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import RecordCache
from service.engine.stepping.replies import Reroute, failed
from service.engine.stepping.stateless import StatelessPipeline
from service.engine.watch.interests import InterestTable
from service.errors import ServiceError
from service.store import keys
from service.types import BulkTimesteps, ReplyCallback, StreamHandle, Timestep

if TYPE_CHECKING:
    from service.engine.limits import StreamQuota
    from service.engine.observer import EngineObserver
    from service.models.registry import ServedModel
    from service.store.state_store import StateStore

_log = logging.getLogger(__name__)

_MIN_COLUMNAR_ROWS = 16  # rows of a block; fewer had better share a batch with others
_NAME = attrgetter("name")
_MAX_COALESCED_ROWS = (
    160  # rows of a batch of timesteps that came one by one: while the store commits it, others are run
)
_MAX_BATCHES_IN_FLIGHT = 4  # batches out at once: while one waits for the store, the next is run
_MIN_CONCURRENT_ROWS = (
    32  # rows with which batches go at once while another is out; fewer wait for that one, and cost less so
)
_MAX_CONCURRENT_DELAY_S = 0.005  # but no longer than that: it may wait for a part of the store that is away


class Batcher:
    """The queue and the running batches of one model version."""

    def __init__(
        self,
        served: ServedModel,
        store: StateStore,
        observer: EngineObserver,
        audience: InterestTable,
        *,
        max_batch: int,
        max_wait: float,
        timeout: float,
        cache: RecordCache,
        reroute: Reroute,
        answered: Callable[[int, int], None],
        quota: StreamQuota | None = None,
    ) -> None:
        """Begin empty.

        Args:
            served: The model.
            store: Where records live.
            observer: Counts the work.
            audience: Says what is told of commits.
            max_batch: Most rows in one run.
            max_wait: Seconds that a timestep may wait for others; 0: none.
            timeout: Seconds from receipt to answer.
            cache: The worker's hot records.
            reroute: Takes a row whose stream belongs to another version; False: there is none.
            answered: Told how many requests were answered, and how many bytes of inputs they had.
            quota: Of the streams that a tenant may have; None: as many as it likes.
        """
        self.served = served
        self.timestep_bytes = served.timestep_bytes
        self.cache = cache
        self._op_ids = OpIdHasher(served.manifest)
        self._runner = ModelRunner(served, observer)
        common: dict[str, Any] = {"runner": self._runner, "timeout": timeout, "reroute": reroute, "answered": answered}
        self._pipeline = BatchPipeline(served, store, self.cache, observer, audience, **common, quota=quota)
        self._columnar = ColumnarPipeline(served, store, self.cache, observer, audience, **common, quota=quota)
        self._dry_run = DryRunPipeline(served, store, self.cache, observer, audience, **common)
        self._stateless = StatelessPipeline(served, store, self.cache, observer, audience, **common)
        self._max_batch = min(max_batch, served.manifest.batch.max)
        self._max_coalesced = min(self._max_batch, _MAX_COALESCED_ROWS)
        self._max_wait = max_wait
        self._queue: BatchQueue[QueuedStep] = BatchQueue()
        self._coalesced: CoalescedBatch | None = None  # that more may be added to
        self._coalesced_room = 0  # so many
        self._tasks: dict[int, asyncio.Task[None]] = {}  # that are out, by the number of their batch
        self._batch_number = 0  # of the last batch
        self._flush_due: asyncio.Handle | None = None
        self._is_due_now = False  # in this turn of the loop
        self._wake_threshold: float = (
            0  # so many rows it is looked whether a batch goes; infinite: it goes anyway, or cannot
        )
        self._processed = 0
        self._answered = answered
        self._is_stopped = False
        self.admission = QueueAdmission(timeout / 5)
        self._loop = asyncio.get_running_loop()  # asking for it costs a system call each time, before Python 3.12
        self.time = self._loop.time

    def sample_load(self, now: float) -> None:
        """See how fast the queue moves; any thread may do so."""
        self.admission.sample(now, self._queue.rows, self._processed)

    @property
    def rows(self) -> int:
        """Timesteps that wait."""
        return self._queue.rows

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._tasks and not self._queue.rows

    def submit(self, timestep: Timestep, done: ReplyCallback, received: float) -> None:
        """Queue a timestep; it goes with the next batch."""
        if timestep.can_coalesce:
            name = timestep.name or keys.record_key(*timestep.key)
            stream = StreamHandle(timestep.key, name, timestep.version, timestep.transport, timestep.create)
            self.submit_single(stream, timestep.inputs, timestep.seq, timestep.after, done, received)
        else:
            self._submit_row(timestep, done, received)

    def submit_single(  # noqa: PLR0917 - called for each timestep: keywords would cost a tenth of it
        self,
        stream: StreamHandle,
        inputs: tuple[bytes, ...],
        seq: int | None,
        after: bytes | None,
        done: ReplyCallback,
        received: float,
    ) -> None:
        """Add a single timestep to the batch that is being filled, unless another one of its stream is ahead of it."""
        name, queue = stream.name, self._queue
        if not queue.reserve(name):
            self._submit_row(stream.timestep(inputs, seq, after), done, received)
            return
        singles = self._coalesced
        if singles is None:
            singles, self._coalesced_room = CoalescedBatch(), self._max_coalesced
            self._coalesced = singles
            queue.enqueue_batch(singles)
        singles.add((stream, name, seq, after, inputs, done, received))
        self._coalesced_room -= 1
        if not self._coalesced_room:
            self._coalesced = None  # the next one begins another
        if queue.rows >= self._wake_threshold:
            self._schedule()

    def peek(self, timestep: Timestep, done: ReplyCallback, received: float) -> None:
        """Queue a look at what a timestep would answer, behind the stream's timesteps that wait here."""
        name, shape = keys.record_key(*timestep.key), (timestep.length, timestep.keep, "peek")
        self.requeue(QueuedStep(timestep, done, received, name, shape, secrets.token_bytes(16), dry_run=True))

    def accepts_columnar(self, asked: BulkTimesteps) -> bool:
        """Whether timesteps that came together may go as a batch of their own.

        They may not if they are more than one batch, if one of them has to wait for another timestep of its stream, or
        if they have an idempotency key or `create: must`. A few share a batch with other timesteps, if there are any.
        """
        return (
            (len(asked.names) >= _MIN_COLUMNAR_ROWS or self.is_idle)
            and len(asked.names) <= self._max_batch
            and asked.idempotency_key is None
            and asked.create != "must"
            and self._queue.can_reserve(asked.names)
        )

    def submit_columnar(self, asked: BulkTimesteps, done: Callable[[BulkOutcomes], None], received: float) -> None:
        """Queue timesteps that `accepts_columnar`."""
        self._queue.reserve_all(asked.names)
        self._queue.enqueue_batch(BulkBatch(asked, self._op_ids.for_bulk(asked), received, done))
        if self._wake_threshold < math.inf:
            self._schedule()

    def requeue(self, pending: QueuedStep) -> None:
        """Queue a timestep that was named before."""
        self._queue.enqueue(pending)
        if self._wake_threshold < math.inf:
            self._schedule()

    def close(self) -> None:
        """Let the model's thread go; nothing waits or runs."""
        self._runner.close()

    async def stop(self) -> None:
        """Cancel what runs, refuse what waits, and let the model's thread go."""
        self._is_stopped = True
        if self._flush_due is not None:
            self._flush_due.cancel()
        await asyncio.sleep(0)  # a task that is cancelled before it has begun would answer nobody
        await cancel(self._tasks.values())
        while self._queue:
            batch = self._queue.dequeue(self._max_batch)
            if isinstance(batch, CoalescedBatch):
                batch.close(self._op_ids)
            self._refuse(batch, ServiceError("draining", "The service ended first.", fix="Send it to another replica."))
        self.close()

    def _submit_row(self, timestep: Timestep, done: ReplyCallback, received: float) -> None:
        life = timestep.lifecycle
        op_id = self._op_ids.for_timestep(timestep)
        name = timestep.name or (keys.record_key(*timestep.key) if life != "none" else op_id.hex())
        length, keep = timestep.length, timestep.keep
        shape = length if life == "on" and keep == "all" else (length, keep, life)  # a number is hashed in no time
        self.requeue(QueuedStep(timestep, done, received, name, shape, op_id, expected_previous_step(timestep)))

    def _schedule(self) -> None:
        """See to it that the next batch goes: now, or when it has waited for others long enough."""
        out, rows = len(self._tasks), self._queue.rows
        if out >= _MAX_BATCHES_IN_FLIGHT:
            self._wake_threshold = math.inf
            return
        wait = self._max_wait if rows < self._max_batch else 0.0
        if out and not self._may_run_concurrently():
            wait = max(wait, _MAX_CONCURRENT_DELAY_S)
        if not wait:
            if self._flush_due is not None:
                self._flush_due.cancel()
            self._flush_due, self._is_due_now = self._loop.call_soon(self._flush), True
            self._wake_threshold = math.inf
            return
        if self._flush_due is None:
            self._flush_due = self._loop.call_later(wait, self._flush)
        self._wake_threshold = _MIN_CONCURRENT_ROWS if rows < _MIN_CONCURRENT_ROWS else self._max_batch

    def _may_run_concurrently(self) -> bool:
        """Whether what waits goes while another batch is out: it is many, or what comes later could not join it."""
        return self._queue.rows >= _MIN_CONCURRENT_ROWS or self._queue.ready_batches > 1

    def _flush(self) -> None:
        self._flush_due, self._is_due_now = None, False
        may_go = True
        try:
            while self._queue and may_go and len(self._tasks) < _MAX_BATCHES_IN_FLIGHT:
                self._send(self._queue.dequeue(self._max_batch))
                may_go = self._may_run_concurrently()
        finally:
            self._reschedule()

    def _send(self, batch: Sequence[QueuedStep]) -> None:
        if isinstance(batch, CoalescedBatch):
            if batch is self._coalesced:
                self._coalesced = None
            try:
                batch.close(self._op_ids)
            except Exception:  # noqa: BLE001 - one batch's fault must not stop the queue; it is logged
                _log.exception("A batch of model %s could not be put together", self.served.name)
                self._refuse(batch, failed("no"))
                return
        self._batch_number += 1
        self._tasks[self._batch_number] = self._loop.create_task(self._process(batch, self._batch_number))

    def _refuse(self, batch: Sequence[QueuedStep], error: ServiceError) -> None:
        """Answer a batch that was taken out of the queue, and is not run."""
        names = batch.names if isinstance(batch, ColumnarBatch) else [row.name for row in batch]
        if isinstance(batch, ColumnarBatch):
            batch.refuse(error)
        else:
            for row in batch:
                row.done(error)
        self._queue.release(names)
        length = batch.length if isinstance(batch, ColumnarBatch) else batch[0].timestep.length
        self._answered(len(batch), len(batch) * length * self.timestep_bytes)

    def _reschedule(self) -> None:
        """See to what waits and may go, or to what comes next."""
        if self._is_stopped:
            return
        self._wake_threshold = 0
        if self._queue or len(self._tasks) >= _MAX_BATCHES_IN_FLIGHT:
            self._schedule()

    def _pipeline_for(self, first: QueuedStep) -> BatchPipeline:
        if first.dry_run:
            return self._dry_run
        return self._pipeline if first.timestep.lifecycle != "none" else self._stateless

    async def _process(self, batch: Sequence[QueuedStep], number: int) -> None:
        block = batch if isinstance(batch, ColumnarBatch) else None
        try:
            await (self._columnar if block is not None else self._pipeline_for(batch[0])).process(batch)
        finally:
            self._processed += len(batch)
            self._queue.release(map(_NAME, batch) if block is None else block.names)
            del self._tasks[number]
            if not self._is_due_now:
                self._reschedule()
