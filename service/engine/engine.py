"""`Engine`: the one door to the streams, whichever transport a request came by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from service.engine.limits import StreamQuota, TenantRates
from service.engine.observer import EngineObserver
from service.engine.packing import last_prediction
from service.engine.rollout.service import RolloutService
from service.engine.stepping.batcher import Batcher
from service.engine.stepping.columnar_batch import BulkOutcomes
from service.engine.stepping.queued import QueuedStep
from service.engine.stepping.record_cache import CacheMemory
from service.engine.stepping.run_watchdog import Watchdog
from service.engine.streams.copies import StreamCopies
from service.engine.streams.deps import StreamOpDeps
from service.engine.streams.resets import Resets
from service.engine.streams.sources import StateSources, no_stream
from service.engine.watch.hub import WatchHub
from service.engine.watch.interests import InterestTable
from service.errors import ServiceError
from service.models.registry import ModelRegistry, ServedModel
from service.store import keys
from service.store.pubsub import StorePubSub
from service.store.record import decode
from service.store.record_arrays import empty_header
from service.store.snapshots import SnapshotStore
from service.store.state_store import StateStore
from service.types import (
    BulkTimesteps,
    Prediction,
    ReplyCallback,
    RolloutRequest,
    RolloutResult,
    StreamHandle,
    StreamKey,
    StreamList,
    StreamPosition,
    StreamStatus,
    Timestep,
)

_READY_PING_S = 1.0


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine works; the defaults are the settings'.

    Attributes:
        max_batch_size: Most rows in one run.
        max_wait_s: Seconds that a timestep may wait for others to join its batch.
        queue_limit: Timesteps that may wait in all.
        queue_bytes: Bytes of inputs that may wait or be run in all; below that, one more is taken, however long.
        request_timeout_s: Seconds from receipt to answer.
        run_timeout_s: Seconds that one model run may take.
        cache_bytes: Memory for hot records.
        tenant_rate: Timesteps a second of one tenant; None: no limit.
        tenant_max_streams: Live streams of one tenant; None: no limit.
        snapshot_ttl_s: Seconds that a stream's snapshots live after the last use of one; None: as idle streams do.
        max_snapshots: Snapshots that a stream may have.
        history: How many events are kept of each stream of a model, for watchers that come back; `*`: of all others.
    """

    max_batch_size: int = 256
    max_wait_s: float = 0.0
    queue_limit: int = 10_000
    queue_bytes: int = 256 * 2**20
    request_timeout_s: float = 10.0
    run_timeout_s: float = 5.0
    cache_bytes: int = 256 * 2**20
    tenant_rate: float | None = None
    tenant_max_streams: int | None = None
    snapshot_ttl_s: float | None = None
    max_snapshots: int = 16
    history: Mapping[str, int] = field(default_factory=dict)


