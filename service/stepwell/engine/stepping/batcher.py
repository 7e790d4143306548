"""`Batcher`: the queue of one model, whose timesteps run in batches of different streams, each by its version."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, cast

from stepwell.background import cancel
from stepwell.engine.admission import QueueAdmission
from stepwell.engine.stepping.batch import Batch, CoalescedBatch, RowBatch
from stepwell.engine.stepping.batch_queue import BatchQueue
from stepwell.engine.stepping.pipeline import BatchedVersion
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.replies import failed, service_ended
from stepwell.errors import ServiceError
from stepwell.models.version_differences import needed_inputs
from stepwell.types import STARTS

if TYPE_CHECKING:
    from stepwell.engine.admission import RequestAdmission
    from stepwell.engine.placing import Placing
    from stepwell.models.registry import ModelRegistry
    from stepwell.models.served import ServedModel

_log = logging.getLogger(__name__)

_MAX_BATCHES_IN_FLIGHT = 4  # while one batch waits for the store, the model runs the next one
_MIN_CONCURRENT_ROWS = 32  # with fewer rows, a batch waits for the one in flight, since fewer batches cost less
_MAX_CONCURRENT_DELAY_S = 0.005  # upper limit of that wait: the batch in flight may wait for a node that is down


class Batcher:
    """The queue and the running batches of one model.

    A batch is of timesteps that one version has decoded. Its rows are run by the version that steps each
    stream: most often the same one. Rows of others are handed over to them, in the same batch, so that the timesteps of
    a stream keep their order. If a version has to be loaded first, its rows wait for that without the others.

    Attributes:
        versions: The versions that have decoded or run timesteps, by what is served.
        queue: The timesteps that wait.
        requests: The open requests of this worker.
        admission: Limits how many timesteps may wait.
        wake_threshold: From this many waiting rows on, `schedule` is called for one that is queued. Infinite: a flush
            is due, or too many batches run.
    """

    def __init__(
        self,
        name: str,
        models: ModelRegistry,
        version_of: Callable[[ServedModel], BatchedVersion],
        *,
        placing: Placing,
        requests: RequestAdmission,
        timeout: float,
        max_wait: float,
    ) -> None:
        """Create an empty queue; needs a running event loop.

        Args:
            name: The model.
            models: The loaded models.
            version_of: Returns what runs a version; one that is new is added to `versions`.
            placing: Places the streams.
            requests: The open requests of this worker; they count each timestep that is queued.
            timeout: Seconds from receipt to response.
            max_wait: Seconds that a timestep may wait for others; 0: none.
        """
        self.versions: dict[ServedModel, BatchedVersion] = {}
        self._name = name
        self._models = models
        self._version_of = version_of
        self._timeout = timeout
        self.requests = requests
        self._max_batch = 1
        self._max_wait = max_wait
        self.queue: BatchQueue[QueuedStep] = BatchQueue()
        self._tasks: dict[int, asyncio.Task[None]] = {}  # of the batches in flight, by batch number
        self._batch_number = 0  # of the last batch
        self._waiting: set[asyncio.Task[None]] = set()  # for versions that are being loaded
        self._flush_due: asyncio.Handle | None = None
        self._is_due_now = False  # the flush is due in this iteration of the loop
        self.wake_threshold: float = 0
        self._processed = 0
        self._is_stopped = False
        self._placing = placing
        self._plan: object | None = None  # by which the last batch began
        self.admission = QueueAdmission(timeout / 5)
        self._loop = asyncio.get_running_loop()  # stored: before Python 3.12, each call costs a system call

    def add(self, version: BatchedVersion) -> None:
        """Add a version. Missing values that only others accept are refused by it, as they may decode its timesteps."""
        self.versions[version.served] = version
        self._max_batch = min([each.max_batch for each in self.versions.values()])
        for decoding, running in itertools.permutations(self.versions.values(), 2):
            for each in running.served.versions:
                running.runner.needed.update(needed_inputs(decoding.served.manifest, each.manifest))

    def sample_load(self, now: float) -> None:
        """Sample how fast the queue drains; may be called from any thread."""
        self.admission.sample(now, self.queue.rows, self._processed)

    @property
    def is_idle(self) -> bool:
        """Whether no timestep waits and no batch runs."""
        return not (self._tasks or self._waiting or self.queue.rows)

    def hand_over(self, version: BatchedVersion, row: QueuedStep, fingerprint: bytes) -> bool:
        """Hand a row that a version runs over to the one that steps its stream, now or when that one is loaded.

        Returns:
            False: That version is not to be had here, or it has other inputs.
        """
        version.cache.drop(row.name)
        served = self._models.by_fingerprint(self._name, fingerprint)
        if served is None:
            if not self._models.may_find(self._name, fingerprint):
                return False
        elif self._version_of(served).inputs != version.inputs:
            return False
        row.handed_over = row.for_version(fingerprint)
        return True

    async def stop(self) -> None:
        """Cancel running batches, reject waiting timesteps, and end the threads of the versions."""
        self._is_stopped = True
        if self._flush_due is not None:
            self._flush_due.cancel()
        await asyncio.sleep(0)  # a task that is cancelled before it has started would reply to no request
        await cancel([*self._tasks.values(), *self._waiting])
        while self.queue.ready_batches:
            batch = self.queue.dequeue(self._max_batch)
            if isinstance(batch, CoalescedBatch) and not self._close_or_reject(batch):
                continue
            self._reject(batch if isinstance(batch, Batch) else RowBatch(batch), service_ended())
        for version in self.versions.values():
            version.runner.close()

    def schedule(self) -> None:
        """Schedule the next flush if a batch is ready: now, or when the batch has waited for others long enough."""
        in_flight, rows = len(self._tasks), self.queue.rows
        if in_flight >= _MAX_BATCHES_IN_FLIGHT or self._is_stopped:
            self.wake_threshold = math.inf
            return
        if not self.queue.ready_batches:
            self.wake_threshold = 0
            return
        wait = self._max_wait if rows < self._max_batch else 0.0
        if in_flight and not self._may_run_concurrently():
            wait = max(wait, _MAX_CONCURRENT_DELAY_S)
        if not wait:
            if self._flush_due is not None:
                self._flush_due.cancel()
            self._flush_due, self._is_due_now = self._loop.call_soon(self._flush), True
            self.wake_threshold = math.inf
            return
        if self._flush_due is None:
            self._flush_due = self._loop.call_later(wait, self._flush)
        self.wake_threshold = _MIN_CONCURRENT_ROWS if rows < _MIN_CONCURRENT_ROWS else self._max_batch

    def _may_run_concurrently(self) -> bool:
        """Whether a batch may start while another is in flight: many rows wait, or later rows could not join it."""
        return self.queue.rows >= _MIN_CONCURRENT_ROWS or self.queue.ready_batches > 1

    def _flush(self) -> None:
        self._flush_due, self._is_due_now, is_first = None, False, True
        try:
            while self.queue.ready_batches and (is_first or self._may_run_concurrently()):
                if len(self._tasks) >= _MAX_BATCHES_IN_FLIGHT:
                    break
                batch = self.queue.dequeue(self._max_batch)
                if type(batch) is CoalescedBatch and not self._close_or_reject(batch):  # quicker than `isinstance`
                    continue
                self._batch_number += 1
                self._tasks[self._batch_number] = self._loop.create_task(self._process(batch, self._batch_number))
                is_first = False
        finally:
            self.schedule()

    def _close_or_reject(self, batch: CoalescedBatch) -> bool:
        """Compute the op ids of a batch to which no timestep is added any more; return whether it succeeded."""
        version = self.versions[batch.decoded_by]
        if batch is version.coalesced[batch.has_source]:
            version.coalesced[batch.has_source] = None
        try:
            batch.close(version.op_ids.for_rows)
        except Exception:  # noqa: BLE001 - one batch's fault must not stop the queue; it is logged
            _log.exception("A batch could not be built (model=%s, rows=%d)", self._name, len(batch))
            self._reject(batch, failed("no"))
            return False
        return True

    def _reject(self, batch: Batch, error: ServiceError) -> None:
        """Reply with an error to a batch that was dequeued and is not run."""
        version = self.versions[batch.decoded_by]
        batch.reject(error)
        self.queue.release(batch.names)
        version.in_use -= len(batch)
        self.requests.count_answered(len(batch), len(batch) * batch.length * version.timestep_bytes)

    async def _process(self, items: Sequence[QueuedStep], number: int) -> None:
        batch = (
            RowBatch(items) if type(items) is list else cast("Batch", items)
        )  # `isinstance` takes long: it is an ABC
        own = self.versions[batch.decoded_by]
        plan = self._placing.plan(self._name) if self._name in self._placing.planned else None
        if plan is not self._plan:
            self._plan = plan
            for version in self.versions.values():
                version.cache.clear()  # by this plan, the streams may have to move
        try:
            if len(self.versions) > 1:
                await self._run(self._parts(batch), plan)
            else:
                try:
                    await self._run_part(own, batch, plan)
                except asyncio.CancelledError:
                    self._reject_rows(self._handed_over([(own, batch)]), service_ended())
                    raise
                if batch.rows:  # else all of them were of this version
                    await self._run(self._placed(self._handed_over([(own, batch)])), plan)
        finally:
            rows, requests = len(batch.names), self.requests
            self._processed += rows
            own.in_use -= rows
            requests.rows -= rows
            requests.nbytes -= rows * batch.length * own.timestep_bytes
            if requests.draining:
                requests.end_drain()
            del self._tasks[number]
            if not self._is_due_now and (self.queue.rows or self.wake_threshold):
                self.schedule()

    def _drop_stale(self, batch: Batch, *, is_outdated: bool) -> None:
        """Drop the records of a batch that may have to move at their next step, although this batch did not move them.

        These are all if the plan has changed meanwhile; else those of requests that name a version.
        """
        for name in batch.names if is_outdated else batch.names_with_version():
            for version in self.versions.values():
                version.cache.drop(name)

    # ---------------------------------------------------------------- versions

    def _parts(self, batch: Batch) -> list[tuple[BatchedVersion, Batch]]:
        """Return which version runs which rows of a batch first: the one that has the record of the row's stream.

        The rows of streams that none has are run by the version that has decoded them, if they are not placed on
        another one when their records are loaded.
        """
        own = self.versions[batch.decoded_by]
        if batch.lifecycle in STARTS:  # a stream that begins again stays nowhere
            return [own.with_part(batch)]
        named, others = frozenset(batch.names_with_version()), [v for v in self.versions.values() if v is not own]
        left: Sequence[int] = range(len(batch))
        if named:
            left = [i for i, name in enumerate(batch.names) if name not in named]
        parts: list[tuple[BatchedVersion, Batch]] = []
        placed = set[int]()
        for other in others:
            if other.inputs == own.inputs and (rows := other.cache.indices_of(batch.names, left)):
                parts += self._cut(other, batch, rows)
                placed.update(rows)
                left = [i for i in left if i not in placed]
        return parts + self._cut(own, batch, [i for i in range(len(batch)) if i not in placed])

    def _placed(self, handed_over: Iterable[QueuedStep]) -> list[tuple[BatchedVersion, Batch]]:
        """Return what runs rows that were handed over; those whose version has to be loaded first wait for it."""
        by_fingerprint: dict[bytes, list[QueuedStep]] = {}
        for row in handed_over:
            by_fingerprint.setdefault(row.stepped_by, []).append(row)
        parts: list[tuple[BatchedVersion, Batch]] = []
        for fingerprint, rows in by_fingerprint.items():
            if (served := self._models.by_fingerprint(self._name, fingerprint)) is not None:
                parts += self._cut(self._version_of(served), RowBatch(rows), range(len(rows)))
            else:
                self.wait_for_version(fingerprint, rows)
        return parts

    @staticmethod
    def _cut(version: BatchedVersion, batch: Batch, rows: Sequence[int]) -> list[tuple[BatchedVersion, Batch]]:
        """Return what runs some rows of a batch, in parts of at most `max_batch` rows."""
        size = version.max_batch
        parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        return [version.with_part(batch if len(part) == len(batch) else batch.part(part)) for part in parts]

    async def _run(self, parts: Sequence[tuple[BatchedVersion, Batch]], plan: object | None) -> None:
        """Run the parts of a batch, and the rows that are handed over meanwhile.

        Args:
            parts: What runs which rows.
            plan: What placed the streams when they began.
        """
        while parts:
            try:
                if len(parts) == 1:
                    await self._run_part(*parts[0], plan)
                else:
                    await asyncio.gather(*(self._run_part(version, part, plan) for version, part in parts))
            except asyncio.CancelledError:
                unanswered = [row for _, part in parts for row in part.unanswered()]  # of parts that had not begun
                self._reject_rows([*unanswered, *self._handed_over(parts)], service_ended())
                raise
            finally:
                for version, part in parts:
                    version.in_use -= len(part)
            parts = self._placed(self._handed_over(parts))

    async def _run_part(self, version: BatchedVersion, part: Batch, plan: object | None) -> None:
        """Run a part of a batch, and release the streams of all rows that were not handed over."""
        try:
            await version.process(part)
        finally:
            if plan is not None or self._name in self._placing.planned:
                self._drop_stale(part, is_outdated=self._placing.plan(self._name) is not plan)
            names = part.names
            if part.rows:
                moved = frozenset([i for i, row in part.rows.items() if row.handed_over is not None])
                names = [name for i, name in enumerate(names) if i not in moved]
            self.queue.release(names)

    @staticmethod
    def _handed_over(parts: Iterable[tuple[BatchedVersion, Batch]]) -> list[QueuedStep]:
        return [row.handed_over for _, part in parts for row in part.rows.values() if row.handed_over is not None]

    def wait_for_version(self, fingerprint: bytes, rows: Sequence[QueuedStep]) -> None:
        """Run rows, whose streams are reserved, by a version that has to be loaded first; their batch ends before."""
        self.requests.rows += len(rows)
        self.requests.nbytes += _input_bytes(rows)
        task = self._loop.create_task(self._run_later(fingerprint, rows))
        self._waiting.add(task)
        task.add_done_callback(self._waiting.discard)

    async def _run_later(self, fingerprint: bytes, rows: Sequence[QueuedStep]) -> None:
        """Load a version, and run the rows that wait for it; those whose deadline passes meanwhile are rejected."""
        finding, open_rows = asyncio.ensure_future(self._models.find(self._name, fingerprint)), rows
        try:
            while not finding.done():
                deadline = min([row.received for row in rows]) + self._timeout if rows else math.inf
                await asyncio.wait({finding}, timeout=max(deadline - time.monotonic(), 0.0) if rows else None)
                rows = open_rows = self._without_expired(rows, fingerprint)
            served = finding.result()
            for row in rows:
                row.invalidate()
            parts, rows = self._parts_when_loaded(served, rows) if rows else [], ()
            await self._run(parts, self._placing.plan(self._name))
        except ServiceError as exc:
            self._reject_rows(rows, exc)
        except asyncio.CancelledError:
            finding.cancel()
            self._reject_rows(rows, service_ended())
            raise
        except Exception:  # noqa: BLE001 - a fault in one batch must not end the worker; it is logged
            _log.exception("A version could not be loaded (model=%s, rows=%d)", self._name, len(rows))
            self._reject_rows(rows, failed("no"))
        finally:
            self.requests.count_answered(len(open_rows), _input_bytes(open_rows))
            if not self._is_due_now:
                self.schedule()

    def _parts_when_loaded(
        self, served: ServedModel | None, rows: Sequence[QueuedStep]
    ) -> list[tuple[BatchedVersion, Batch]]:
        """Return what runs rows whose version is loaded; if it cannot run them, the requested one gives the reason."""
        decoding = self._version_of(rows[0].decoded_by)
        version = decoding if served is None else self._version_of(served)
        return self._cut(version if version.inputs == decoding.inputs else decoding, RowBatch(rows), range(len(rows)))

    def _without_expired(self, rows: Sequence[QueuedStep], fingerprint: bytes) -> Sequence[QueuedStep]:
        latest = time.monotonic() - self._timeout
        error = ServiceError(
            "overloaded",
            f"The model that wrote the stream's state, {fingerprint.hex()}, was not loaded before the deadline; "
            "nothing was applied.",
            fix="Send the same request again after a pause.",
        )
        expired = [row for row in rows if row.received <= latest]
        self._reject_rows(expired, error)
        self.requests.count_answered(len(expired), _input_bytes(expired))
        return [row for row in rows if row.received > latest]

    def _reject_rows(self, rows: Iterable[QueuedStep], error: ServiceError) -> None:
        """Reply with an error to rows that were handed over, and are not run; release their streams."""
        for row in rows:
            row.reject(error)
            self.queue.release([row.name])


def _input_bytes(rows: Iterable[QueuedStep]) -> int:
    return sum([row.timestep.length * row.decoded_by.timestep_bytes for row in rows])
