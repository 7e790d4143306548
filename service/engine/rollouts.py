"""`Rollouts`: streams that go on by their own predictions, to look ahead or to be moved there in one commit."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from service.engine.decide import Verdict, decide, replay_of_key
from service.engine.models import ServedModel
from service.engine.plan import Plan
from service.engine.rollout_loop import Roll, RolloutLoop
from service.engine.transaction import Loaded, Reply, Write, commit_when_decided
from service.engine.types import RolledOut, RolloutAsk, Timestep
from service.engine.ways import Ways
from service.errors import ServiceError
from service.store.record import KeyEntry, Record, decode, digest16
from service.store.redis import checked

if TYPE_CHECKING:
    from service.engine.audience import Audience
    from service.engine.observer import EngineObserver
    from service.store.commits import Telling


class Rollouts:
    """Rolls streams out, and commits that where it is asked for: once, as a chunk of that many timesteps."""

    def __init__(self, ways: Ways, observer: EngineObserver, audience: Audience, *, most_rows: int) -> None:
        """Put the parts together.

        Args:
            ways: To the store and the models.
            observer: Counts the work.
            audience: Says what is told of commits.
            most_rows: Samples of one model that go on together; more wait for room.
        """
        self._ways = ways
        self._observer = observer
        self._audience = audience
        self._most_rows = most_rows
        self._loops: dict[ServedModel, RolloutLoop] = {}

    @property
    def models(self) -> list[ServedModel]:
        """The models that were rolled out."""
        return list(self._loops)

    @property
    def waiting(self) -> int:
        """Rollouts that wait for room."""
        return sum(loop.waiting for loop in self._loops.values())

    def close(self) -> None:
        """Let the threads go."""
        for loop in self._loops.values():
            loop.close()

    async def run(self, ask: RolloutAsk) -> RolledOut:
        """Roll a stream out; a missing one from the model's initial state.

        Raises:
            ServiceError: It was refused, or its outcome is not known; see `applied`.
        """
        op_id, loop = _name_of(ask), asyncio.get_running_loop()

        async def roll_out(found: Loaded) -> Reply[RolledOut] | Write[RolledOut]:
            record = None if (stored := checked(found.raw)) is None else decode(stored)
            plan = Plan.of(ask, op_id, self._model_of(ask, record))
            if found.entry is not None:
                return Reply(self._told_again(plan, replay_of_key(found.entry, plan.intent)))
            if decide(record, plan.intent) is Verdict.REPLAY and record is not None:
                return Reply(self._told_again(plan, record))
            roll = plan.roll(record, time.monotonic() + found.deadline - loop.time())
            await self._loop_of(plan.served).run(roll)
            done = plan.told(record, roll)
            return self._write(plan, record, roll, done) if ask.commit else Reply(done, is_replay=False)

        remembered = ask.idempotency_key if ask.commit else None
        done = await commit_when_decided(self._ways, ask.key, roll_out, idempotency_key=remembered)
        if done.replayed:
            self._observer.replays(1)
        elif ask.commit:
            self._observer.applied(ask.key.model, "http", ask.horizon)
        return done

    def _model_of(self, ask: RolloutAsk, record: Record | None) -> ServedModel:
        """Return the model that goes on: the one that is named, else the stream's own."""
        served = self._ways.shelf.get(ask.key.model, ask.version)
        if ask.version is not None or record is None:
            return served
        return self._ways.shelf.by_fingerprint(ask.key.model, record.fingerprint) or served

    def _loop_of(self, served: ServedModel) -> RolloutLoop:
        loop = self._loops.get(served)
        if loop is None:
            for other, its in list(self._loops.items()):
                if its.idle and not self._ways.shelf.serves(other):
                    its.close()
                    del self._loops[other]
            loop = self._loops[served] = RolloutLoop(served, most_rows=self._most_rows)
        return loop

    def _told_again(self, plan: Plan, kept: Record | KeyEntry) -> RolledOut:
        """Return the first answer again, read as the version that made it."""
        served = self._ways.shelf.by_fingerprint(plan.ask.key.model, kept.fingerprint)
        if served is None:
            raise ServiceError(
                "seq_passed",
                f"The rollout was applied by model {kept.fingerprint.hex()}, which is not loaded here any more.",
                fix="Treat it as done, and go on from `expected`.",
                applied="yes",
                step=kept.step,
                state_id=kept.chain,
                expected=kept.step + 1,
            )
        return Plan.of(plan.ask, plan.op_id, served).told_again(kept)

    def _write(self, plan: Plan, record: Record | None, roll: Roll, done: RolledOut) -> Write[RolledOut]:
        """Return what is written of where a rollout came."""
        key, served = plan.ask.key, plan.served
        made = plan.record(record, roll, done)
        tellings: Sequence[Telling] = ()
        if self._audience.hears(served.name):
            fed = Timestep(key, tuple(array.tobytes() for _, array in sorted(roll.fed.items())), length=made.length)
            tellings = self._audience.tellings([fed], served.inputs, done.outputs, [made.step], [made.chain])
        return Write(
            made,
            b"" if record is None else record.guard,
            KeyEntry(plan.op_id, made.epoch, made.step, made.chain, made.length, made.outputs, served.fingerprint),
            replace(done, state_id=made.chain, created=record is None),
            lambda stored: self._told_again(plan, decode(stored)),
            tellings,
        )


def _name_of(ask: RolloutAsk) -> bytes:
    """Return the operation's name: the same for every retry of what is committed, else one of its own."""
    if not ask.commit or (ask.seq is None and ask.after is None and ask.idempotency_key is None):
        return secrets.token_bytes(16)
    said = [ask.horizon, ask.feedback, ask.temperature, ask.top_k, ask.top_p, ask.seed, ask.seq]
    parts = [json.dumps(said, sort_keys=True).encode(), ask.after or b"", (ask.idempotency_key or "").encode()]
    for name, array in sorted(ask.inputs.items()):
        parts += (name.encode(), array.dtype.name.encode(), array.tobytes())
    return digest16(b"rollout", *parts)
