"""`BatchedVersion`: a model version, and its timesteps from the request to the reply: queue, load, run, commit, reply.

Rows whose record another writer has changed are attempted again; all others get their response in one attempt.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np

from stepwell.engine.observer import follows_batches
from stepwell.engine.protocol.op_ids import OpIdHasher
from stepwell.engine.stepping.batch import Batch, BulkBatch, CoalescedBatch, RowBatch
from stepwell.engine.stepping.committer import Committer
from stepwell.engine.stepping.outcomes import BulkOutcomes, BulkResults
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.record_loader import RecordLoader, Records
from stepwell.engine.stepping.replies import Replies, failed
from stepwell.errors import OutcomeUnknownError, ServiceError
from stepwell.store import keys
from stepwell.store.record_arrays import HEADER_DTYPE
from stepwell.types import BulkTimesteps, ReplyCallback, Source, StreamHandle, Timestep

if TYPE_CHECKING:
    from stepwell.engine.observer import EngineObserver, Sampler
    from stepwell.engine.placing import Followed, Placement
    from stepwell.engine.publisher import Publisher
    from stepwell.engine.stepping.batcher import Batcher
    from stepwell.engine.stepping.model_runner import ModelRunner
    from stepwell.engine.stepping.record_cache import RecordCache
    from stepwell.engine.tenant_limits import StreamQuota
    from stepwell.models.joined import JoinedRun
    from stepwell.models.served import ServedModel
    from stepwell.store.source_ids import SourceIds
    from stepwell.store.state_store import StateStore
    from stepwell_export.runtime.manifest import Array

_log = logging.getLogger(__name__)
_MIN_COLUMNAR_ROWS: Final = 16  # a bulk request of fewer rows is cheaper in a batch with other timesteps
_MAX_COALESCED_ROWS: Final = 160  # so that the model runs the next batch while the store commits this one
_FIRST: Final = range(1)
_NOTHING: Final = np.empty(0)
_SAME_DEADLINE_S: Final = 0.05  # rows that were received within this time have the deadline of the last of them


@dataclass(frozen=True, slots=True)
class PipelineDeps:
    """What all batches of one model version share.

    Attributes:
        served: The model version.
        store: Loads and commits records.
        cache: The worker's recently used records of this model version.
        observer: Counts the work.
        publisher: Decides what is published with commits.
        runner: Runs the model.
        timeout: Seconds from receipt to response.
        hand_over: Gives a row to the version that its stream's record belongs to; False: that version is not there.
        quota: Limit on the streams of a tenant; None: no limit.
        placement: Which version steps a stream.
        committed: Called with the committed rows of joined versions; see `Placing.committed`.
        sampler: Sees committed batches; None: nothing does.
        source_ids: Writes the ids of sources before records have their digests.
    """

    served: ServedModel
    store: StateStore
    cache: RecordCache
    observer: EngineObserver
    publisher: Publisher
    runner: ModelRunner
    timeout: float
    hand_over: Callable[[QueuedStep, bytes], bool]
    quota: StreamQuota | None
    placement: Placement
    committed: Callable[[ServedModel, JoinedRun, Array, Followed | None], Sequence[int]]
    sampler: Sampler | None
    source_ids: SourceIds


class BatchedVersion:
    """A version of a model, or several joined ones, whose timesteps a batcher runs.

    Attributes:
        batcher: That of the model.
        served: The version.
        inputs: Name, type and shape of each input; versions with the same inputs accept the same timesteps.
        timestep_bytes: Bytes of the inputs of one timestep.
        cache: The worker's recently used records of this version.
        runner: Runs it.
        op_ids: Computes the op ids of what it has decoded.
        max_batch: Maximum number of rows in one run.
        coalesced: The open batches, to which single timesteps are added: without and with sources.
        in_use: Timesteps that it has decoded or runs, and that have no response yet.
    """

    def __init__(self, batcher: Batcher, deps: PipelineDeps, max_batch: int) -> None:
        self.batcher, self._queue, self._requests = batcher, batcher.queue, batcher.requests
        served = self.served = deps.served
        self.inputs = [(spec.name, spec.dtype, spec.row_shape) for spec in served.inputs]
        self.timestep_bytes = served.timestep_bytes
        self.cache, self.runner = deps.cache, deps.runner
        self.op_ids = OpIdHasher(served.manifest)
        self.max_batch = min(max_batch, served.manifest.batch.max)
        self.coalesced: list[CoalescedBatch | None] = [None, None]
        self.in_use = 0
        self._observer = deps.observer
        self._follows_batches = follows_batches(deps.observer)
        self._timeout = deps.timeout
        self._source_ids = deps.source_ids
        self._time = time.monotonic
        self._replies = Replies(deps)
        self._loader = RecordLoader(deps, self._replies)
        self._committer = Committer(deps, self._replies)

    # ---------------------------------------------------------------- requests

    def submit(self, timestep: Timestep, done: ReplyCallback, *, peek: bool = False) -> None:
        """Queue a timestep that it has decoded; `done` is called with the result, once.

        If the timestep is rejected, `done` is called before this returns.

        Args:
            timestep: The timestep, or chunk.
            done: Called with the prediction or the error.
            peek: Only the prediction is wanted; the timestep runs after those of its stream that wait here.
        """
        key, received = timestep.key, time.monotonic()
        if timestep.can_coalesce and not peek:
            stream = StreamHandle(
                key, timestep.name or keys.record_key(*key), timestep.version, timestep.transport, timestep.create
            )
            self.submit_single(stream, timestep.inputs, timestep.seq, timestep.after, timestep.source, done)
        elif (error := self._refusal(key.tenant, timestep.length, received, closely=peek)) is not None:
            done(error)
        elif peek:
            shape, op_id = (self.served, timestep.length, timestep.keep, "peek"), secrets.token_bytes(16)
            self._enqueue(
                QueuedStep(timestep, done, received, keys.record_key(*key), self.served, shape, op_id, dry_run=True)
            )
        else:
            self._enqueue(self._row(timestep, done, received))

    def submit_single(  # noqa: PLR0917 - called for each timestep: keywords would cost a tenth of it
        self,
        stream: StreamHandle,
        inputs: tuple[bytes, ...],
        seq: int | None,
        after: bytes | None,
        source: Source | None,
        done: ReplyCallback,
    ) -> None:
        """Queue a single timestep without an idempotency key; otherwise as `submit`.

        It joins the open coalesced batch, unless another one of its stream waits or runs.
        """
        received, queue, requests = time.monotonic(), self._queue, self._requests
        if (
            requests.draining
            or requests.rows >= requests.quick_limit
            or requests.nbytes >= requests.max_bytes
            or requests.rates is not None
        ) and (error := self._refusal(stream.key.tenant, 1, received)) is not None:
            done(error)
            return
        name, has_source = stream.name, source is not None
        if not queue.reserve(name):
            self._enqueue(self._row(stream.timestep(inputs, seq, after, source), done, received))
            return
        batch = self.coalesced[has_source]
        if batch is None:
            room = min(self.max_batch, _MAX_COALESCED_ROWS)
            batch = self.coalesced[has_source] = CoalescedBatch(self.served, room, has_source=has_source)
            queue.enqueue_batch(batch)
        batch.add((stream, name, seq, after, source, inputs, done, received))
        batch.room -= 1
        if not batch.room:
            self.coalesced[has_source] = None  # full: the next timestep opens another
        self.in_use += 1
        requests.rows += 1
        requests.nbytes += self.timestep_bytes
        if queue.rows >= self.batcher.wake_threshold:
            self.batcher.schedule()

    def submit_bulk(
        self,
        bulk: BulkTimesteps,
        done: Callable[[BulkOutcomes], None],
        faults: Mapping[int, ServiceError] = MappingProxyType({}),
    ) -> None:
        """Queue timesteps of many streams: as columns in as few batches as possible, the rest one by one.

        These are all rows if there is no room for all of them, as some may then be accepted, or if they have an
        idempotency key or `create: must`; a few rows that share a batch with other timesteps; and the rows of streams
        of which another timestep waits.

        Args:
            bulk: The request.
            done: Called once with the results of all rows.
            faults: Errors of single rows, which are their results, by index.
        """
        names, received = bulk.names, time.monotonic()
        rows: Sequence[int] = range(len(names))
        if faults:
            rows = [i for i in rows if i not in faults]
        parts = self._parts(bulk, rows, received)
        if len(parts) == 1 and len(parts[0]) == len(names):
            self._enqueue_columns(bulk, done, received)
            return
        results = BulkResults(len(names), done, faults)
        for part in parts:
            self._enqueue_columns(bulk.select(part), partial(results.receive_part, part), received)
        together = frozenset(chain.from_iterable(parts))
        for i in rows:
            if i not in together:
                self.submit(bulk.row(i), partial(results.receive, i))

    def _parts(self, bulk: BulkTimesteps, rows: Sequence[int], now: float) -> list[Sequence[int]]:
        """Return which rows of a bulk request become which batches."""
        requests, queue = self._requests, self._queue
        if (
            requests.draining
            or requests.rows + len(rows) > requests.quick_limit
            or requests.nbytes + len(rows) * bulk.length * self.timestep_bytes > requests.max_bytes
            or not rows
            or (len(rows) < _MIN_COLUMNAR_ROWS and not self.batcher.is_idle)  # a few share a batch with others
            or bulk.idempotency_key is not None
            or bulk.create == "must"
        ):
            return []
        names = bulk.names if len(rows) == len(bulk.names) else [bulk.names[i] for i in rows]
        if not queue.can_reserve(names):
            rows = [i for i, name in zip(rows, names, strict=True) if not queue.holds(name)]
        tenant, timesteps = bulk.keys[0].tenant, bulk.length * len(rows)
        if requests.rates is not None and not requests.rates.try_acquire(tenant, timesteps, now):
            return []
        return [rows[at : at + self.max_batch] for at in range(0, len(rows), self.max_batch)]

    def _refusal(self, tenant: str, timesteps: int, now: float, *, closely: bool = False) -> ServiceError | None:
        """Return why a request is not accepted; None: it is, and its timesteps count towards the tenant's rate.

        Args:
            tenant: The tenant.
            timesteps: T.
            now: On the monotonic clock.
            closely: The limits are checked even if few requests are open.
        """
        requests = self._requests
        try:
            if (
                closely
                or requests.draining
                or requests.rows >= requests.quick_limit
                or requests.nbytes >= requests.max_bytes
            ):
                requests.check()
                self.batcher.admission.check(self._queue.rows)
            requests.check_rate(tenant, timesteps)
        except ServiceError as exc:
            return exc
        return None

    def _row(self, timestep: Timestep, done: ReplyCallback, received: float) -> QueuedStep:
        """Return a timestep as an object of its own."""
        op_id = self.op_ids.for_timestep(timestep)
        name = timestep.name or (keys.record_key(*timestep.key) if timestep.lifecycle != "none" else op_id.hex())
        shape = (self.served, timestep.length, timestep.keep, timestep.lifecycle)
        return QueuedStep(timestep, done, received, name, self.served, shape, op_id)

    def _enqueue(self, row: QueuedStep) -> None:
        self._queue.enqueue(row)
        self._count_open(1, row.timestep.length)

    def _enqueue_columns(self, bulk: BulkTimesteps, done: Callable[[BulkOutcomes], None], received: float) -> None:
        self._queue.reserve_all(bulk.names)
        self._queue.enqueue_batch(BulkBatch(self.served, bulk, self.op_ids.for_bulk(bulk), received, done))
        self._count_open(len(bulk.names), bulk.length)

    def _count_open(self, rows: int, length: int) -> None:
        """Count rows of T timesteps that were queued, and have them run."""
        self.in_use += rows
        self._requests.rows += rows
        self._requests.nbytes += rows * length * self.timestep_bytes
        if self.batcher.wake_threshold < math.inf:
            self.batcher.schedule()

    # ---------------------------------------------------------------- batches

    def with_part(self, batch: Batch) -> tuple[BatchedVersion, Batch]:
        """Return a part of a batch with what runs it, which stays in use until its batch has been run."""
        self.in_use += len(batch)
        return self, batch

    async def process(self, batch: Batch) -> None:
        """Process a batch until every timestep has its response or is handed over. Raises only `CancelledError`."""
        if self._follows_batches:
            self._observer.batch_started(self.served.name, len(batch))
        rest = batch
        try:
            while True:
                oldest, youngest = rest.oldest_received, rest.youngest_received
                if oldest <= self._time() - self._timeout:
                    remaining = self._reject_expired(rest)
                else:
                    # Store and model have until the last row's deadline; a row whose own is earlier is answered then.
                    if youngest - oldest > _SAME_DEADLINE_S:
                        self._expire_at(rest, oldest + self._timeout)
                    deadline = youngest + self._timeout
                    if (source_ids := rest.source_ids) and (unwritten := self._source_ids.unwritten(source_ids)):
                        await self._source_ids.write(unwritten, deadline=deadline)
                    remaining = await self._attempt(rest, deadline)
                    if rest.expiry is not None:
                        rest.expiry.cancel()
                        remaining = [row for row in remaining if not row.answered]
                if not remaining:
                    return
                rest = RowBatch(remaining)
        except ServiceError as exc:
            self._replies.fail_unanswered(batch, exc)
        except asyncio.CancelledError:
            error = OutcomeUnknownError("The service ended before the commit was confirmed.")
            self._replies.fail_unanswered(batch, error)
            raise
        except Exception:  # noqa: BLE001 - a fault in one batch must not end the worker; it is logged
            _log.exception("A batch failed (model=%s, rows=%d)", self.served.name, len(batch))
            self._replies.fail_unanswered(batch, failed("unknown"))
        finally:
            if rest.expiry is not None:
                rest.expiry.cancel()
            if self._follows_batches:
                self._observer.batch_ended()

    def _expire_at(self, batch: Batch, deadline: float) -> None:
        """Call `_expire` at a deadline, unless the attempt has ended before."""
        batch.expiry = asyncio.get_running_loop().call_at(deadline, self._expire, batch)

    def _expire(self, batch: Batch) -> None:
        """Reject the rows whose deadline has passed during an attempt, and again at the next deadline."""
        if waiting := [row.received for row in self._reject_expired(batch)]:
            self._expire_at(batch, min(waiting) + self._timeout)

    def _reject_expired(self, batch: Batch) -> list[QueuedStep]:
        """Reply with errors to the rows whose deadline has passed, and return those that have no response."""
        latest_expired = self._time() - self._timeout
        for i, row in enumerate(batch):
            if row.received <= latest_expired and not row.answered:
                if i in batch.sent:
                    self.cache.drop(row.name)
                    error: ServiceError = OutcomeUnknownError("The store did not confirm the commit in time.")
                else:
                    error = ServiceError(
                        "overloaded",
                        "The request waited until its deadline; nothing was applied.",
                        fix="Send the same request again after a pause.",
                    )
                self._replies.reply(row, error)
        return batch.unanswered()

    async def _attempt(self, batch: Batch, deadline: float) -> list[QueuedStep]:
        """Load, decide, run and commit a batch, and reply to it; return the rows to be attempted again."""
        remaining: list[QueuedStep] = []
        if batch.lifecycle == "none":  # timesteps of no stream
            rows = len(batch)
            states = np.empty((rows, self.served.step_model.state_bytes), np.uint8)
            loaded = Records(batch, range(rows), np.zeros(rows, HEADER_DTYPE), states, np.zeros(rows))
        elif (
            len(batch.names) == 1
            and not self.served.parts
            and (one := self.cache.get_one(batch.names[0])) is not None
            and batch.continues(one)
        ):
            self._observer.cache_lookup(1, 0)
            # For one row, a call of NumPy takes longer than its work.
            loaded = Records(batch, _FIRST, _NOTHING, one.state, _NOTHING, None, one)
        else:
            loaded, remaining = await self._loader.load(batch, deadline)
        for records in loaded.of_equal_lengths() if batch.rows or not loaded.at else [loaded]:
            part, at = records, records.at
            inputs = records.inputs(self.inputs) if batch.rows else batch.inputs(at, self.inputs)
            run = await self.runner.run(inputs, records.states)
            if run.rows is not None:  # the model rejects some rows
                for j, error in run.rejected.items():
                    self._replies.reply(batch.row(at[j]), error)
                if not run.rows:
                    continue
                part = records.in_columns().select(run.rows)
                inputs = {name: array[run.rows] for name, array in inputs.items()}
            if batch.dry_run or batch.lifecycle == "none":
                self._replies.reply_uncommitted(part, run)
            else:
                remaining += await self._committer.commit(part, inputs, run, deadline)
        return remaining
