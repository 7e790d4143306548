"""`Batcher`: queues the timesteps of one model version and runs them in batches of different streams."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from operator import attrgetter

from stepwell.background import cancel
from stepwell.engine.protocol.op_ids import OpIdHasher
from stepwell.engine.stepping.batch import Batch, BulkBatch, CoalescedBatch, RowBatch
from stepwell.engine.stepping.batch_queue import BatchQueue
from stepwell.engine.stepping.outcomes import BulkOutcomes
from stepwell.engine.stepping.overload import QueueAdmission
from stepwell.engine.stepping.pipeline import PipelineDeps, StepPipeline
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.replies import failed, service_ended
from stepwell.engine.stepping.version_batchers import VersionBatchers, is_older
from stepwell.engine.trials.plans import BatchPlans, ReleasePlans
from stepwell.errors import ServiceError
from stepwell.store import keys
from stepwell.types import BulkTimesteps, ReplyCallback, Source, StreamHandle, Timestep

_log = logging.getLogger(__name__)

_NAME = attrgetter("name")
_MIN_COLUMNAR_ROWS = 16  # a bulk request of fewer rows is cheaper in a batch with other timesteps
_MAX_COALESCED_ROWS = 160  # so that the model runs the next batch while the store commits this one
_MAX_BATCHES_IN_FLIGHT = 4  # while one batch waits for the store, the model runs the next one
_MIN_CONCURRENT_ROWS = 32  # with fewer rows, a batch waits for the one in flight, since fewer batches cost less
_MAX_CONCURRENT_DELAY_S = 0.005  # upper limit of that wait: the batch in flight may wait for a node that is down


class Batcher:
    """The queue and the running batches of one model version.

    Attributes:
        deps, served: What the batches of the model version share, and the model version.
        timestep_bytes: Bytes of the inputs of one timestep.
        cache: The worker's recently used records of this model version.
        queue: The timesteps that wait.
        admission: Limits how many timesteps may wait.
        versions: The batchers of all versions and pairs of the model while it has a release; else None.
    """

    def __init__(
        self,
        deps: PipelineDeps,
        *,
        plans: ReleasePlans,
        max_batch: int,
        max_wait: float,
        on_plan: Callable[[], None],
    ) -> None:
        """Create an empty queue; needs a running event loop.

        Args:
            deps: The model version, and what its batches share.
            plans: Where streams move by a release.
            max_batch: Maximum number of rows in one run.
            max_wait: Seconds that a timestep may wait for others; 0: none.
            on_plan: Called when the model's release plan has changed.
        """
        self.deps = deps
        served = self.served = deps.served
        self.timestep_bytes = served.timestep_bytes
        self.cache = deps.cache
        self._op_ids = OpIdHasher(served.manifest)
        self._observer = deps.observer
        self._pipeline = StepPipeline(deps)
        self._max_batch = min(max_batch, served.manifest.batch.max)
        self._max_coalesced = min(self._max_batch, _MAX_COALESCED_ROWS)
        self._max_wait = max_wait
        self.queue: BatchQueue[QueuedStep] = BatchQueue()
        # The open batches, to which single timesteps are added: without and with sources.
        self._coalesced: list[CoalescedBatch | None] = [None, None]
        self._tasks: dict[int, asyncio.Task[None]] = {}  # of the batches in flight, by batch number
        self._batch_number = 0  # of the last batch
        self._flush_due: asyncio.Handle | None = None
        self._is_due_now = False  # the flush is due in this iteration of the loop
        # From this many waiting rows on, `submit` schedules a flush. Infinite: one is due, or too many batches run.
        self._wake_threshold: float = 0
        self._processed = 0
        self._is_stopped = False
        self._batch_plans = BatchPlans(plans, served.name, self._on_new_plan)
        self._on_plan = on_plan
        self.versions: VersionBatchers | None = None
        self.admission = QueueAdmission(deps.timeout / 5)
        self._loop = asyncio.get_running_loop()  # stored: before Python 3.12, each call costs a system call

    def sample_load(self, now: float) -> None:
        """Sample how fast the queue drains; may be called from any thread."""
        self.admission.sample(now, self.queue.rows, self._processed)

    @property
    def rows(self) -> int:
        """Timesteps that wait."""
        return self.queue.rows

    @property
    def is_idle(self) -> bool:
        """Whether no timestep waits and no batch runs."""
        return not (self._tasks or self.queue.rows)

    def submit(self, timestep: Timestep, done: ReplyCallback, received: float) -> None:
        """Queue a timestep."""
        if timestep.can_coalesce:
            name = timestep.name or keys.record_key(*timestep.key)
            stream = StreamHandle(timestep.key, name, timestep.version, timestep.transport, timestep.create)
            self.submit_single(stream, timestep.inputs, timestep.seq, timestep.after, timestep.source, done, received)
        elif self.versions is not None and timestep.version is None:
            name = timestep.name or keys.record_key(*timestep.key)
            self.versions.batcher_of(name, self).submit_row(timestep, done, received)
        else:
            self.submit_row(timestep, done, received)

    def submit_single(  # noqa: PLR0917 - called for each timestep: keywords would cost a tenth of it
        self,
        stream: StreamHandle,
        inputs: tuple[bytes, ...],
        seq: int | None,
        after: bytes | None,
        source: Source | None,
        done: ReplyCallback,
        received: float,
    ) -> None:
        """Submit a timestep: it joins the open coalesced batch, unless another one of its stream waits or runs."""
        if self.versions is not None and stream.version is None:
            self.versions.batcher_of(stream.name, self).coalesce(stream, inputs, seq, after, source, done, received)
        else:
            self.coalesce(stream, inputs, seq, after, source, done, received)

    def coalesce(  # noqa: PLR0917 - as `submit_single`
        self,
        stream: StreamHandle,
        inputs: tuple[bytes, ...],
        seq: int | None,
        after: bytes | None,
        source: Source | None,
        done: ReplyCallback,
        received: float,
    ) -> None:
        """Add a single timestep to the open coalesced batch of this model version."""
        name, queue = stream.name, self.queue
        if not queue.reserve(name):
            self.submit_row(stream.timestep(inputs, seq, after, source), done, received)
            return
        has_source = source is not None
        batch = self._coalesced[has_source]
        if batch is None:
            batch = self._coalesced[has_source] = CoalescedBatch(self._max_coalesced, has_source=has_source)
            queue.enqueue_batch(batch)
        batch.add((stream, name, seq, after, source, inputs, done, received))
        batch.room -= 1
        if not batch.room:
            self._coalesced[has_source] = None  # full: the next timestep opens another
        if queue.rows >= self._wake_threshold:
            self._schedule()

    def peek(self, timestep: Timestep, done: ReplyCallback, received: float) -> None:
        """Queue a dry run of a timestep, after the stream's timesteps that wait here."""
        name, shape = keys.record_key(*timestep.key), (timestep.length, timestep.keep, "peek")
        self.requeue(QueuedStep(timestep, done, received, name, shape, secrets.token_bytes(16), dry_run=True))

    def accepts_columnar(self, bulk: BulkTimesteps, rows: int) -> bool:
        """Whether so many rows of a bulk request can be columnar batches.

        They cannot if they have an idempotency key or `create: must`. A few of them share a batch with other timesteps,
        if there are any.
        """
        return (
            rows > 0
            and (rows >= _MIN_COLUMNAR_ROWS or self.is_idle)
            and bulk.idempotency_key is None
            and bulk.create != "must"
        )

    def split(self, bulk: BulkTimesteps, rows: Sequence[int]) -> list[tuple[Batcher, Sequence[int]]]:
        """Return which batcher gets which rows of a bulk request, as batches; the others have to wait for others.

        Args:
            bulk: The request.
            rows: Indices of its rows.
        """
        names = bulk.names if len(rows) == len(bulk.names) else [bulk.names[i] for i in rows]
        if not self.queue.can_reserve(names):
            rows = [i for i, name in zip(rows, names, strict=True) if not self.queue.holds(name)]
        parts: list[tuple[Batcher, Sequence[int]]] = [(self, rows)]
        if self.versions is not None and bulk.version is None:
            parts = self.versions.split(bulk.names, rows, self)
        return [(one, own[at : at + one._max_batch]) for one, own in parts for at in range(0, len(own), one._max_batch)]

    def submit_columnar(self, bulk: BulkTimesteps, done: Callable[[BulkOutcomes], None], received: float) -> None:
        """Queue rows of a bulk request as a batch; they are a part of `split`."""
        self.queue.reserve_all(bulk.names)
        if self.versions is not None:
            self.versions.on_submitted(bulk.names, self)
        self.queue.enqueue_batch(BulkBatch(bulk, self._op_ids.for_bulk(bulk), received, done))
        if self._wake_threshold < math.inf:
            self._schedule()

    def requeue(self, queued: QueuedStep) -> None:
        """Queue a timestep that has its op id already; one that was moved here comes before younger ones."""
        if self.versions is not None:
            self.queue.enqueue_before(queued, is_older)
        else:
            self.queue.enqueue(queued)
        if self._wake_threshold < math.inf:
            self._schedule()

    def close(self) -> None:
        """End the model's thread; no timestep may wait or run."""
        self.deps.runner.close()

    async def stop(self) -> None:
        """Cancel running batches, reject waiting timesteps, and end the model's thread."""
        self._is_stopped = True
        if self._flush_due is not None:
            self._flush_due.cancel()
        await asyncio.sleep(0)  # a task that is cancelled before it has started would reply to no request
        await cancel(self._tasks.values())
        while self.queue:
            batch = self.queue.dequeue(self._max_batch)
            if isinstance(batch, CoalescedBatch) and not self._close_or_reject(batch):
                continue
            self._reject(batch if isinstance(batch, Batch) else RowBatch(batch), service_ended())
        self.close()

    def submit_row(self, timestep: Timestep, done: ReplyCallback, received: float) -> None:
        """Queue a timestep of this model version, as an object of its own."""
        lifecycle = timestep.lifecycle
        op_id = self._op_ids.for_timestep(timestep)
        name = timestep.name or (keys.record_key(*timestep.key) if lifecycle != "none" else op_id.hex())
        length, keep = timestep.length, timestep.keep
        # For the usual case an int: it hashes faster than a tuple.
        shape = length if lifecycle == "on" and keep == "all" else (length, keep, lifecycle)
        self.requeue(QueuedStep(timestep, done, received, name, shape, op_id))

    def _schedule(self) -> None:
        """Schedule the next flush: now, or when the batch has waited for others long enough."""
        in_flight, rows = len(self._tasks), self.queue.rows
        if in_flight >= _MAX_BATCHES_IN_FLIGHT:
            self._wake_threshold = math.inf
            return
        wait = self._max_wait if rows < self._max_batch else 0.0
        if in_flight and not self._may_run_concurrently():
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
        """Whether a batch may start while another is in flight: many rows wait, or later rows could not join it."""
        return self.queue.rows >= _MIN_CONCURRENT_ROWS or self.queue.ready_batches > 1

    def _flush(self) -> None:
        self._flush_due, self._is_due_now = None, False
        may_start = True
        try:
            while self.queue and may_start and len(self._tasks) < _MAX_BATCHES_IN_FLIGHT:
                self._start_batch(self.queue.dequeue(self._max_batch))
                may_start = self._may_run_concurrently()
        finally:
            self._reschedule()

    def _start_batch(self, batch: Sequence[QueuedStep]) -> None:
        if type(batch) is CoalescedBatch:  # `isinstance` is slow for an abstract class's subclass
            if batch is self._coalesced[batch.has_source]:
                self._coalesced[batch.has_source] = None
            if not self._close_or_reject(batch):
                return
        self._batch_number += 1
        self._tasks[self._batch_number] = self._loop.create_task(self._process(batch, self._batch_number))

    def _close_or_reject(self, batch: CoalescedBatch) -> bool:
        """Compute the op ids of a batch to which no timestep is added any more; return whether it succeeded."""
        try:
            batch.close(self._op_ids)
        except Exception:  # noqa: BLE001 - one batch's fault must not stop the queue; it is logged
            _log.exception("A batch could not be built (model=%s, rows=%d)", self.served.name, len(batch))
            self._reject(batch, failed("no"))
            return False
        return True

    def _reject(self, batch: Batch, error: ServiceError) -> None:
        """Reply with an error to a batch that was dequeued and is not run."""
        batch.reject(error)
        self._release(batch.names)
        self.deps.on_answered(len(batch), len(batch) * batch.length * self.timestep_bytes)

    def _release(self, names: Sequence[str]) -> None:
        self.queue.release(names)
        if self.versions is not None:
            self.versions.on_released(names, self)

    def _reschedule(self) -> None:
        """Schedule a flush if a batch is ready; else the next timestep does."""
        if self._is_stopped:
            return
        self._wake_threshold = 0
        if self.queue or len(self._tasks) >= _MAX_BATCHES_IN_FLIGHT:
            self._schedule()

    def _on_new_plan(self) -> None:
        self.cache.clear()  # by this plan, the streams may have to move
        self._on_plan()

    def _drop_stale(self, batch: Batch, *, is_outdated: bool) -> None:
        """Drop the records of a batch that may have to move at their next step, although this batch did not move them.

        These are all if the plan has changed meanwhile; else those of requests that name a version.
        """
        for name in batch.names if is_outdated else batch.names_with_version():
            self.cache.drop(name)

    async def _process(self, items: Sequence[QueuedStep], number: int) -> None:
        plan = self._batch_plans.started()
        if isinstance(items, Batch):
            batch: Batch | None = items
            names = items.names
        else:
            names = list(map(_NAME, items))
            rows = [row for row in items if self.versions is None or not self.versions.follows_older(row, self)]
            batch = RowBatch(rows) if rows else None
        self._observer.batch_started(self.served.name, 0 if batch is None else len(batch))
        try:
            if batch is not None:
                await self._pipeline.process(batch)
        finally:
            is_outdated = self._batch_plans.is_outdated(plan)
            if batch is not None and (is_outdated or plan is not None):
                self._drop_stale(batch, is_outdated=is_outdated)
            self._observer.batch_ended()
            self._processed += 0 if batch is None else len(batch)
            self._release(names)
            del self._tasks[number]
            if not self._is_due_now:
                self._reschedule()
