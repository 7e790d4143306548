"""`BatchPipeline`: one batch from the queue to its replies: load the records, decide, run the model, commit, reply.

Rows whose record another writer has changed are attempted again; all others get their response in one attempt.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from stepwell.engine.packing import prediction_bytes
from stepwell.engine.protocol.decide import Decision, decide
from stepwell.engine.stepping.committer import BatchCommitter
from stepwell.engine.stepping.expiry import Expiry
from stepwell.engine.stepping.model_runner import ModelRunner, RunResult
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.stepping.record_cache import RecordCache
from stepwell.engine.stepping.record_loader import RecordLoader
from stepwell.engine.stepping.replies import Replies, failed
from stepwell.engine.stepping.responding import responding_versions
from stepwell.engine.tenant_limits import Reservation, StreamQuota
from stepwell.errors import OutcomeUnknownError, ServiceError, wrong_state_size
from stepwell.models.pair_state import PAIR_BYTES
from stepwell.releases.moves import Standing
from stepwell.releases.takeover import NoTranslationError, TakeOverError, VersionNotLoadedError
from stepwell.store.record_arrays import read_headers
from stepwell.types import ENDS, STARTS
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.observer import EngineObserver
    from stepwell.engine.stepping.samplers import Sampler
    from stepwell.engine.trials.comparison import TrialComparison
    from stepwell.engine.trials.plans import ReleasePlans
    from stepwell.engine.watch.interests import InterestTable
    from stepwell.engine.watch.refusals import RefusalLog
    from stepwell.models.served import ServedModel
    from stepwell.releases.moves import Move
    from stepwell.store.record import Record
    from stepwell.store.source_ids import SourceIds
    from stepwell.store.state_store import StateStore

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
        interests: Decides which commits are published.
        refusals: Notes which timesteps were refused.
        runner: Runs the model.
        timeout: Seconds from receipt to response.
        reroute: Submits a row to the version that its stream's record belongs to; False: that version is not there.
        changed_error: Returns the error for a row whose record was written by another version that does not run it.
        on_answered: Called with the number of rows that got a response, and the bytes of their inputs.
        quota: Limit on the streams of a tenant; None: no limit.
        plans: Where streams move by a release.
        comparison: Counts the committed timesteps of trials.
        sampler: Sees committed batches; None: nothing does.
        source_ids: Writes the ids of sources before records have their digests.
    """

    served: ServedModel
    store: StateStore
    cache: RecordCache
    observer: EngineObserver
    interests: InterestTable
    refusals: RefusalLog
    runner: ModelRunner
    timeout: float
    reroute: Callable[[QueuedStep, bytes], bool]
    changed_error: Callable[[QueuedStep, Record], ServiceError]
    on_answered: Callable[[int, int], None]
    quota: StreamQuota | None
    plans: ReleasePlans
    comparison: TrialComparison
    sampler: Sampler | None
    source_ids: SourceIds


