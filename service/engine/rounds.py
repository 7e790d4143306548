"""`Rounds`: the way of one batch: load, decide, run, commit, answer.

Rows whose commit found another guard come round again with the record that the store sent back; everything else is
answered at once.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from model_export.manifest import Array
from service.engine.batch import pack_outputs, prediction_bytes, unpack_outputs
from service.engine.decide import Verdict, decide, replay_of_key
from service.engine.pending import Pending
from service.engine.runner import ModelRunner
from service.engine.types import Prediction, Timestep
from service.errors import ServiceError
from service.store.record import HAD_KEY, NO_CHAIN, KeyEntry, Kind, Record, decode, next_chain
from service.store.redis import Commit, Outcome

if TYPE_CHECKING:
    from service.engine.cache import StateCache
    from service.engine.models import ServedModel
    from service.engine.observer import EngineObserver
    from service.store.redis import Committed, StateStore

_log = logging.getLogger(__name__)

Reroute = Callable[[Pending, bytes], bool]
Announce = Callable[["ServedModel", Sequence[tuple[Timestep, Prediction]]], None]


class Rounds:
    """Takes batches of one model version from the queue to their answers."""

    def __init__(
        self,
        served: ServedModel,
        store: StateStore,
        cache: StateCache,
        observer: EngineObserver,
        *,
        runner: ModelRunner,
        reroute: Reroute,
    ) -> None:
        """Put the parts together.

        Args:
            served: The model.
            store: Where records live.
            cache: The worker's hot records.
            observer: Counts the work.
            runner: Runs the model.
            reroute: Takes a row whose stream belongs to another version; False: there is none.
        """
        self.announce: Announce | None = None
        self._served = served
        self._model = served.step_model
        self._store = store
        self._cache = cache
        self._observer = observer
        self._runner = runner
        self._reroute = reroute
        self._output_bytes = prediction_bytes(served.manifest.answered)

    async def take(self, batch: Sequence[Pending]) -> None:
        """Answer every timestep of a batch; never raises."""
        try:
            await self._advance(batch)
        except ServiceError as exc:
            self._answer_rest(batch, exc)
        except Exception:  # noqa: BLE001 - one batch's fault must not end the worker; it is logged
            _log.exception("A batch of model %s failed", self._served.name)
            error = ServiceError(
                "internal", "The step failed for a reason of the server's own.", fix="Send it again.", applied="unknown"
            )
            self._answer_rest(batch, error)

    def _answer_rest(self, batch: Sequence[Pending], error: ServiceError) -> None:
        for pending in batch:
            if not pending.answered:
                if error.applied != "no":
                    self._cache.drop(pending.queue_key)
                self._answer(pending, error)

    async def _advance(self, batch: Sequence[Pending]) -> None:
        loop = asyncio.get_running_loop()
        rows = self._in_time(batch, loop.time())
        while rows:
            deadline = min(pending.deadline for pending in rows)
            await self._see(rows, deadline)
            again: list[Pending] = []
            run = [pending for pending in rows if self._may_run(pending, again)]
            if run:
                again += await self._run_and_commit(run, deadline)
            rows = self._in_time(again, loop.time())

    def _in_time(self, rows: Sequence[Pending], now: float) -> list[Pending]:
        late = [pending for pending in rows if pending.deadline <= now]
        for pending in late:
            self._answer(
                pending,
                ServiceError(
                    "overloaded",
                    "The request waited for its turn until its deadline; nothing was applied.",
                    fix="Send the same request again after a pause.",
                ),
            )
        return [pending for pending in rows if pending.deadline > now] if late else list(rows)

    async def _see(self, rows: Sequence[Pending], deadline: float) -> None:
        """Bring each row a view of its stream: the cached record, else the store's."""
        unread: list[Pending] = []
        hits = 0
        for pending in rows:
            if pending.seen:
                continue
            skip = pending.must_read or pending.timestep.idempotency_key is not None
            cached = None if skip else self._cache.get(pending.queue_key)
            if cached is None:
                unread.append(pending)
            else:
                pending.view, pending.seen = cached, True
                hits += 1
        self._observer.cache(hits, len(unread))
        if not unread:
            return
        keyed = [pending for pending in unread if pending.entry_key is not None]
        names = [pending.record_key for pending in unread] + [str(pending.entry_key) for pending in keyed]
        began = time.perf_counter()
        found = await self._store.load(names, deadline=deadline)
        self._observer.store("load", time.perf_counter() - began)
        for pending, raw in zip(unread, found, strict=False):
            self._look(pending, raw)
        for pending, raw in zip(keyed, found[len(unread) :], strict=True):
            if raw is not None:
                pending.entry = KeyEntry.decode(raw)

    def _look(self, pending: Pending, raw: bytes | None) -> None:
        """Take a record from the store as the truth; a bad one answers its row."""
        pending.seen = pending.fresh = True
        try:
            pending.view = None if raw is None else decode(raw)
        except ServiceError as exc:
            self._answer(pending, exc)

    def _may_run(self, pending: Pending, again: list[Pending]) -> bool:
        """Decide a row: True when it is to be run; else it was answered, or joins `again` for a fresh look."""
        if pending.answered:
            return False
        try:
            if pending.entry is not None:
                self._replay_key(pending, pending.entry)
                return False
            if decide(pending.view, pending.intent) is Verdict.APPLY:
                return self._fits(pending)
            if pending.fresh and pending.view is not None:
                self._replay(pending, pending.view.outputs, pending.view.step, pending.view.chain)
                return False
        except ServiceError as exc:
            if pending.fresh:
                if exc.code != "model_changed" or not self._reroutable(pending):
                    self._answer(pending, exc)
                return False
        # A cached view never refuses or replays: only the store may say no.
        pending.view, pending.seen, pending.must_read = None, False, True
        again.append(pending)
        return False

    def _fits(self, pending: Pending) -> bool:
        view = pending.view
        if view is None or len(view.state) == self._model.state_bytes:
            return True
        self._answer(
            pending,
            ServiceError(
                "state_corrupt",
                f"The stored state has {len(view.state)} bytes; the model's has {self._model.state_bytes}.",
                fix="Reset or delete this stream.",
            ),
        )
        return False

    def _reroutable(self, pending: Pending) -> bool:
        """Hand a stream that another version began to that version, unless the request names one."""
        if pending.timestep.version is not None or pending.view is None:
            return False
        pending.answered = self._reroute(pending, pending.view.fingerprint)  # there, in this one's place
        return pending.answered

    async def _run_and_commit(self, rows: Sequence[Pending], deadline: float) -> list[Pending]:
        initial = self._model.initial_state
        ran = await self._runner.run(
            [pending.timestep for pending in rows],
            [initial if pending.view is None else pending.view.state for pending in rows],
        )
        for row, error in ran.refused.items():
            self._answer(rows[row], error)
        rows = [rows[row] for row in ran.rows]
        if not rows:
            return []
        records = self._records(rows, ran.outputs, ran.states)
        commits = [self._commit_of(pending, record) for pending, record in zip(rows, records, strict=True)]
        began = time.perf_counter()
        answers = await self._store.commit(commits, deadline=deadline)
        self._observer.store("commit", time.perf_counter() - began)
        again: list[Pending] = []
        applied: list[tuple[Timestep, Prediction]] = []
        for row, (pending, record, answer) in enumerate(zip(rows, records, answers, strict=True)):
            if answer.outcome is Outcome.APPLIED:
                self._cache.put(pending.queue_key, record)
                prediction = Prediction(
                    _kept(pending.timestep, ran.outputs, row), record.step, record.chain, created=pending.view is None
                )
                applied.append((pending.timestep, prediction))
                self._answer(pending, prediction)
            elif self._conflicted(pending, answer):
                again.append(pending)
        self._count(applied)
        if again:
            self._observer.conflicts(len(again))
        if self.announce is not None and applied:
            self.announce(self._served, applied)
        return again

    # ---------------------------------------------------------------- committing

    def _records(
        self, rows: Sequence[Pending], outputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> list[Record]:
        packed = self._model.pack(states, rows=len(rows)).tobytes()
        predictions = pack_outputs(self._served.manifest, outputs)
        size, now = self._model.state_bytes, int(time.time() * 1000)
        fingerprint = self._served.fingerprint
        records: list[Record] = []
        for row, pending in enumerate(rows):
            view, intent, timestep = pending.view, pending.intent, pending.timestep
            flags = Kind.STEP | (HAD_KEY if timestep.idempotency_key is not None else 0)
            chain = NO_CHAIN if view is None else view.chain
            if timestep.keep == "all":
                kept = predictions[row].tobytes()
            else:
                kept = predictions[row, -1].tobytes() if timestep.keep == "last" else b""
            records.append(
                Record(
                    secrets.randbits(64) if view is None else view.epoch,
                    intent.length if view is None else view.step + intent.length,
                    intent.length,
                    flags,
                    intent.op_id,
                    next_chain(chain, Kind.STEP, intent.op_id, intent.digest, fingerprint),
                    fingerprint,
                    now,
                    now if view is None else view.created_ms,
                    kept,
                    packed[row * size : (row + 1) * size],
                )
            )
        return records

    def _commit_of(self, pending: Pending, record: Record) -> Commit:
        expect = b"" if pending.view is None else pending.view.guard
        if pending.timestep.idempotency_key is None:
            return Commit(pending.record_key, expect, record.encode())
        entry = KeyEntry(
            pending.intent.digest, record.epoch, record.step, record.chain, record.length, record.outputs
        )  # fmt: skip
        return Commit(pending.record_key, expect, record.encode(), pending.entry_key, entry.encode())

    def _conflicted(self, pending: Pending, answer: Committed) -> bool:
        """Learn from a commit that was not applied now; True when the row is to be decided again."""
        try:
            if answer.outcome is Outcome.KEY_KNOWN and answer.stored is not None:
                self._replay_key(pending, KeyEntry.decode(answer.stored))
                return False
            if answer.outcome is Outcome.FOREIGN:
                raise ServiceError(
                    "state_corrupt", "The stream's key holds something that is no record.", fix="Delete this stream."
                )
            current = None if answer.stored is None else decode(answer.stored)
        except ServiceError as exc:
            self._cache.drop(pending.queue_key)
            self._answer(pending, exc)
            return False
        before = pending.view
        if before is not None and (current is None or (current.epoch == before.epoch and current.step < before.step)):
            self._observer.regressions(1)
        if current is None:
            self._cache.drop(pending.queue_key)
        else:
            self._cache.put(pending.queue_key, current)
        if answer.outcome is Outcome.SAME and current is not None:
            self._replay(pending, current.outputs, current.step, current.chain)
            return False
        pending.view, pending.seen, pending.fresh = current, True, True
        return True

    # ---------------------------------------------------------------- answering

    def _replay_key(self, pending: Pending, entry: KeyEntry) -> None:
        known = replay_of_key(entry, pending.intent)
        self._replay(pending, known.outputs, known.step, known.chain)

    def _replay(self, pending: Pending, packed: bytes, step: int, chain: bytes) -> None:
        """Answer with what is stored, never with a recomputation of it."""
        timestep = pending.timestep
        outputs: dict[str, Array] = {}
        if timestep.keep != "none":
            rows = timestep.length if timestep.keep == "all" else 1
            if self._output_bytes and len(packed) < rows * self._output_bytes:
                self._answer(
                    pending,
                    ServiceError(
                        "seq_passed",
                        f"These timesteps were applied with fewer predictions kept; the stream stands at step {step}.",
                        fix="Treat it as done, and go on from `expected`.",
                        applied="yes",
                        step=step,
                        state_id=chain,
                        expected=step + 1,
                    ),
                )
                return
            outputs = unpack_outputs(self._served.manifest, packed)
            if timestep.keep == "last":
                outputs = {name: array[-1:] for name, array in outputs.items()}
        self._observer.replays(1)
        self._answer(pending, Prediction(outputs, step, chain, replayed=True))

    def _answer(self, pending: Pending, result: Prediction | ServiceError) -> None:
        if pending.answered:
            return
        pending.answered = True
        self._observer.answered(self._served.name, asyncio.get_running_loop().time() - pending.received)
        try:
            pending.done(result)
        except Exception:  # noqa: BLE001 - one waiter's fault must not fail the others; it is logged
            _log.exception("Taking an answer failed")

    def _count(self, applied: Sequence[tuple[Timestep, Prediction]]) -> None:
        by_door: dict[str, int] = {}
        for timestep, _ in applied:
            by_door[timestep.door] = by_door.get(timestep.door, 0) + timestep.length
        for door, timesteps in by_door.items():
            self._observer.applied(self._served.name, door, timesteps)


def _kept(timestep: Timestep, outputs: Mapping[str, Array], row: int) -> dict[str, Array]:
    if timestep.keep == "all":
        return {name: array[row] for name, array in outputs.items()}
    return {name: array[row, -1:] for name, array in outputs.items()} if timestep.keep == "last" else {}
