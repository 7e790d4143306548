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
from service.engine.streams.transaction import Loaded, Reply, Write, commit_when_decided
from service.errors import ServiceError
from service.models.registry import ServedModel
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
        op_id, loop = _op_id(ask), asyncio.get_running_loop()

        async def roll_out(found: Loaded) -> Reply[RolloutResult] | Write[RolloutResult]:
            record = None if (stored := checked(found.raw)) is None else decode(stored)
            plan = RolloutPlan.of(ask, op_id, self._model_for(ask, record))
            if found.entry is not None:
                return Reply(self._replay(plan, check_idempotency_entry(found.entry, plan.intent)))
            if decide(record, plan.intent) is Decision.REPLAY and record is not None:
                return Reply(self._replay(plan, record))
            roll = plan.start(record, time.monotonic() + found.deadline - loop.time())
            await self._worker_for(plan.served).run(roll)
            done = plan.result(record, roll)
            return self._write(plan, record, roll, done) if ask.commit else Reply(done, is_replay=False)

        remembered = ask.idempotency_key if ask.commit else None
        done = await commit_when_decided(self._deps, ask.key, roll_out, idempotency_key=remembered)
        if done.replayed:
            self._observer.replays(1)
        elif ask.commit:
            self._observer.steps_applied(ask.key.model, "http", ask.horizon)
        return done

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
        return RolloutPlan.of(plan.request, plan.op_id, served).replayed_result(kept)

    def _write(
        self, plan: RolloutPlan, record: Record | None, roll: ActiveRollout, done: RolloutResult
    ) -> Write[RolloutResult]:
        """Return what is written of where a rollout came."""
        key, served = plan.request.key, plan.served
        made = plan.record(record, roll, done)
        tellings: Sequence[Notification] = ()
        if self._interests.has_interest(served.name):
            fed = Timestep(
                key, tuple(array.tobytes() for _, array in sorted(roll.fed_inputs.items())), length=made.length
            )
            tellings = self._interests.notifications_for(
                [fed], served.inputs, done.outputs, [made.step], [made.history_hash]
            )
        return Write(
            made,
            b"" if record is None else record.guard,
            IdempotencyEntry(
                plan.op_id, made.epoch, made.step, made.history_hash, made.length, made.outputs, served.fingerprint
            ),
            replace(done, state_id=made.history_hash, created=record is None),
            lambda stored: self._replay(plan, decode(stored)),
            tellings,
        )


def _op_id(ask: RolloutRequest) -> bytes:
    """Return the operation's name: the same for every retry of what is committed, else one of its own."""
    if not ask.commit or (ask.seq is None and ask.after is None and ask.idempotency_key is None):
        return secrets.token_bytes(16)
    said = [ask.horizon, ask.feedback, ask.temperature, ask.top_k, ask.top_p, ask.seed, ask.seq]
    parts = [json.dumps(said, sort_keys=True).encode(), ask.after or b"", (ask.idempotency_key or "").encode()]
    for name, array in sorted(ask.inputs.items()):
        parts += (name.encode(), array.dtype.name.encode(), array.tobytes())
    return blake2b_128(b"rollout", *parts)