class Engine:
    """Moves streams. Remembers nothing that matters: the store has the last word.

    Attributes:
        shelf: The models.
        store: Where records live.
        resets: Puts other states in streams' places.
        copies: Forks streams, keeps snapshots of them, hands out their states.
        draining: Nothing new is taken.
    """

    def __init__(
        self,
        store: StateStore,
        shelf: ModelRegistry,
        options: EngineOptions | None = None,
        observer: EngineObserver | None = None,
    ) -> None:
        """Put the parts together; nothing runs yet.

        Args:
            store: Where records live.
            shelf: The models.
            options: How to work.
            observer: Counts the work.
        """
        self.models = shelf
        self.store = store
        self.draining = False
        self._options = options or EngineOptions()
        self._observer = observer or EngineObserver()
        rate, most = self._options.tenant_rate, self._options.tenant_max_streams
        self._rates = None if rate is None else TenantRates(rate)
        self._quota = None if most is None else StreamQuota(most)
        self._batchers: dict[ServedModel, Batcher] = {}
        self._cache_memory = CacheMemory(self._options.cache_bytes)
        self._interests = InterestTable(self._options.history)
        self.watch = WatchHub(self._interests, store, StorePubSub(store.transport))
        self._open = 0
        self._open_bytes = 0
        self._most_bytes = self._options.queue_bytes
        self._fast_accept_limit = (
            self._options.queue_limit
        )  # with fewer open timesteps there surely is room for one more
        self._drained = asyncio.Event()
        snapshots = SnapshotStore(store, ttl_s=self._options.snapshot_ttl_s, max_snapshots=self._options.max_snapshots)
        origins = StateSources(store, shelf, snapshots)
        ways = StreamOpDeps(store, shelf, self._start_request, self._quota, self._forget)
        self.resets = Resets(ways, origins)
        self.copies = StreamCopies(ways, snapshots, origins)
        self._rollouts = RolloutService(ways, self._observer, self._interests, most_rows=self._options.max_batch_size)
        self._watchdog = Watchdog(
            self._options.run_timeout_s,
            lambda: [served.step_model for served in (*self._batchers, *self._rollouts.models)],
            self._sample_queues,
        )

    async def start(self) -> None:
        """Begin to serve watchers, also those of other workers."""
        await self.watch.start()

    # ---------------------------------------------------------------- stepping

    def submit(self, timestep: Timestep, done: ReplyCallback, served: ServedModel | None = None) -> None:
        """Move a stream, and hand the answer to `done`, exactly once, on the event loop.

        A refusal may come before this returns.

        Args:
            timestep: The request.
            done: Takes the answer.
            served: What the shelf has for the timestep's model and version, where that is known.
        """
        try:
            if served is None:
                served = self.models.get(timestep.key.model, timestep.version)
            batcher = self._batchers.get(served) or self._batcher(served)
            now = batcher.time()
            if self.draining or self._open >= self._fast_accept_limit or self._open_bytes >= self._most_bytes:
                self._check_capacity(batcher)
            if self._rates is not None:
                self._rates.acquire(timestep.key.tenant, timestep.length, now)
        except ServiceError as exc:
            done(exc)
            return
        batcher.submit(timestep, done, now)
        self._open += 1
        self._open_bytes += timestep.length * batcher.timestep_bytes

    def submit_single(
        self,
        stream: StreamHandle,
        inputs: tuple[bytes, ...],
        seq: int | None,
        after: bytes | None,
        done: ReplyCallback,
        *,
        served: ServedModel,
    ) -> None:
        """Advance a stream by a single timestep without an idempotency key; otherwise as `submit`."""
        batcher = self._batchers.get(served) or self._batcher(served)
        now = batcher.time()
        try:
            if self.draining or self._open >= self._fast_accept_limit or self._open_bytes >= self._most_bytes:
                self._check_capacity(batcher)
            if self._rates is not None:
                self._rates.acquire(stream.key.tenant, 1, now)
        except ServiceError as exc:
            done(exc)
            return
        batcher.submit_single(stream, inputs, seq, after, done, now)
        self._open += 1
        self._open_bytes += batcher.timestep_bytes

    def submit_columnar(self, asked: BulkTimesteps, done: Callable[[BulkOutcomes], None], served: ServedModel) -> bool:
        """Move many streams in one go, if nothing about them is unusual; otherwise as `submit`.

        Args:
            asked: The requests.
            done: Takes the answers.
            served: What the shelf has for their model and version.

        Returns:
            False: It was not begun; they are to be submitted one by one, which may refuse some of them.
        """
        batcher, rows = self._batchers.get(served) or self._batcher(served), len(asked.names)
        nbytes = rows * asked.length * batcher.timestep_bytes
        if self.draining or self._open + rows > self._fast_accept_limit or self._open_bytes + nbytes > self._most_bytes:
            return False
        if not batcher.accepts_columnar(asked):
            return False
        now = batcher.time()
        if self._rates is not None and not self._rates.try_acquire(asked.keys[0].tenant, asked.length * rows, now):
            return False
        batcher.submit_columnar(asked, done, now)
        self._open += rows
        self._open_bytes += nbytes
        return True

    async def advance(self, timestep: Timestep) -> Prediction:
        """Move a stream and return its prediction, which is committed.

        The step goes on when the caller is cancelled: it is applied or not, never half.

        Raises:
            ServiceError: It was refused, or its outcome is not known; see `applied`.
        """
        future, done = _result_or_raise()
        self.submit(timestep, done)
        return await future

    async def peek(self, timestep: Timestep) -> Prediction:
        """Return what a timestep would be answered; nothing is committed.

        Its `step` is the one that it would reach; its `state_id` is that of the stream as it is, empty where there
        is none, which is peeked at from the initial state. An idempotency key has no meaning here.

        Raises:
            ServiceError: As for `advance`.
        """
        batcher = self._batcher(self.models.get(timestep.key.model, timestep.version))
        self._check_capacity(batcher)
        now = asyncio.get_running_loop().time()
        if self._rates is not None:
            self._rates.acquire(timestep.key.tenant, timestep.length, now)
        future, done = _result_or_raise()
        batcher.peek(timestep, done, now)
        self._open += 1
        self._open_bytes += timestep.length * batcher.timestep_bytes
        return await future

    async def rollout(self, ask: RolloutRequest) -> RolloutResult:
        """Go on from where a stream stands by its own predictions; commit that where it is asked for.

        Raises:
            ServiceError: It was refused, or its outcome is not known; see `applied`.
        """
        self._check_capacity()
        if self._rates is not None:
            self._rates.acquire(ask.key.tenant, ask.horizon * ask.samples, asyncio.get_running_loop().time())
        self._open += 1
        try:
            return await self._rollouts.run(ask)
        finally:
            self._count_answered(1, 0)

    # ---------------------------------------------------------------- resetting, forgetting

    async def reset(
        self,
        key: StreamKey,
        *,
        snapshot: str | None = None,
        version: int | None = None,
        after: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> StreamPosition:
        """Bring a stream back to its initial state, or to one of its snapshots; see `Resets`.

        Raises:
            ServiceError: It was refused, or its outcome is not known; see `applied`.
        """
        if snapshot is None:
            return await self.resets.to_initial(key, version=version, after=after, idempotency_key=idempotency_key)
        return await self.resets.to_snapshot(
            key, snapshot, version=version, after=after, idempotency_key=idempotency_key
        )

    async def reset_all(self, tenant: str, model: str) -> int:
        """Reset every stream of a model that the tenant has, and return how many.

        Raises:
            ServiceError: Not all could be reset; `applied` is "no" where none was, "unknown" where some may have been.
                No reset is still going on then.
        """
        self.models.get(model)
        cursor: str | None = None
        done: set[str] = set()
        while True:
            try:
                names, cursor = await self.store.page(tenant, model, "", cursor, 500, deadline=self._deadline())
            except ServiceError as exc:
                raise _reset_in_part(len(done), [exc], is_all=False) from exc
            fresh = [name for name in names if name not in done]
            found = await asyncio.gather(*(self._error_of_reset(StreamKey(tenant, model, name)) for name in fresh))
            if errors := [error for error in found if error is not None]:
                raise _reset_in_part(len(done) + len(fresh) - len(errors), errors, is_all=cursor is None)
            done.update(fresh)
            if cursor is None:
                return len(done)

    async def _error_of_reset(self, key: StreamKey) -> ServiceError | None:
        try:
            await self.reset(key)
        except ServiceError as exc:
            return exc
        return None

    async def delete(self, key: StreamKey) -> None:
        """Forget a stream and its snapshots; also where there is none."""
        self.models.get(key.model)
        name = keys.record_key(*key)
        await self.store.delete(name, keys.snapshots_key(name), keys.event_log_key(name), deadline=self._deadline())
        if self._quota is not None:
            self._quota.needs_recount = True
        self._forget(key)

    # ---------------------------------------------------------------- looking

    async def status(self, key: StreamKey) -> StreamStatus:
        """Return where a stream stands.

        Raises:
            ServiceError: `stream_not_found`, `model_not_found`, `state_corrupt`, or the store's.
        """
        self.models.get(key.model)
        raw, ttl = await self.store.load_with_ttl(keys.record_key(*key), deadline=self._deadline())
        if raw is None:
            raise no_stream(key)
        record = decode(raw)
        served = self.models.by_fingerprint(key.model, record.fingerprint)
        return StreamStatus(
            key,
            None if served is None else served.version,
            record.step,
            record.history_hash,
            record.created_ms,
            record.updated_ms,
            max(ttl, 0),
            {} if served is None else last_prediction(served.manifest, record.outputs),
        )

    async def list_streams(
        self, tenant: str, model: str, *, prefix: str = "", cursor: str | None = None, limit: int = 100
    ) -> StreamList:
        """Return one page of a model's streams with their steps."""
        self.models.get(model)
        deadline = self._deadline()
        names, following = await self.store.page(tenant, model, prefix, cursor, limit, deadline=deadline)
        records = [keys.record_key(tenant, model, name) for name in names]
        steps = await self.store.steps(records, deadline=deadline)
        found = [(name, steps[record]) for name, record in zip(names, records, strict=True) if record in steps]
        return StreamList(found, following)

    async def readiness_problems(self) -> list[str]:
        """Return why requests cannot be served now; empty when they can."""
        reasons = []
        if self.draining:
            reasons.append("nothing new is taken")
        if not self.models.names():
            reasons.append("no model is loaded")
        try:
            await self.store.ping(timeout=_READY_PING_S)
        except ServiceError as exc:
            reasons.append(exc.problem)
        return reasons

    def queue_rows(self) -> dict[str, int]:
        """Return the timesteps that wait, by model."""
        rows: dict[str, int] = {}
        for served, batcher in self._batchers.items():
            rows[served.name] = rows.get(served.name, 0) + batcher.rows
        return rows

    # ---------------------------------------------------------------- what a tenant may take

    def check_rate(self, tenant: str) -> None:
        """Count a request of a tenant that moves no stream; those that do are counted by their timesteps.

        Raises:
            ServiceError: `rate_limited`.
        """
        if self._rates is not None:
            self._rates.acquire(tenant, 1, asyncio.get_running_loop().time())

    async def count_streams(self) -> None:
        """Count every tenant's streams in the store, where that is limited and something has changed."""
        if self._quota is None or not self._quota.needs_recount:
            return
        self._quota.begin_count()
        try:
            self._quota.set_counts(await self.store.count_by_tenant(deadline=self._deadline))
        except ServiceError:
            self._quota.needs_recount = True
            raise

    # ---------------------------------------------------------------- ending

    async def drain(self, timeout: float) -> None:
        """Refuse new timesteps and wait until those that were taken are answered, at most `timeout` seconds."""
        self.draining = True
        self._drained.clear()
        if self._open:
            try:
                async with asyncio.timeout(timeout):
                    await self._drained.wait()
            except TimeoutError:
                pass
        self.watch.end_all()

    async def close(self) -> None:
        """Answer what is still open, and let threads and connections go; `drain` comes first."""
        self.draining = True
        self._watchdog.stop()
        self._rollouts.close()
        await self.watch.close()
        await asyncio.gather(*(batcher.stop() for batcher in self._batchers.values()))
        await self.store.close()

    # ---------------------------------------------------------------- helpers

    def _batcher(self, served: ServedModel) -> Batcher:
        batcher = self._batchers.get(served)
        if batcher is None:
            self._close_idle_batchers()
            batcher = self._batchers[served] = Batcher(
                served,
                self.store,
                self._observer,
                self._interests,
                max_batch=self._options.max_batch_size,
                max_wait=self._options.max_wait_s,
                timeout=self._options.request_timeout_s,
                cache=self._cache_memory.new_cache(empty_header(served.fingerprint), served.step_model.initial_state),
                reroute=partial(self._reroute, served),
                on_answered=self._count_answered,
                quota=self._quota,
            )
        return batcher

    def _count_answered(self, rows: int, nbytes: int) -> None:
        self._open -= rows
        self._open_bytes -= nbytes
        if not self._open:
            self._drained.set()

    def _forget(self, key: StreamKey) -> None:
        """Drop what is cached of a stream, under whichever version of its model."""
        name = keys.record_key(*key)
        for batcher in self._batchers.values():
            batcher.cache.drop(name)

    def _close_idle_batchers(self) -> None:
        """Let go of replaced models that nobody uses; a stream of theirs brings its batcher back."""
        for served, batcher in list(self._batchers.items()):
            if batcher.is_idle and not self.models.is_current(served):
                batcher.close()
                self._cache_memory.remove(batcher.cache)
                del self._batchers[served]

    def _reroute(self, asked: ServedModel, pending: QueuedStep, fingerprint: bytes) -> bool:
        """Hand a request to the version that began its stream, if that takes what was checked for the one asked for."""
        served = self.models.by_fingerprint(pending.timestep.key.model, fingerprint)
        if served is None or _tensor_signature(served) != _tensor_signature(asked):
            return False
        self._batcher(served).requeue(pending.for_other_version())
        return True

    def _sample_queues(self) -> None:
        """See how fast the queues move; if one of them is too long, every timestep is looked at as it comes."""
        now = time.monotonic()
        crowded = False
        for batcher in list(self._batchers.values()):
            batcher.sample_load(now)
            crowded = crowded or 2 * batcher.rows >= batcher.admission.max_rows
        self._fast_accept_limit = 0 if crowded else self._options.queue_limit

    def _check_capacity(self, batcher: Batcher | None = None) -> None:
        if self.draining:
            raise ServiceError(
                "draining", "This process is about to end and takes nothing new.", fix="Send it to another replica."
            )
        waiting = sum(batcher.rows for batcher in self._batchers.values())
        waiting += self._rollouts.waiting
        if waiting >= self._options.queue_limit:
            raise ServiceError(
                "overloaded",
                f"{waiting} timesteps and rollouts wait already; the limit is {self._options.queue_limit}.",
                fix="Send the same request again after a pause.",
            )
        if self._open_bytes >= self._most_bytes:
            raise ServiceError(
                "overloaded",
                f"{self._open_bytes} bytes of inputs wait or are run already; the limit is {self._most_bytes}.",
                fix="Send the same request again after a pause.",
            )
        if batcher is not None and (excess := batcher.admission.excess(batcher.rows)) is not None:
            room, seconds = excess
            raise ServiceError(
                "overloaded",
                f"{batcher.rows} timesteps wait for this model already; it answers {room:.0f} in time.",
                fix="Send the same request again after a pause.",
                retry_after_s=seconds,
            )

    def _start_request(self) -> float:
        """Return the deadline of a request that begins now, if there is room for it."""
        self._check_capacity()
        return self._deadline()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._options.request_timeout_s


def _result_or_raise() -> tuple[asyncio.Future[Prediction], ReplyCallback]:
    """Return an answer to wait for, and what takes it; whoever waits may be cancelled."""
    future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()

    def done(result: Prediction | ServiceError) -> None:
        if future.done():
            return
        if isinstance(result, ServiceError):
            future.set_exception(result)
        else:
            future.set_result(result)

    return future, done


def _reset_in_part(done: int, errors: Sequence[ServiceError], *, is_all: bool) -> ServiceError:
    """Return what a reset of all streams is answered that failed.

    Args:
        done: Streams that were reset.
        errors: Why others were not.
        is_all: These are all streams that there were.
    """
    outcomes = {error.applied for error in errors}
    if (outcomes == {"no"} and not done) or (outcomes == {"yes"} and is_all):
        return errors[0]
    return ServiceError(
        "outcome_unknown",
        f"{done} streams were reset before others failed: {errors[0].problem}",
        fix="Send the same request again to reset the others; those that were reset are reset once more.",
        applied="unknown",
    )


def _tensor_signature(served: ServedModel) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return what a model's inputs are: two with the same take each other's timesteps."""
    return [(spec.name, spec.dtype, spec.row_shape) for spec in served.inputs]
