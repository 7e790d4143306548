"""`RolloutService`: runs rollouts of streams, and commits those for which the request sets it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from stepwell.addons.rollouts.plan import RolloutPlan
from stepwell.addons.rollouts.requests import RolloutRequest, RolloutResult
from stepwell.addons.rollouts.worker import ActiveRollout, OnTimestep, RolloutWorker
from stepwell.engine.model_runs import ModelRuns
from stepwell.engine.placing import Placed
from stepwell.engine.protocol.decide import Decision, check_idempotency_entry, decide
from stepwell.engine.publisher import PendingCommits
from stepwell.engine.streams.transaction import Loaded, Reply, Write, run_transaction
from stepwell.errors import ServiceError
from stepwell.models.served import ServedModel
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.keys import record_key
from stepwell.store.record import Record, blake2b_128, decode
from stepwell.store.state_store import decoded
from stepwell.types import Timestep
from stepwell_export.runtime.feedback import Rule
from stepwell_export.runtime.manifest import Array

if TYPE_CHECKING:
    from stepwell.engine.engine import Engine
    from stepwell.engine.model_runs import Runs
    from stepwell.store.commits import Notification


class RolloutService(ModelRuns):
    """Runs rollouts of an engine's streams, at most `max_batch_size` samples of one model in one batch.

    With `commit`, a rollout is committed once, as a chunk of `horizon` timesteps.
    """

    def __init__(self, engine: Engine) -> None:
        self._deps = engine.streams.deps
        self._placing = engine.placing
        self._observer = engine.observer
        self._publisher = engine.publisher
        self._max_rows = engine.options.max_batch_size
        self._workers: dict[ServedModel, RolloutWorker] = {}

    @property
    def running(self) -> list[Runs]:
        """The model versions that have a rollout worker."""
        return [served.step_model for served in self._workers]

    @property
    def waiting(self) -> int:
        """The number of rollouts that wait for free rows."""
        return sum(worker.waiting for worker in self._workers.values())

    def close(self) -> None:
        """Fail the rollouts that wait or run, and end the threads."""
        for worker in self._workers.values():
            worker.close()

    async def run(self, request: RolloutRequest, *, on_timestep: OnTimestep | None = None) -> RolloutResult:
        """Run a rollout of a stream; a missing stream starts from the model's initial state.

        Args:
            request: The rollout.
            on_timestep: Without `commit`, called with each timestep as it is made: the prediction and the inputs that
                were computed from it, `(samples, *row)` by name. A committed rollout may have to be computed again.

        Raises:
            ServiceError: It was rejected, or its outcome is not known; see `applied`.
        """
        admission = self._deps.admission
        admission.check()
        admission.check_rate(request.key.tenant, request.horizon * request.samples)
        admission.rows += 1
        try:
            return await self._run(request, None if request.commit else on_timestep)
        finally:
            admission.count_answered(1, 0)

    async def _run(self, request: RolloutRequest, on_timestep: OnTimestep | None) -> RolloutResult:
        op_id, loop = _op_id(request), asyncio.get_running_loop()

        async def roll_out(loaded: Loaded) -> Reply[RolloutResult] | Write[RolloutResult]:
            under_way.close()  # of the commit before, if there was one: another writer had changed the record
            record = decoded(loaded.raw)
            plan = RolloutPlan.of(request, op_id, *await self._model_for(request, record))
            if loaded.entry is not None:
                await self._deps.models.find(request.key.model, loaded.entry.fingerprint)  # for `_replay`
            if loaded.entry is not None:
                return Reply(self._replay(plan, check_idempotency_entry(loaded.entry, plan.intent)))
            if decide(record, plan.intent) is Decision.REPLAY and record is not None:
                return Reply(self._replay(plan, record))
            rollout = plan.start(record, time.monotonic() + loaded.deadline - loop.time())
            if on_timestep is not None:
                rollout.on_timestep = _on_loop(on_timestep, plan.rules, loop)
            await self._worker_for(plan.served).run(rollout)
            result = plan.result(record, rollout)
            if not request.commit:
                return Reply(result, is_replay=False)
            under_way.enter_context(self._deps.store.commits_under_way.newest)  # its events are decided now
            return self._write(plan, record, rollout, result)

        idempotency_key = request.idempotency_key if request.commit else None
        with contextlib.ExitStack() as under_way:
            result = await run_transaction(self._deps, request.key, roll_out, idempotency_key=idempotency_key)
        if result.replayed:
            self._observer.replays(1)
        elif request.commit:
            self._observer.steps_applied(request.key.model, "http", request.horizon)
        return result

    async def _model_for(self, request: RolloutRequest, record: Record | None) -> tuple[ServedModel, Placed | None]:
        """Return the requested model version; if none is requested, that of the stream's record.

        A missing stream begins as any new stream does; then also how its record begins is returned.
        """
        served, models = self._deps.models.get(request.key.model, request.version), self._deps.models
        if record is None:
            begins = self._placing.begin(served.name, record_key(*request.key)) if request.version is None else None
            found = None if begins is None else await models.find(served.name, begins[0])
            return (served, None) if found is None or begins is None else (found, begins[1])
        found = await models.find(request.key.model, record.fingerprint, record.state)
        if found is None:
            return served, None
        responding = found.responding_part(record.state) or found
        is_named = request.version is not None and responding.fingerprint != served.fingerprint
        return served if is_named else found, None

    def _worker_for(self, served: ServedModel) -> RolloutWorker:
        worker = self._workers.get(served)
        if worker is None:
            for other, other_worker in list(self._workers.items()):
                if other_worker.is_idle and not self._deps.models.is_current(other):
                    other_worker.close()
                    del self._workers[other]
            worker = self._workers[served] = RolloutWorker(served, max_rows=self._max_rows)
        return worker

    def _replay(self, plan: RolloutPlan, stored: Record | IdempotencyEntry) -> RolloutResult:
        """Return the stored result, decoded by the version that computed it."""
        served = self._deps.models.by_fingerprint(plan.request.key.model, stored.fingerprint)
        if served is None:
            raise ServiceError(
                "seq_passed",
                f"The rollout was applied by model {stored.fingerprint.hex()}, which is not loaded here any more.",
                fix="Treat it as done, and continue from `expected`.",
                applied="yes",
                step=stored.step,
                state_id=stored.history_hash,
                expected=stored.step + 1,
            )
        return RolloutPlan.of(plan.request, plan.op_id, served).replayed_result(stored)

    def _write(
        self, plan: RolloutPlan, record: Record | None, rollout: ActiveRollout, result: RolloutResult
    ) -> Write[RolloutResult]:
        key, served = plan.request.key, plan.served
        new_record = plan.record(record, rollout, result)
        notifications: Sequence[Notification] = ()
        if served.name in self._publisher.watched:
            timestep = Timestep(
                key, tuple(array.tobytes() for _, array in sorted(rollout.fed_inputs.items())), length=new_record.length
            )
            pending = PendingCommits(
                [timestep],
                served.inputs,
                result.outputs,
                [new_record.step],
                [new_record.history_hash],
                [served.version],
            )
            notifications = self._publisher.notifications(pending)
        return Write(
            new_record,
            b"" if record is None else record.guard,
            IdempotencyEntry(
                plan.op_id,
                new_record.epoch,
                new_record.step,
                new_record.history_hash,
                new_record.length,
                new_record.outputs,
                served.responding.fingerprint,
            ),
            replace(result, state_id=new_record.history_hash, created=record is None),
            lambda stored: self._replay(plan, decode(stored)),
            notifications,
        )


def _on_loop(on_timestep: OnTimestep, rules: Sequence[Rule], loop: asyncio.AbstractEventLoop) -> OnTimestep:
    """Return a callback for the worker's thread, which calls another one on the loop with the computed inputs."""
    names = [rule.input.name for rule in rules]

    def publish(outputs: Mapping[str, Array], inputs: Mapping[str, Array]) -> None:
        computed = {name: inputs[name] for name in names}
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no caller waits any more
            loop.call_soon_threadsafe(on_timestep, outputs, computed)

    return publish


def _op_id(request: RolloutRequest) -> bytes:
    """Return the op id: the same for every retry of a committed rollout that can be retried, else a random one."""
    if not request.commit or (request.seq is None and request.after is None and request.idempotency_key is None):
        return secrets.token_bytes(16)
    parameters = [
        request.horizon,
        request.feedback,
        request.temperature,
        request.top_k,
        request.top_p,
        request.seed,
        request.seq,
    ]
    parts = [
        json.dumps(parameters, sort_keys=True).encode(),
        request.after or b"",
        (request.idempotency_key or "").encode(),
    ]
    for name, array in sorted(request.inputs.items()):
        parts += (name.encode(), array.dtype.name.encode(), array.tobytes())
    return blake2b_128(b"rollout", *parts)
