"""`RolloutService`: streams that go on by their own predictions, to look ahead or to be moved there in one commit."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from service.engine.protocol.decide import Decision, check_idempotency_entry, decide
from service.engine.rollout.plan import RolloutPlan
from service.engine.rollout.worker import ActiveRollout, RolloutWorker
from service.engine.streams.deps import StreamOpDeps
from service.engine.streams.resets import check_deadline
from service.errors import ServiceError, not_a_record
from service.models.registry import ServedModel
from service.store import keys
from service.store.commits import Commit, Outcome
from service.store.record import IdempotencyEntry, Record, blake2b_128, decode
from service.store.state_store import checked
from service.types import RolloutRequest, RolloutResult, Timestep

if TYPE_CHECKING:
    from service.engine.observer import EngineObserver
    from service.engine.watch.interests import InterestTable
    from service.store.commits import Notification


class RolloutService:
    """Rolls streams out, and commits that where it is asked for: once, as a chunk of that many timesteps."""

    def __init__(
        self, ways: StreamOpDeps, observer: EngineObserver, audience: InterestTable, *, most_rows: int
    ) -> None:
        """Put the parts together.

        Args:
            ways: To the store and the models.
            observer: Counts the work.
            audience: Says what is told of commits.
            most_rows: Samples of one model that go on together; more wait for room.
        """
        self._deps = ways
        self._observer = observer
        self._interests = audience
        self._max_rows = most_rows
        self._workers: dict[ServedModel, RolloutWorker] = {}

    @property
    def models(self) -> list[ServedModel]:
        """The models that were rolled out."""
        return list(self._workers)

    @property
    def waiting(self) -> int:
        """Rollouts that wait for room."""
        return sum(loop.waiting for loop in self._workers.values())

    def close(self) -> None:
        """Let the threads go."""
        for loop in self._workers.values():
            loop.close()

    async def run(self, ask: RolloutRequest) -> RolloutResult:
        """Roll a stream out; a missing one from the model's initial state.

        Raises:
            ServiceError: It was refused, or its outcome is not known; see `steps_applied`.
        """
        deadline, name, op_id = self._deps.start(), keys.record_key(*ask.key), _op_id(ask)
        named = ask.commit and ask.idempotency_key is not None
        entry_name = keys.idempotency_key_of(name, ask.idempotency_key or "") if named else None
        while True:
            names = [name] if entry_name is None else [name, entry_name]
            raw, *entry = await self._deps.store.load_with_errors(names, deadline=deadline, exact=True)
            record = None if (stored := checked(raw)) is None else decode(stored)
            plan = RolloutPlan.of(ask, op_id, self._model_for(ask, record))
            if entry and (found := checked(entry[0])) is not None:
                known = check_idempotency_entry(IdempotencyEntry.decode(found), plan.intent)
                await self._deps.store.wait_for_replica(name, raw, entry_name, deadline=deadline)
                return self._replay(plan, known)
            if decide(record, plan.intent) is Decision.REPLAY and record is not None:
                if not await self._deps.store.wait_for_replica(name, raw, deadline=deadline):
                    continue
                return self._replay(plan, record)
            left = deadline - asyncio.get_running_loop().time()
            roll = plan.start(record, time.monotonic() + left)
            await self._worker_for(plan.served).run(roll)
            done = plan.result(record, roll)
            if not ask.commit:
                return done
            committed = await self._commit(plan, record, roll, done, entry_name, deadline=deadline)
            if committed is not None:
                return committed
            check_deadline(deadline, "the stream")

    def _model_for(self, ask: RolloutRequest, record: Record | None) -> ServedModel:
        """Return the model that goes on: the one that is named, else the stream's own."""
        served = self._deps.models.get(ask.key.model, ask.version)
        if ask.version is not None or record is None:
            return served
        return self._deps.models.by_fingerprint(ask.key.model, record.fingerprint) or served

    def _worker_for(self, served: ServedModel) -> RolloutWorker:
        loop = self._workers.get(served)
        if loop is None:
            for other, its in list(self._workers.items()):
                if its.idle and not self._deps.models.is_current(other):
                    its.close()
                    del self._workers[other]
            loop = self._workers[served] = RolloutWorker(served, most_rows=self._max_rows)
        return loop

    def _replay(self, plan: RolloutPlan, kept: Record | IdempotencyEntry) -> RolloutResult:
        """Return the first answer again, read as the version that made it."""
        served = self._deps.models.by_fingerprint(plan.request.key.model, kept.fingerprint)
        if served is None:
            raise ServiceError(
                "seq_passed",
                f"The rollout was applied by model {kept.fingerprint.hex()}, which is not loaded here any more.",
                fix="Treat it as done, and go on from `expected`.",
                applied="yes",
                step=kept.step,
                state_id=kept.history_hash,
                expected=kept.step + 1,
            )
        self._observer.replays(1)
        return RolloutPlan.of(plan.request, plan.op_id, served).replayed_result(kept)

    async def _commit(
        self,
        plan: RolloutPlan,
        record: Record | None,
        roll: ActiveRollout,
        done: RolloutResult,
        entry_name: str | None,
        *,
        deadline: float,
    ) -> RolloutResult | None:
        """Write where a rollout came; None: the stream moved meanwhile."""
        key, served = plan.request.key, plan.served
        if record is None:
            self._deps.check_quota(key.tenant)
        made = plan.record(record, roll, done)
        entry = IdempotencyEntry(
            plan.op_id, made.epoch, made.step, made.history_hash, made.length, made.outputs, served.fingerprint
        ).encode()
        expect = b"" if record is None else record.guard
        commit = Commit(keys.record_key(*key), expect, made.encode(), entry_name, entry)
        tellings: Sequence[Notification] = ()
        if self._interests.has_interest(served.name):
            fed = Timestep(
                key, tuple(array.tobytes() for _, array in sorted(roll.fed_inputs.items())), length=made.length
            )
            tellings = self._interests.notifications_for(
                [fed], served.inputs, done.outputs, [made.step], [made.history_hash]
            )
        answer = (await self._deps.store.commit([commit], deadline=deadline, notifications=tellings))[0]
        self._deps.invalidate(key)
        if answer.outcome is Outcome.WRONG_TYPE:
            raise not_a_record()
        if answer.outcome is Outcome.DUPLICATE and answer.stored is not None:
            return self._replay(plan, decode(answer.stored))
        if answer.outcome is not Outcome.APPLIED:
            return None
        self._observer.steps_applied(served.name, "http", made.length)
        return replace(done, state_id=made.history_hash, created=record is None)


def _op_id(ask: RolloutRequest) -> bytes:
    """Return the operation's name: the same for every retry of what is committed, else one of its own."""
    if not ask.commit or (ask.seq is None and ask.after is None and ask.idempotency_key is None):
        return secrets.token_bytes(16)
    said = [ask.horizon, ask.feedback, ask.temperature, ask.top_k, ask.top_p, ask.seed, ask.seq]
    parts = [json.dumps(said, sort_keys=True).encode(), ask.after or b"", (ask.idempotency_key or "").encode()]
    for name, array in sorted(ask.inputs.items()):
        parts += (name.encode(), array.dtype.name.encode(), array.tobytes())
    return blake2b_128(b"rollout", *parts)