class BatchPipeline:
    """Processes batches of one model version: rows of different streams, of one length, that return as much."""

    def __init__(self, deps: PipelineDeps) -> None:
        self._served = deps.served
        self._model = deps.served.step_model
        self._store = deps.store
        self._cache = deps.cache
        self._observer = deps.observer
        self._interests = deps.interests
        self._runner = deps.runner
        self._timeout = deps.timeout
        self._quota = deps.quota
        self._plans = deps.plans
        self._comparison = deps.comparison
        self._source_ids = deps.source_ids
        self._changed_error = deps.changed_error
        self._time = time.monotonic
        self._answer_bytes = prediction_bytes(deps.served.manifest.answered)
        self._replies = Replies(deps)
        self._loader = RecordLoader(deps, self._replies)
        self._committer = BatchCommitter(deps, self._replies)

    async def process(self, batch: Sequence[QueuedStep]) -> None:
        """Process a batch until every timestep has its response. Raises only `CancelledError`."""
        expiry: Expiry | None = None
        try:
            rows = batch
            while rows:
                oldest, youngest = self._received(rows)
                if oldest <= self._time() - self._timeout:
                    rows = self._drop_expired(rows)
                    continue
                # Store and model have until the last row's deadline; a row whose own is earlier gets its response then.
                if youngest - oldest > _SAME_DEADLINE_S:
                    expiry = self._expiry(rows, oldest)
                deadline = youngest + self._timeout
                if unwritten := self._source_ids.unwritten(self._source_ids_of(rows)):
                    await self._source_ids.write(unwritten, deadline=deadline)
                rows = await self._attempt(rows, deadline)
                if expiry is not None:
                    expiry.cancel()
                    rows = [row for row in rows if not row.answered]
        except ServiceError as exc:
            self._replies.fail_unanswered(batch, exc)
        except asyncio.CancelledError:
            error = OutcomeUnknownError("The service ended before the commit was confirmed.")
            self._replies.fail_unanswered(batch, error)
            raise
        except Exception:  # noqa: BLE001 - a fault in one batch must not end the worker; it is logged
            _log.exception("A batch failed (model=%s, rows=%d)", self._served.name, len(batch))
            self._replies.fail_unanswered(batch, failed("unknown"))
        finally:
            if expiry is not None:
                expiry.cancel()

    def _received(self, rows: Sequence[QueuedStep]) -> tuple[float, float]:
        """Return when the first and the last of these rows were received."""
        received = [row.received for row in rows]
        return min(received), max(received)

    def _is_sent(self, rows: Sequence[QueuedStep]) -> bool:
        """Whether the commit of these rows as a whole was sent, and the result is not known yet."""
        return False

    def _expiry(self, rows: Sequence[QueuedStep], oldest: float) -> Expiry:
        """Return a timer that replies to each row whose deadline passes during an attempt."""
        return Expiry(lambda: self._expire(rows), oldest + self._timeout)

    def _expire(self, rows: Sequence[QueuedStep]) -> float | None:
        """Reply with errors to the rows whose deadline has passed; return the next deadline, None if there is none."""
        latest_expired, are_sent = self._time() - self._timeout, self._is_sent(rows)
        for row in rows:
            if row.received <= latest_expired and not row.answered:
                if are_sent or row.is_sent:
                    self._cache.drop(row.name)
                    self._replies.reply(row, OutcomeUnknownError("The store did not confirm the commit in time."))
                else:
                    self._replies.reply(row, _expired())
        waiting = [row.received for row in rows if not row.answered]
        return min(waiting) + self._timeout if waiting else None

    def _source_ids_of(self, rows: Sequence[QueuedStep]) -> Sequence[str]:
        return [row.timestep.source.id for row in rows if row.timestep.source is not None]

    def _stack_inputs(self, rows: Sequence[QueuedStep]) -> dict[str, Array]:
        parts = [row.applied for row in rows]
        return self._runner.inputs([part.inputs for part in parts], parts[0].length)

    def _drop_expired(self, rows: Sequence[QueuedStep]) -> Sequence[QueuedStep]:
        latest_expired = self._time() - self._timeout
        for row in rows:
            if row.received <= latest_expired:
                self._replies.reply(row, _expired())
        return [row for row in rows if not row.answered]

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        """Load, decide, run and commit rows; return those to be attempted again."""
        if rows[0].timestep.lifecycle in STARTS and self._may_begin_elsewhere():
            for row in rows:
                self._cache.drop(row.name)
        headers, states, expiry_set_at, any_loaded = await self._loader.load_records(rows, deadline)
        remaining: list[QueuedStep] = []
        if any_loaded:
            if self._store.waits_for_replica:
                await self._loader.confirm_replicated(rows, deadline)
            to_run = [i for i, row in enumerate(rows) if not row.is_loaded or self._decide_row(row)]
            if len(to_run) < len(rows):
                remaining += await self._confirm_missing(rows, frozenset(to_run), deadline)
                if not to_run:
                    return remaining
                rows = [rows[i] for i in to_run]
                headers, states, expiry_set_at = headers[to_run], states[to_run], expiry_set_at[to_run]
        if any_loaded or rows[0].timestep.lifecycle in STARTS:
            self._scatter_loaded(rows, headers, states)
        for part in _of_equal_lengths(rows):
            one = (rows, headers, states, expiry_set_at)
            if len(part) < len(rows):
                one = ([rows[i] for i in part], headers[part], states[part], expiry_set_at[part])
            remaining += await self._run_and_commit(*one, deadline)
        return remaining

    def _may_begin_elsewhere(self) -> bool:
        """Whether a stream that begins again may do so on another model; that is decided when its record is loaded."""
        return self._served.halves is not None or self._plans.plan(self._served.name) is not None

    async def _run_and_commit(
        self, rows: Sequence[QueuedStep], headers: Array, states: Array, expiry_set_at: Array, deadline: float
    ) -> Sequence[QueuedStep]:
        run = await self._runner.run(self._stack_inputs(rows), states)
        return await self._commit_finite_rows(rows, headers, states, expiry_set_at, run, deadline)

    async def _commit_finite_rows(  # noqa: PLR0917 - the columns of a batch
        self,
        rows: Sequence[QueuedStep],
        headers: Array,
        states: Array,
        expiry_set_at: Array,
        run: RunResult,
        deadline: float,
    ) -> Sequence[QueuedStep]:
        """Reply with errors to the rows that the runner rejected, commit the others; return those to attempt again.

        Args:
            rows: The rows that were run.
            headers: The headers of the records that they continue, `(rows,)` of `HEADER_DTYPE`.
            states: The packed states before the run, `(rows, bytes)` uint8.
            expiry_set_at: When each record's expiry was set, `(rows,)` float64.
            run: The result of the run.
            deadline: On the loop's clock.
        """
        if run.rows is not None:
            rows, headers, expiry_set_at = self._accepted(rows, run), headers[run.rows], expiry_set_at[run.rows]
            states = states[run.rows]
        if not rows:
            return []
        responding = responding_versions(self._served, rows, states, run.states, run.beside)
        return await self._committer.commit(
            rows, headers, run, responding=responding, expiry_set_at=expiry_set_at, deadline=deadline
        )

    def _accepted(self, rows: Sequence[QueuedStep], run: RunResult) -> Sequence[QueuedStep]:
        """Reply with errors to the rows that the runner rejected, and return the others."""
        for i, error in run.rejected.items():
            self._replies.reply(rows[i], error)
        return rows if run.rows is None else [rows[i] for i in run.rows]

    def _decide_row(self, row: QueuedStep) -> bool:
        """Decide a row by its loaded record: True: it is to be run; False: it has its response."""
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
            elif not self._place(row):
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

    async def _confirm_missing(
        self, rows: Sequence[QueuedStep], to_run: frozenset[int], deadline: float
    ) -> list[QueuedStep]:
        """Load the streams again whose rows are to be rejected because they are missing; return these rows.

        The command that loads a batch returns nothing for a value of another type, too.
        """
        missing = [row for i, row in enumerate(rows) if i not in to_run and not row.answered]
        if missing:
            await self._loader.load_rows(missing, deadline, exact=True)
        return [row for row in missing if not row.answered]

    def _place(self, row: QueuedStep) -> bool:
        """Whether this model steps a row's stream now; the row of a stream that moves here gets the moved record.

        Otherwise the row is submitted to the model that does.

        Raises:
            ServiceError: `model_changed`: that model is not there, or the request names another version.
        """
        served, record, is_named = self._served, row.record, row.timestep.version is not None
        plan = None if is_named or row.cannot_move else self._plans.plan(served.name)
        if record is None or row.timestep.lifecycle in STARTS:
            if plan is None:
                return served.halves is None or not self._reroute(row, self._plans.default(served.name))
            assignment = plan.new_assignment(row.name)
            if (fingerprint := self._plans.fingerprint(served.name, assignment)) == served.fingerprint:
                row.standing = plan.new_standing(assignment)
                return True
            return not self._reroute(row, fingerprint)
        if plan is None and record.fingerprint == served.fingerprint:
            return True
        standing = Standing.of(record)
        if moves := [] if plan is None else plan.moves(standing, row.name):
            target = self._plans.fingerprint(served.name, moves[-1].assignment)
            if target != served.fingerprint:
                if self._reroute(row, target):
                    return False
            elif self._move(row, standing, record, moves):
                return True
            elif row.answered:  # it waits until the other version is loaded
                return False
        if row.leaves_trial and (plan := self._plans.plan(served.name)) is not None:
            row.standing = standing.left(plan.document.revision)
        if (fingerprint := self._plans.fingerprint(served.name, standing.assignment)) == served.fingerprint:
            return True
        may_reroute = not is_named or (standing.pair is not None and standing.responding == served.fingerprint)
        if may_reroute and self._reroute(row, fingerprint):
            return False
        raise self._changed_error(row, record)

    def _move(self, row: QueuedStep, standing: Standing, record: Record, moves: Sequence[Move]) -> bool:
        """Give a row the record of its stream after its moves to this model; False: they cannot be made."""
        try:
            row.record = self._plans.moved(self._served.name, record, standing, moves)
        except VersionNotLoadedError as exc:
            row.cannot_move = not self._reroute(row, exc.fingerprint)
            return False
        except NoTranslationError:
            row.cannot_move = True
            return False
        except TakeOverError:
            row.cannot_move = row.leaves_trial = True
            self._comparison.takeover_failed(self._served.name, moves[-1])
            return False
        row.standing, row.responded_before = moves[-1].standing, standing.responding
        return True

    def _reroute(self, row: QueuedStep, fingerprint: bytes) -> bool:
        """Submit a row to another model, which has the stream's record and replies; False: that model is not there."""
        row.answered = self._replies.reroute(row, fingerprint)
        self._cache.drop(row.name)
        return row.answered

    def _reserve_stream(self, row: QueuedStep) -> None:
        """Reserve a stream of the tenant's quota, once per row, however often the row is attempted."""
        if self._quota is not None:
            row.reservation = row.reservation or Reservation(self._quota, row.timestep.key.tenant)
            row.reservation.take()

    def _scatter_loaded(self, rows: Sequence[QueuedStep], headers: Array, states: Array) -> None:
        """Write the loaded records into the rows of uncached streams; rows of missing streams become new streams."""
        if existing := [i for i, row in enumerate(rows) if row.record is not None]:
            headers[existing] = read_headers([rows[i].stored for i in existing])
        if rows[0].timestep.lifecycle in STARTS:
            headers["moved"] = 0
            states[:] = np.frombuffer(self._model.initial_state, np.uint8)
        elif existing:
            states[existing] = [np.frombuffer(rows[i].record.state, np.uint8) for i in existing]  # type: ignore[union-attr]
        if created := [i for i, row in enumerate(rows) if row.is_loaded and row.record is None]:
            headers["epoch"][created] = [secrets.randbits(64) for _ in created]
            headers["created_ms"][created] = int(time.time() * 1000)
        for i, row in enumerate(rows):
            if row.standing is not None:
                headers["moved"][i] = row.standing.moved
                headers["fingerprint"][i] = np.void(self._served.fingerprint)
                if row.standing.pair is not None:
                    states[i, -PAIR_BYTES:] = np.frombuffer(row.standing.pair.encode(), np.uint8)


def _expired() -> ServiceError:
    return ServiceError(
        "overloaded",
        "The request waited until its deadline; nothing was applied.",
        fix="Send the same request again after a pause.",
    )


def _of_equal_lengths(rows: Sequence[QueuedStep]) -> Sequence[Sequence[int]]:
    """Return the indices of the rows that can be run together; a row that skips timesteps is run alone."""
    together = [i for i, row in enumerate(rows) if not row.skipped]
    if len(together) == len(rows):
        return [together]
    alone = [[i] for i, row in enumerate(rows) if row.skipped]
    return [together, *alone] if together else alone
