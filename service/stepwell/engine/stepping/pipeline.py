"""`BatchedVersion`: a model version, and a batch of it from the queue to its replies: load, decide, run, commit, reply.

Rows whose record another writer has changed are attempted again; all others get their response in one attempt.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stepwell.engine.observer import follows_batches
from stepwell.engine.protocol.op_ids import OpIdHasher
from stepwell.engine.stepping.batch import Batch, RowBatch
from stepwell.engine.stepping.committer import Committer
from stepwell.engine.stepping.record_loader import RecordLoader, Records
from stepwell.engine.stepping.replies import Replies, failed
from stepwell.errors import OutcomeUnknownError, ServiceError
from stepwell.store.record_arrays import HEADER_DTYPE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepwell.engine.observer import EngineObserver, Sampler
    from stepwell.engine.placing import Followed, Placement
    from stepwell.engine.publisher import Publisher
    from stepwell.engine.stepping.batch import CoalescedBatch
    from stepwell.engine.stepping.batcher import Batcher
    from stepwell.engine.stepping.model_runner import ModelRunner
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.engine.stepping.record_cache import RecordCache
    from stepwell.engine.tenant_limits import StreamQuota
    from stepwell.models.joined import JoinedRun
    from stepwell.models.served import ServedModel
    from stepwell.store.source_ids import SourceIds
    from stepwell.store.state_store import StateStore
    from stepwell_export.runtime.manifest import Array

_log = logging.getLogger(__name__)
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
        on_answered: Called with the number of rows that got a response, and the bytes of their inputs.
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
    on_answered: Callable[[int, int], None]
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
        self.batcher = batcher
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

    def with_part(self, batch: Batch) -> tuple[BatchedVersion, Batch]:
        """Return a part of a batch with what runs it, which stays in use until its batch has been run."""
        self.in_use += len(batch)
        return self, batch

    async def process(self, batch: Batch) -> None:
        """Process a batch until every timestep has its response or is handed over. Raises only `CancelledError`."""
        if self._follows_batches:
            self._observer.batch_started(self.served.name, len(batch))
        expiry: _Expiry | None = None
        rest = batch
        try:
            while True:
                oldest, youngest = rest.oldest_received, rest.youngest_received
                if oldest <= self._time() - self._timeout:
                    remaining = self._drop_expired(rest)
                else:
                    # Store and model have until the last row's deadline; a row whose own is earlier is answered then.
                    if youngest - oldest > _SAME_DEADLINE_S:
                        expiry = self._expiry(rest, oldest)
                    deadline = youngest + self._timeout
                    if (source_ids := rest.source_ids) and (unwritten := self._source_ids.unwritten(source_ids)):
                        await self._source_ids.write(unwritten, deadline=deadline)
                    remaining = await self._attempt(rest, deadline)
                    if expiry is not None:
                        expiry.cancel()
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
            if expiry is not None:
                expiry.cancel()
            if self._follows_batches:
                self._observer.batch_ended()

    def _expiry(self, batch: Batch, oldest: float) -> _Expiry:
        """Return a timer that replies to each row whose deadline passes during an attempt."""
        return _Expiry(lambda: self._expire(batch), oldest + self._timeout)

    def _expire(self, batch: Batch) -> float | None:
        """Reply with errors to the rows whose deadline has passed; return the next deadline, None if there is none."""
        latest_expired = self._time() - self._timeout
        for i, row in enumerate(batch):
            if row.received <= latest_expired and not row.answered:
                if i in batch.sent:
                    self.cache.drop(row.name)
                    self._replies.reply(row, OutcomeUnknownError("The store did not confirm the commit in time."))
                else:
                    self._replies.reply(row, _expired())
        waiting = [row.received for row in batch.unanswered()]
        return min(waiting) + self._timeout if waiting else None

    def _drop_expired(self, batch: Batch) -> list[QueuedStep]:
        latest_expired = self._time() - self._timeout
        for row in batch:
            if row.received <= latest_expired:
                self._replies.reply(row, _expired())
        return batch.unanswered()

    async def _attempt(self, batch: Batch, deadline: float) -> list[QueuedStep]:
        """Load, decide, run and commit a batch, and reply to it; return the rows to be attempted again."""
        remaining: list[QueuedStep] = []
        if batch.lifecycle == "none":  # timesteps of no stream
            rows = len(batch)
            states = np.empty((rows, self.served.step_model.state_bytes), np.uint8)
            loaded = Records(batch, range(rows), np.zeros(rows, HEADER_DTYPE), states, np.zeros(rows))
        else:
            loaded, remaining = await self._loader.load(batch, deadline)
        for records in loaded.of_equal_lengths() if batch.rows or not loaded.at else [loaded]:
            part, inputs = records, records.inputs(self.inputs)
            run = await self.runner.run(inputs, records.states)
            if run.rows is not None:  # the model rejects some rows
                for j, error in run.rejected.items():
                    self._replies.reply(batch.row(records.at[j]), error)
                if not run.rows:
                    continue
                part = records.in_columns().select(run.rows)
                inputs = {name: array[run.rows] for name, array in inputs.items()}
            if batch.dry_run or batch.lifecycle == "none":
                self._replies.reply_uncommitted(part, run)
            else:
                remaining += await self._committer.commit(part, inputs, run, deadline)
        return remaining


class _Expiry:
    """Calls a function at the first deadline, and again at each deadline that it returns."""

    def __init__(self, expire: Callable[[], float | None], deadline: float) -> None:
        """Start the timer; needs a running event loop.

        Args:
            expire: Called at the deadline; returns the next one, None if there is none.
            deadline: The first one, on the monotonic clock.
        """
        self._expire = expire
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(deadline, self._call)

    def cancel(self) -> None:
        """End the timer."""
        self._timer.cancel()

    def _call(self) -> None:
        if (deadline := self._expire()) is not None:
            self._timer = self._loop.call_at(deadline, self._call)


def _expired() -> ServiceError:
    return ServiceError(
        "overloaded",
        "The request waited until its deadline; nothing was applied.",
        fix="Send the same request again after a pause.",
    )
