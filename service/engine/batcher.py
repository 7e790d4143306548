"""`Batcher`: runs the waiting timesteps of one model in batches, and commits each batch in one round trip.

A batch goes load -> decide -> run -> commit -> answer. Rows whose commit found another guard come round again with
the record that the store sent back; everything else is answered at once. One bad row fails alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from model_export.errors import ModelLoadError, ModelTimeoutError
from model_export.manifest import Array
from service.engine.batch import (
    finite_rows,
    intent_of,
    pack_outputs,
    prediction_bytes,
    stack_inputs,
    unpack_outputs,
)
from service.engine.batch_queue import BatchQueue
from service.engine.decide import Intent, Verdict, decide, replay_of_key
from service.engine.types import Done, Prediction, StreamKey, Timestep
from service.errors import ServiceError
from service.store import keys
from service.store.record import HAD_KEY, NO_CHAIN, KeyEntry, Kind, Record, decode, next_chain
from service.store.redis import Commit, Outcome

if TYPE_CHECKING:
    from service.engine.cache import StateCache
    from service.engine.models import ServedModel
    from service.engine.observer import EngineObserver
    from service.store.redis import Committed, StateStore

_log = logging.getLogger(__name__)

INLINE_S = 0.002  # longer runs go to a thread, so that health checks and other models stay prompt
_IN_FLIGHT = 4  # batches out at once: while one waits for the store, the next is run


@dataclass(slots=True, eq=False)
class Pending:
    """A timestep on its way through a batcher.

    Attributes:
        timestep: The request.
        intent: What the decision needs of it.
        done: Takes the answer.
        received: When it came, on the loop's clock.
        deadline: When it must be answered, on the loop's clock.
        view: The stream's record as last seen; None: missing, or not yet seen.
        seen: Whether `view` says anything.
        fresh: `view` came from the store during this request.
        must_read: The cached record was not enough to decide on.
        entry: The answer that its idempotency key had given, as far as read.
    """

    timestep: Timestep
    intent: Intent
    done: Done
    received: float
    deadline: float
    record_key: str
    view: Record | None = None
    seen: bool = False
    fresh: bool = False
    must_read: bool = False
    entry: KeyEntry | None = None
    answered: bool = False

    @property
    def queue_key(self) -> StreamKey:
        """The stream."""
        return self.timestep.key

    @property
    def length(self) -> int:
        """Timesteps."""
        return self.timestep.length

    @property
    def entry_key(self) -> str | None:
        """Where the store remembers this request's idempotency key."""
        key = self.timestep.idempotency_key
        return None if key is None else keys.entry_key(self.record_key, key)


