"""`BatchPipeline`: one batch from the queue to its replies: load the records, decide, run the model, commit, reply.

Rows whose record was changed by another writer meanwhile are attempted again with the record that the store returned;
all others are answered in one attempt.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from model_export.manifest import Array
from service.engine.limits import Reservation
from service.engine.protocol.decide import Decision, decide
from service.engine.stepping.committer import BatchCommitter
from service.engine.stepping.model_runner import ModelRunner, RunResult
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import RecordCache
from service.engine.stepping.record_loader import RecordLoader
from service.engine.stepping.replies import Replies, Reroute, failed
from service.errors import OutcomeUnknownError, ServiceError, wrong_state_size
from service.store.record_arrays import read_headers
from service.types import ENDS, STARTS

if TYPE_CHECKING:
    from service.engine.limits import StreamQuota
    from service.engine.observer import EngineObserver
    from service.engine.watch.interests import InterestTable
    from service.models.registry import ServedModel
    from service.store.state_store import StateStore

_log = logging.getLogger(__name__)


class BatchPipeline:
    """Processes batches of one model version.

    The rows of a batch are of different streams, equally long, and return the same of their predictions.
    """

    def __init__(
        self,
        served: ServedModel,
        store: StateStore,
        cache: RecordCache,
        observer: EngineObserver,
        interests: InterestTable,
        *,
        runner: ModelRunner,
        timeout: float,
        reroute: Reroute,
        answered: Callable[[int, int], None],
        quota: StreamQuota | None = None,
    ) -> None:
        """Build the parts that all batches share.

        Args:
            served: The model.
            store: Where the records are.
            cache: The worker's records of this model version.
            observer: Counts the work.
            interests: Which commits are published.
            runner: Runs the model.
            timeout: Seconds from receipt to reply.
            reroute: Submits a row to the version that its stream's record belongs to; False: that version is not there.
            answered: Called with how many rows were answered, and how many bytes of inputs they had.
            quota: The streams that a tenant may have; None: no limit.
        """
        self._served = served
        self._model = served.step_model
        self._store = store
        self._cache = cache
        self._observer = observer
        self._interests = interests
        self._runner = runner
        self._timeout = timeout
        self._quota = quota
        self._time = asyncio.get_running_loop().time
        self._replies = Replies(served, cache, observer, reroute=reroute, answered=answered, time=self._time)
        self._loader = RecordLoader(store, cache, observer, self._replies, served.fingerprint)
        self._committer = BatchCommitter(served, store, cache, observer, interests=interests, replies=self._replies)

    async def process(self, batch: Sequence[QueuedStep]) -> None:
        """Answer every timestep of a batch; raises nothing, but ends when it is cancelled."""
        try:
            rows = batch
            while rows:
                oldest = self._oldest_received(rows)
                if oldest > self._time() - self._timeout:
                    rows = await self._attempt(rows, oldest + self._timeout)
                else:
                    rows = self._drop_expired(rows)
        except ServiceError as exc:
            self._replies.fail_unanswered(batch, exc)
        except asyncio.CancelledError:
            self._replies.fail_unanswered(
                batch, OutcomeUnknownError("The service ended before the step was confirmed.")
            )
            raise
        except Exception:  # noqa: BLE001 - one batch's fault must not end the worker; it is logged
            _log.exception("A batch of model %s failed", self._served.name)
            self._replies.fail_unanswered(batch, failed("unknown"))

    def _oldest_received(self, rows: Sequence[QueuedStep]) -> float:
        """Return when the first of the rows came."""
        return min([row.received for row in rows])

    def _stack_inputs(self, rows: Sequence[QueuedStep]) -> dict[str, Array]:
        return self._runner.inputs([row.timestep.inputs for row in rows], rows[0].timestep.length)

    def _drop_expired(self, rows: Sequence[QueuedStep]) -> Sequence[QueuedStep]:
        latest = self._time() - self._timeout
        for row in rows:
            if row.received <= latest:
                error = ServiceError(
                    "overloaded",
                    "The request waited for its turn until its deadline; nothing was applied.",
                    fix="Send the same request again after a pause.",
                )
                self._replies.reply(row, error)
        return [row for row in rows if not row.answered]

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        """Take rows as far as they get; return those that have to come round again."""
        heads, states, refreshed, fresh = await self._loader.load_records(rows, deadline)
        if fresh:
            if self._store.waits_for_replica:
                await self._loader.confirm_replicated(rows, deadline)
            run = [at for at, row in enumerate(rows) if not row.is_loaded or self._decide_row(row)]
            if not run:
                return []
            if len(run) < len(rows):
                rows, heads, states, refreshed = [rows[at] for at in run], heads[run], states[run], refreshed[run]
        if fresh or rows[0].timestep.lifecycle in STARTS:
            self._scatter_loaded(rows, heads, states)
        ran = await self._runner.run(self._stack_inputs(rows), states)
        return await self._commit_finite_rows(rows, heads, refreshed, ran, deadline)

    async def _commit_finite_rows(
        self, rows: Sequence[QueuedStep], heads: Array, refreshed: Array, ran: RunResult, deadline: float
    ) -> Sequence[QueuedStep]:
        """Refuse the rows that did not run well, commit the others; return those that have to come round again."""
        if ran.rows is not None:
            for at, error in ran.rejected.items():
                self._replies.reply(rows[at], error)
            rows, heads, refreshed = [rows[at] for at in ran.rows], heads[ran.rows], refreshed[ran.rows]
        if not rows:
            return []
        return await self._committer.commit(
            rows, heads, ran.outputs, ran.states, refreshed=refreshed, deadline=deadline
        )

    def _decide_row(self, row: QueuedStep) -> bool:
        """Decide on what the store has: True when the row is to be run; else it was answered."""
        if row.answered:
            return False
        view = row.record
        if view is not None and row.room is not None:
            row.room.end(begun=False)  # somebody else has begun it since
        try:
            if row.entry is not None:
                self._replies.replay_by_key(row, row.entry)
            elif decide(view, row.intent(self._served.fingerprint)) is Decision.REPLAY:
                assert view is not None
                self._replies.replay(row, view)
            elif (
                view is not None and len(view.state) != self._model.state_bytes and row.timestep.lifecycle not in STARTS
            ):
                raise wrong_state_size(len(view.state), self._model.state_bytes)
            else:
                if view is None and row.timestep.lifecycle not in ENDS:
                    self._take_room(row)
                return True
        except ServiceError as exc:
            if exc.code != "model_changed" or not self._try_reroute(row):
                self._replies.reply(row, exc)
        return False

    def _take_room(self, row: QueuedStep) -> None:
        """Take room for a stream from the tenant's quota, once however often the row comes round."""
        if self._quota is not None:
            row.room = row.room or Reservation(self._quota, row.timestep.key.tenant)
            row.room.take()

    def _try_reroute(self, row: QueuedStep) -> bool:
        """Hand a stream that another version began to that version, unless the request names one."""
        if row.timestep.version is not None or row.record is None:
            return False
        row.answered = self._replies.reroute(row, row.record.fingerprint)  # there, in this one's place
        return row.answered

    def _scatter_loaded(self, rows: Sequence[QueuedStep], heads: Array, states: Array) -> None:
        """Write what the store showed over the blank rows; what stays blank is a stream that begins."""
        begins = rows[0].timestep.lifecycle in STARTS
        seen = [at for at, row in enumerate(rows) if row.record is not None]
        if seen:
            heads[seen] = read_headers([rows[at].stored for at in seen])
        if begins:
            states[:] = np.frombuffer(self._model.initial_state, np.uint8)
        elif seen:
            states[seen] = [np.frombuffer(rows[at].record.state, np.uint8) for at in seen]  # type: ignore[union-attr]
        begin = [at for at, row in enumerate(rows) if row.is_loaded and row.record is None]
        if begin:
            heads["epoch"][begin] = [secrets.randbits(64) for _ in begin]
            heads["created_ms"][begin] = int(time.time() * 1000)
