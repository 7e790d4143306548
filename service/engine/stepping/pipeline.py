"""`BatchPipeline`: the way of one batch: look, decide, run, commit, answer.

Rows whose commit found another guard come round again with the record that the store sent back; everything else is
answered at once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec.structs import replace

from model_export.manifest import Array
from service.engine.packing import all_true, pack_outputs, select_returned
from service.engine.protocol.decide import Decision, applies_without_store, check_idempotency_entry, decide
from service.engine.protocol.replay import replay_prediction
from service.engine.stepping.model_runner import ModelRunner, RunResult
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import EMPTY_SLOT, RecordCache
from service.errors import Applied, OutcomeUnknownError, ServiceError, not_a_record, wrong_state_size
from service.store.commits import DELETE, ColumnarCommits, Commit, CommitResults, Outcome
from service.store.record import HAD_KEY, HEADER_BYTES, IdempotencyEntry, Kind, Record, decode, extend_history
from service.store.record_arrays import encode_records, guards, read_headers
from service.store.state_store import checked
from service.types import ENDS, STARTS, BatchOutput, Prediction

if TYPE_CHECKING:
    from service.engine.limits import StreamQuota
    from service.engine.observer import EngineObserver
    from service.engine.watch.interests import InterestTable
    from service.models.registry import ServedModel
    from service.store.commits import CommitResult, Notification
    from service.store.state_store import StateStore

_log = logging.getLogger(__name__)

Reroute = Callable[[QueuedStep, bytes], bool]


class CommittedRows(NamedTuple):
    """Where the rows of a batch were brought, in columns.

    Attributes:
        names: Where the store has their streams.
        heads: `(rows,)` of `HEAD`.
        states: `(rows, bytes)` uint8.
        refreshed: When their expiry had been set, `(rows,)` float64.
        outputs: What is answered, `(rows, T', *row)` by name.
        chains: Their histories, 16 bytes each.
    """

    names: Sequence[str]
    heads: Array
    states: Array
    refreshed: Array
    outputs: Mapping[str, Array]
    chains: Sequence[bytes]

    def select(self, places: Sequence[int]) -> CommittedRows:
        """Return some of the rows."""
        return CommittedRows(
            [self.names[at] for at in places],
            self.heads[places],
            self.states[places],
            self.refreshed[places],
            {name: array[places] for name, array in self.outputs.items()},
            [self.chains[at] for at in places],
        )


class BatchPipeline:
    """Takes batches of one model version from the queue to their answers.

    The rows of a batch are of different streams, equally long, and keep the same of their predictions.
    """

    def __init__(
        self,
        served: ServedModel,
        store: StateStore,
        cache: RecordCache,
        observer: EngineObserver,
        audience: InterestTable,
        *,
        runner: ModelRunner,
        timeout: float,
        reroute: Reroute,
        answered: Callable[[int, int], None],
        quota: StreamQuota | None = None,
    ) -> None:
        """Put the parts together.

        Args:
            served: The model.
            store: Where records live.
            cache: The worker's hot records.
            observer: Counts the work.
            audience: Says what is told of commits.
            runner: Runs the model.
            timeout: Seconds from receipt to answer.
            reroute: Takes a row whose stream belongs to another version; False: there is none.
            answered: Told how many rows were answered, and how many bytes of inputs they had.
            quota: Of the streams that a tenant may have; None: as many as it likes.
        """
        self._served = served
        self._specs = served.manifest.answered
        self._model = served.step_model
        self._timestep_bytes = served.timestep_bytes
        self._store = store
        self._cache = cache
        self._observer = observer
        self._audience = audience
        self._runner = runner
        self._timeout = timeout
        self._reroute = reroute
        self._on_answered = answered
        self._quota = quota
        self._time = asyncio.get_running_loop().time

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
            self._fail_unanswered(batch, exc)
        except asyncio.CancelledError:
            self._fail_unanswered(batch, OutcomeUnknownError("The service ended before the step was confirmed."))
            raise
        except Exception:  # noqa: BLE001 - one batch's fault must not end the worker; it is logged
            _log.exception("A batch of model %s failed", self._served.name)
            self._fail_unanswered(batch, failed("unknown"))

    def _fail_unanswered(self, batch: Sequence[QueuedStep], error: ServiceError) -> None:
        for row in batch:
            if not row.answered:
                if error.applied != "no":
                    self._cache.drop(row.name)
                self._reply(row, error)

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
                self._reply(row, error)
        return [row for row in rows if not row.answered]

    async def _attempt(self, rows: Sequence[QueuedStep], deadline: float) -> Sequence[QueuedStep]:
        """Take rows as far as they get; return those that have to come round again."""
        heads, states, refreshed, fresh = await self._load_records(rows, deadline)
        if fresh:
            if self._store.waits_for_replica:
                await self._confirm_replicated(rows, deadline)
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
                self._reply(rows[at], error)
            rows, heads, refreshed = [rows[at] for at in ran.rows], heads[ran.rows], refreshed[ran.rows]
        if not rows:
            return []
        return await self._commit(rows, heads, ran.outputs, ran.states, refreshed=refreshed, deadline=deadline)

    # ---------------------------------------------------------------- looking and deciding

    async def _load_records(self, rows: Sequence[QueuedStep], deadline: float) -> tuple[Array, Array, Array, bool]:
        """See every row's stream.

        Returns:
            Headers, states and refreshes of the cached ones, blank ones of the others; and whether there are others,
            which were read from the store.

        A cached record that does not surely let its row apply is as good as none: only the store may refuse or
        replay. So a record that another worker moved on is mostly noticed here, and costs a read, not a conflict.
        """
        misses = 0
        comes_after = np.array([row.expected_step for row in rows], np.int64)
        while True:
            slots = self._cache.slots_for([row.name for row in rows])
            fresh = [at for at, row in enumerate(rows) if row.is_loaded]
            if fresh:
                slots[fresh] = EMPTY_SLOT
            heads = self._cache.headers(slots)
            sure = heads["step"].view(np.int64) == comes_after  # unsigned ones would be compared as floats
            sure &= slots != EMPTY_SLOT
            unread = [] if all_true(sure) else self._rows_to_load(rows, heads, slots, ~sure)
            if not unread:
                self._observer.cache_lookup(len(rows) - misses, misses)
                # All is copied now: what is answered next may bring in a new model, which shares the cache's memory.
                return heads, self._cache.states(slots), self._cache.expiry_set_at(slots), bool(fresh)
            misses += len(unread)
            await self._load_rows(unread, deadline)  # meanwhile other batches may take slots: look again

    @staticmethod
    def _rows_to_load(rows: Sequence[QueuedStep], heads: Array, slots: Array, doubtful: Array) -> list[QueuedStep]:
        """Return those of the doubtful rows that have to be read: their steps alone did not say that they apply."""
        places = np.flatnonzero(doubtful)
        parts = (slots[places], heads["step"][places], heads["chain"][places])
        cached = zip(places.tolist(), *(part.tolist() for part in parts), strict=True)
        return [
            rows[at]
            for at, slot, step, chain in cached
            if not rows[at].is_loaded and not (slot and applies_without_store(step, chain, rows[at].timestep))
        ]

    async def _load_rows(self, rows: Sequence[QueuedStep], deadline: float, *, exact: bool = False) -> None:
        keyed = [row for row in rows if row.timestep.idempotency_key is not None or row.timestep.lifecycle == "last"]
        began = time.perf_counter()
        found = await self._store.load_with_errors(
            [row.name for row in rows] + [str(row.entry_key) for row in keyed], deadline=deadline, exact=exact
        )
        self._observer.store_latency("load", time.perf_counter() - began)
        for row, answer in zip(rows, found, strict=False):
            try:
                stored = checked(answer)
                row.set_stored(stored, None if stored is None else decode(stored))
            except ServiceError as exc:  # a bad record stops its own stream only
                row.set_stored(None, None)
                self._reply(row, exc)
        for row, entry in zip(keyed, found[len(rows) :], strict=True):
            try:
                if (stored := checked(entry)) is not None:
                    row.set_idempotency_entry(IdempotencyEntry.decode(stored))
            except ServiceError as exc:
                self._reply(row, exc)

    async def _confirm_replicated(self, rows: Sequence[QueuedStep], deadline: float) -> None:
        """Wait until a replica has what retries are answered from: their answer promises what the first one did."""
        while doubtful := [row for row in rows if row.is_loaded and not row.answered and self._is_replay(row)]:
            confirmations = [
                self._store.replica_probe(row.name, row.stored, None if row.entry is None else row.entry_key)
                for row in doubtful
            ]
            answers = await self._store.commit(confirmations, deadline=deadline)
            for at, row in enumerate(doubtful):
                try:
                    answer = answers[at]
                    row.confirmed = answer.outcome in (Outcome.DUPLICATE, Outcome.KEY_REPLAY)
                    if not row.confirmed:  # it moved on meanwhile
                        row.set_stored(answer.stored, None if answer.stored is None else decode(answer.stored))
                except ServiceError as exc:
                    self._reply(row, exc)

    def _is_replay(self, row: QueuedStep) -> bool:
        """Whether what was read, and not confirmed yet, shows that the row had been applied."""
        if row.confirmed:
            return False
        try:
            intent = row.intent(self._served.fingerprint)
            return row.entry is not None or decide(row.record, intent) is Decision.REPLAY
        except ServiceError as exc:
            return exc.applied == "yes"

    def _decide_row(self, row: QueuedStep) -> bool:
        """Decide on what the store has: True when the row is to be run; else it was answered."""
        if row.answered:
            return False
        view = row.record
        if view is not None:
            self._return_room(row, begun=False)  # somebody else has begun it since
        try:
            if row.entry is not None:
                self._replay_by_key(row, row.entry)
            elif decide(view, row.intent(self._served.fingerprint)) is Decision.REPLAY:
                assert view is not None
                self._replay(row, view)
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
                self._reply(row, exc)
        return False

    def _take_room(self, row: QueuedStep) -> None:
        if self._quota is not None and not row.holds_room:
            self._quota.check(row.timestep.key.tenant)
            row.holds_room = True

    def _return_room(self, row: QueuedStep, *, begun: bool) -> None:
        """Say what became of the stream for which a row took room, if it did."""
        if self._quota is not None and row.holds_room:
            row.holds_room = False
            (self._quota.confirm if begun else self._quota.release)(row.timestep.key.tenant)

    def _try_reroute(self, row: QueuedStep) -> bool:
        """Hand a stream that another version began to that version, unless the request names one."""
        if row.timestep.version is not None or row.record is None:
            return False
        row.answered = self._reroute(row, row.record.fingerprint)  # there, in this one's place
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

    # ---------------------------------------------------------------- committing

    async def _commit(
        self,
        rows: Sequence[QueuedStep],
        heads: Array,
        outputs: Mapping[str, Array],
        states: Array,
        *,
        refreshed: Array,
        deadline: float,
    ) -> list[QueuedStep]:
        """Write the records that follow on `headers`, answer the rows that were applied, return those that were not."""
        names = [row.name for row in rows]
        outputs = select_returned(rows[0].timestep.keep, outputs)
        packed = pack_outputs(self._specs, outputs, len(rows))
        plain = ColumnarCommits(names, HEADER_BYTES + packed.shape[1] + states.shape[1])
        plain.guards[:] = guards(heads)
        if (life := rows[0].timestep.lifecycle) in STARTS:
            self._reset_headers(rows, heads)
        keyed = [at for at, row in enumerate(rows) if row.timestep.idempotency_key is not None]
        chains = self._advance_headers([row.op_id for row in rows], rows[0].timestep.length, heads, keyed)
        encode_records(plain.records, heads, packed, states)
        begun = [at for at, row in enumerate(rows) if row.is_loaded and row.record is None]
        commits: Sequence[Commit] = plain
        if begun or keyed or life in ENDS:
            commits = changed = [*plain]
            for at in begun:
                changed[at] = changed[at]._replace(expect=b"")
            if life in ENDS:
                changed[:] = [commit._replace(record=DELETE) for commit in changed]
            for at in range(len(rows)) if life == "last" else keyed:
                changed[at] = _with_entry(changed[at], rows[at], heads[at], packed[at].tobytes())
        tellings: Sequence[Notification] = ()
        if self._audience.has_interest(self._served.name):
            asked = [row.timestep for row in rows]
            tellings = self._audience.notifications_for(
                asked, self._served.inputs, outputs, heads["step"].tolist(), chains
            )
        began = time.perf_counter()
        answers = await self._store.commit(
            commits, deadline=deadline, refreshed=float(refreshed.min()), tellings=tellings
        )
        self._observer.store_latency("commit", time.perf_counter() - began)
        return self._handle_commit_results(
            rows, CommittedRows(names, heads, states, refreshed, outputs, chains), begun, answers
        )

    def _handle_commit_results(
        self, rows: Sequence[QueuedStep], moved: CommittedRows, begun: list[int], answers: CommitResults
    ) -> list[QueuedStep]:
        """Answer the rows that were applied, and return those that have to come round again."""
        if others := answers.not_applied:
            done = [at for at in range(len(rows)) if at not in others]
            again = [
                rows[at] for at, answer in others.items() if self._handle_conflict(rows[at], answer, moved.heads[at])
            ]
            self._observer.conflicts(len(again))
            rows, moved = [rows[at] for at in done], moved.select(done)
            begun = [done.index(at) for at in begun if at not in others]
        else:
            again = []
        if rows:
            if rows[0].timestep.lifecycle in ENDS:
                for name in moved.names:
                    self._cache.drop(name)
            else:
                self._cache_committed(moved, answers)
            self._reply_committed(rows, BatchOutput(moved.outputs, moved.heads["step"].tolist(), moved.chains), begun)
        return again

    def _cache_committed(self, moved: CommittedRows, answers: CommitResults) -> None:
        """Keep what the store now holds."""
        live = moved.refreshed if answers.expiry_set_at is None else answers.expiry_set_at
        self._cache.put(moved.names, moved.heads, moved.states, live)

    def _reset_headers(self, rows: Sequence[QueuedStep], heads: Array) -> None:
        """Bring headers to where a reset would bring them; the history goes on, so no late request finds it again."""
        fingerprint = self._served.fingerprint
        chains = extend_history(heads["chain"].tolist(), Kind.RESET, [row.op_id for row in rows], fingerprint)
        heads["epoch"] = [secrets.randbits(64) for _ in rows]
        heads["step"] = 0
        heads["chain"] = np.frombuffer(b"".join(chains), "V16")
        heads["fingerprint"] = np.frombuffer(fingerprint, "V8")

    def _advance_headers(
        self, op_ids: Sequence[bytes], length: int, heads: Array, keyed: Sequence[int] = ()
    ) -> list[bytes]:
        """Bring headers to where the step brings them; return their histories. Some rows have an idempotency key."""
        chains = extend_history(heads["chain"].tolist(), Kind.STEP, op_ids, self._served.fingerprint)
        heads["step"] += length
        heads["length"] = length
        heads["flags"] = Kind.STEP
        if keyed:
            heads["flags"][keyed] = Kind.STEP | HAD_KEY
        heads["op_id"] = np.frombuffer(b"".join(op_ids), "V16")
        heads["chain"] = np.frombuffer(b"".join(chains), "V16")
        heads["updated_ms"] = int(time.time() * 1000)
        return chains

    def _handle_conflict(self, row: QueuedStep, answer: CommitResult, head: Array) -> bool:
        """Learn from a commit that was not applied now; True when the row is to be decided again."""
        self._cache.drop(row.name)
        try:
            if answer.outcome is Outcome.KEY_REPLAY and answer.stored is not None:
                self._replay_by_key(row, IdempotencyEntry.decode(answer.stored))
                return False
            if answer.outcome is Outcome.WRONG_TYPE:
                raise not_a_record()
            if answer.error is not None:
                raise answer.error
            current = None if answer.stored is None else decode(answer.stored)
            if answer.outcome is Outcome.DUPLICATE and current is not None:
                self._return_room(row, begun=True)
                self._replay(row, current)
                return False
        except ServiceError as exc:
            self._reply(row, exc)
            return False
        if row.timestep.lifecycle in ENDS:
            row.invalidate()  # where it is gone, the stream's last words tell whether it was this request
            return True
        before = int(head["step"]) - row.timestep.length
        if before and (current is None or (current.epoch == head["epoch"] and current.step < before)):
            self._observer.regressions(1)
        row.set_stored(answer.stored, current)
        return True

    # ---------------------------------------------------------------- answering

    def _reply_committed(self, rows: Sequence[QueuedStep], made: BatchOutput, begun: Sequence[int]) -> None:
        version, began = self._served.version, frozenset(begun)
        for at, row in enumerate(rows):
            row.answered = True
            if row.holds_room:
                self._return_room(row, begun=True)
            try:
                row.done(Prediction(made, at, False, at in began, version))
            except Exception:  # noqa: BLE001 - one waiter's fault must not fail the others; it is logged
                _log.exception("Taking an answer failed")
        self._on_answered(len(rows), len(rows) * rows[0].timestep.length * self._timestep_bytes)
        now = self._time()
        self._observer.replied(self._served.name, [now - row.received for row in rows])
        self._count_applied(rows)

    def _count_applied(self, rows: Sequence[QueuedStep]) -> None:
        transports = [row.timestep.transport for row in rows]
        for transport in set(transports):
            self._observer.steps_applied(self._served.name, transport, rows[0].timestep.length * transports.count(transport))

    def _replay_by_key(self, row: QueuedStep, entry: IdempotencyEntry) -> None:
        self._replay(row, check_idempotency_entry(entry, row.intent(self._served.fingerprint)))

    def _replay(self, row: QueuedStep, kept: Record | IdempotencyEntry) -> None:
        """Answer with what is stored, never with a recomputation of it, and read as the version that made it."""
        of_another = kept.fingerprint != self._served.fingerprint
        if of_another and self._reroute(row, kept.fingerprint):
            row.answered = True
            return
        packed = b"" if of_another else kept.outputs
        prediction = replay_prediction(self._served.manifest, row.timestep, packed, kept.step, kept.history_hash)
        self._observer.replays(1)
        self._reply(row, replace(prediction, version=self._served.version))

    def _reply(self, row: QueuedStep, result: Prediction | ServiceError) -> None:
        if row.answered:
            return
        self._return_room(row, begun=isinstance(result, ServiceError) and result.applied != "no")
        self._call_reply(row, result)
        self._on_answered(1, row.timestep.length * self._timestep_bytes)
        seconds = self._time() - row.received
        self._observer.replied(self._served.name, [seconds])
        if isinstance(result, ServiceError):
            self._observer.rejected(self._served.name, seconds)

    def _call_reply(self, row: QueuedStep, result: Prediction | ServiceError) -> None:
        row.answered = True
        try:
            row.done(result)
        except Exception:  # noqa: BLE001 - one waiter's fault must not fail the others; it is logged
            _log.exception("Taking an answer failed")


def failed(applied: Applied) -> ServiceError:
    """Return what a step is answered that failed for a reason that nobody foresaw."""
    return ServiceError(
        "internal", "The step failed for a reason of the server's own.", fix="Send it again.", applied=applied
    )


def _with_entry(commit: Commit, row: QueuedStep, head: Array, outputs: bytes) -> Commit:
    """Return a commit that also remembers what the request's idempotency key was answered."""
    step, epoch, chain = int(head["step"]), int(head["epoch"]), head["chain"].tobytes()
    fingerprint = head["fingerprint"].tobytes()
    entry = IdempotencyEntry(row.op_id, epoch, step, chain, row.timestep.length, outputs, fingerprint)
    return commit._replace(entry_key=row.entry_key, entry=entry.encode())