@dataclass(slots=True)
class RunClock:
    """How long model runs take; the engine's watchdog reads it from its own thread.

    Attributes:
        running: When the run that is going on in each thread began, on the monotonic clock.
        seconds_per_row: What a row takes, learnt; infinite before the first run, which so goes to the thread.
    """

    running: dict[int, float] = field(default_factory=dict)
    seconds_per_row: float = math.inf

    def longest(self, now: float) -> float:
        """Return the seconds that the longest of the runs going on has taken."""
        return max((now - began for began in list(self.running.values())), default=0.0)

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a run how long a row takes."""
        sample = seconds / rows
        known = self.seconds_per_row
        self.seconds_per_row = sample if math.isinf(known) else 0.8 * known + 0.2 * sample


Reroute = Callable[[Pending, bytes], bool]
Announce = Callable[["ServedModel", Sequence[tuple[Timestep, Prediction]]], None]


class Batcher:
    """The queue and the running batches of one model version."""

    def __init__(
        self,
        served: ServedModel,
        store: StateStore,
        cache: StateCache,
        observer: EngineObserver,
        *,
        max_batch: int,
        max_wait: float,
        reroute: Reroute,
    ) -> None:
        """Begin empty.

        Args:
            served: The model.
            store: Where records live.
            cache: The worker's hot records.
            observer: Counts the work.
            max_batch: Most rows in one run.
            max_wait: Seconds that a timestep may wait for others; 0: none.
            reroute: Takes a row whose stream belongs to another version; False: there is none.
        """
        self.served = served
        self.clock = RunClock()
        self.announce: Announce | None = None
        self._model = served.step_model
        self._store = store
        self._cache = cache
        self._observer = observer
        self._max_batch = min(max_batch, served.manifest.batch.max)
        self._max_wait = max_wait
        self._reroute = reroute
        self._queue: BatchQueue[Pending] = BatchQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flush_due: asyncio.Handle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"model-{served.name}")
        self._narrowed = any(f.store_dtype != f.dtype for f in served.step_model.fields)
        self._output_bytes = prediction_bytes(served.manifest.answered)

    # ---------------------------------------------------------------- in and out

    @property
    def rows(self) -> int:
        """Timesteps that wait."""
        return self._queue.rows

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._tasks and not self._queue.rows

    def put(self, pending: Pending) -> None:
        """Queue a timestep; it goes with the next batch."""
        self._queue.put(pending)
        self._schedule()

    def close(self) -> None:
        """Let the model's thread go."""
        self._thread.shutdown(wait=False)

    def intent(self, timestep: Timestep) -> Intent:
        """Name a request for this model."""
        return intent_of(timestep, self.served.fingerprint)

    # ---------------------------------------------------------------- forming batches

    def _schedule(self) -> None:
        if len(self._tasks) >= _IN_FLIGHT:
            return
        loop = asyncio.get_running_loop()
        full = self._queue.rows >= self._max_batch
        if self._flush_due is None:
            wait = self._max_wait and not full
            self._flush_due = loop.call_later(self._max_wait, self._flush) if wait else loop.call_soon(self._flush)
        elif full and isinstance(self._flush_due, asyncio.TimerHandle):
            self._flush_due.cancel()
            self._flush_due = loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = None
        while self._queue and len(self._tasks) < _IN_FLIGHT:
            batch = self._queue.take(self._max_batch)
            task = asyncio.create_task(self._process(batch))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._queue:
            self._schedule()

    async def _process(self, batch: Sequence[Pending]) -> None:
        try:
            await self._advance(batch)
        except ServiceError as exc:
            self._answer_rest(batch, exc)
        except Exception:  # noqa: BLE001 - one batch's fault must not end the worker; it is logged
            _log.exception("A batch of model %s failed", self.served.name)
            error = ServiceError(
                "internal", "The step failed for a reason of the server's own.", fix="Send it again.", applied="unknown"
            )
            self._answer_rest(batch, error)
        finally:
            for pending in batch:
                self._queue.release(pending.queue_key)

    def _answer_rest(self, batch: Sequence[Pending], error: ServiceError) -> None:
        for pending in batch:
            if not pending.answered:
                if error.applied != "no":
                    self._cache.drop(pending.queue_key)
                self._answer(pending, error)

    # ---------------------------------------------------------------- one batch

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

    # ---------------------------------------------------------------- running

    async def _run_and_commit(self, rows: Sequence[Pending], deadline: float) -> list[Pending]:
        outputs, states = await self._run(rows)
        rows, outputs, states = self._finite(rows, outputs, states)
        if not rows:
            return []
        records = self._records(rows, outputs, states)
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
                    _kept(pending.timestep, outputs, row), record.step, record.chain, created=pending.view is None
                )
                applied.append((pending.timestep, prediction))
                self._answer(pending, prediction)
            elif self._conflicted(pending, answer):
                again.append(pending)
        self._count(applied)
        if again:
            self._observer.conflicts(len(again))
        if self.announce is not None and applied:
            self.announce(self.served, applied)
        return again

    async def _run(self, rows: Sequence[Pending]) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run a batch; where onnxruntime refuses it, run its rows alone, so that only the bad ones fail.

        Rows that failed are answered here; theirs stay in the result as zeros, and `_finite` leaves them out.
        """
        length = rows[0].length
        inputs = {
            spec.name: stack_inputs([pending.timestep for pending in rows], spec.name)
            for spec in self.served.manifest.inputs
        }
        initial = self._model.initial_state
        packed = np.frombuffer(
            b"".join([initial if p.view is None else p.view.state for p in rows]), np.uint8
        ).reshape(len(rows), self._model.state_bytes)  # fmt: skip
        predicted = self.clock.seconds_per_row * len(rows) * length
        began = time.perf_counter()
        try:
            if predicted < INLINE_S:
                result = self._execute(inputs, packed)
            else:
                loop = asyncio.get_running_loop()
                result = await loop.run_in_executor(self._thread, self._execute, inputs, packed)
        except ModelTimeoutError as exc:
            raise ServiceError("model_timeout", exc.problem, fix=exc.fix) from exc
        except ModelLoadError as exc:
            if len(rows) == 1:
                raise _unrunnable(exc) from exc
            return await self._run_alone(rows)
        seconds = time.perf_counter() - began
        self.clock.note(len(rows) * length, seconds)
        self._observer.batch(self.served.name, len(rows), seconds)
        return result

    async def _run_alone(self, rows: Sequence[Pending]) -> tuple[dict[str, Array], dict[str, Array]]:
        parts: list[tuple[dict[str, Array], dict[str, Array]] | None] = []
        for pending in rows:
            try:
                parts.append(await self._run([pending]))
            except ServiceError as exc:
                self._answer(pending, exc)
                parts.append(None)
        good = next((part for part in parts if part is not None), None)
        if good is None:
            return {}, {}
        filled = [part or ({n: np.zeros_like(a) for n, a in good[0].items()}, dict(good[1])) for part in parts]
        outputs = {name: np.concatenate([part[0][name] for part in filled]) for name in good[0]}
        states = {name: np.concatenate([part[1][name] for part in filled]) for name in good[1]}
        return outputs, states

    def _execute(self, inputs: Mapping[str, Array], packed: Array) -> tuple[dict[str, Array], dict[str, Array]]:
        """Run the model on `(rows, T, *row)` inputs; the outputs have the same leading axes. Maybe in a thread."""
        states = self._model.unpack(packed)
        thread = threading.get_ident()
        self.clock.running[thread] = time.monotonic()
        try:
            length = next(iter(inputs.values())).shape[1]
            if length > 1:
                return self._model.chunk(inputs, states)
            outputs, states = self._model.step({name: array[:, 0] for name, array in inputs.items()}, states)
            return {name: array[:, None] for name, array in outputs.items()}, states
        finally:
            del self.clock.running[thread]

    def _finite(
        self, rows: Sequence[Pending], outputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> tuple[list[Pending], dict[str, Array], dict[str, Array]]:
        """Leave out rows that were answered already, and refuse rows in which the model made NaN or infinity."""
        if not outputs and not states:
            return [], {}, {}
        if self._narrowed:  # a number too big for the store's type becomes an infinity there
            states = self._model.unpack(self._model.pack(states, rows=len(rows)))
        good, bad = finite_rows({**{f"output {n}": a for n, a in outputs.items()}, **states})
        for row, name in bad.items():
            if not rows[row].answered:
                self._answer(rows[row], _non_finite(name))
        for row, pending in enumerate(rows):
            good[row] &= not pending.answered
        if good.all():
            return list(rows), dict(outputs), dict(states)
        kept = [pending for row, pending in enumerate(rows) if good[row]]
        return kept, {n: a[good] for n, a in outputs.items()}, {n: a[good] for n, a in states.items()}

    # ---------------------------------------------------------------- committing

    def _records(
        self, rows: Sequence[Pending], outputs: Mapping[str, Array], states: Mapping[str, Array]
    ) -> list[Record]:
        packed = self._model.pack(states, rows=len(rows)).tobytes()
        predictions = pack_outputs(self.served.manifest, outputs)
        size, now = self._model.state_bytes, int(time.time() * 1000)
        fingerprint = self.served.fingerprint
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
            outputs = unpack_outputs(self.served.manifest, packed)
            if timestep.keep == "last":
                outputs = {name: array[-1:] for name, array in outputs.items()}
        self._observer.replays(1)
        self._answer(pending, Prediction(outputs, step, chain, replayed=True))

    def _answer(self, pending: Pending, result: Prediction | ServiceError) -> None:
        if pending.answered:
            return
        pending.answered = True
        self._observer.answered(self.served.name, asyncio.get_running_loop().time() - pending.received)
        try:
            pending.done(result)
        except Exception:  # noqa: BLE001 - one waiter's fault must not fail the others; it is logged
            _log.exception("Taking an answer failed")

    def _count(self, applied: Sequence[tuple[Timestep, Prediction]]) -> None:
        by_door: dict[str, int] = {}
        for timestep, _ in applied:
            by_door[timestep.door] = by_door.get(timestep.door, 0) + timestep.length
        for door, timesteps in by_door.items():
            self._observer.applied(self.served.name, door, timesteps)


def moved(pending: Pending, batcher: Batcher) -> Pending:
    """Return the same request for another model version."""
    intent = replace(pending.intent, fingerprint=batcher.served.fingerprint)
    return replace(pending, intent=intent, view=None, seen=False, fresh=False)


def _kept(timestep: Timestep, outputs: Mapping[str, Array], row: int) -> dict[str, Array]:
    if timestep.keep == "all":
        return {name: array[row] for name, array in outputs.items()}
    return {name: array[row, -1:] for name, array in outputs.items()} if timestep.keep == "last" else {}


def _non_finite(name: str) -> ServiceError:
    return ServiceError(
        "non_finite_state",
        f"The model made NaN or infinity in {name!r}; the step was not applied.",
        fix="Leave this timestep out, or reset the stream.",
    )


def _unrunnable(exc: ModelLoadError) -> ServiceError:
    reason = str(exc.__cause__ or exc).rsplit("Status Message:", 1)[-1].strip().splitlines()[0][:200]
    return ServiceError(
        "bad_input",
        f"The model cannot run on these values: {reason}",
        fix="Check that every number is one that the model knows, say an index within its vocabulary.",
    )
