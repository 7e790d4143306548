"""`Engine`: all operations on streams, used by every transport."""

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
    """Options of the engine; the defaults are those of the settings.

    Attributes:
        max_batch_size: Maximum number of rows in one run.
        max_wait_s: Seconds that a timestep may wait for others to join its batch.
        queue_limit: Timesteps that may wait, over all models.
        queue_bytes: Bytes of inputs that may wait or run, over all models. Below the limit, one more request is
            accepted, whatever its size.
        request_timeout_s: Seconds from receipt to response.
        run_timeout_s: Seconds that one model run may take.
        cache_bytes: Memory for recently used records.
        tenant_rate: Timesteps per second of one tenant; None: no limit.
        tenant_max_streams: Live streams of one tenant; None: no limit.
        snapshot_ttl_s: Time to live of a stream's snapshots after the last use of one of them, in seconds; None: that
            of idle streams.
        max_snapshots: Snapshots that a stream may have.
        history: By model: the number of events stored per stream, for watchers that reconnect; `*`: all other models.
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
    """Steps, resets, copies and watches streams. All durable data is in the store; the engine has only caches.

    Attributes:
        models: The loaded models.
        store: Loads and commits records.
        watch: The watchers of this worker.
        resets: Replaces states of streams.
        copies: Forks streams, creates snapshots, exports states.
        draining: Whether new requests are rejected, because this worker is about to end.
    """

    def __init__(
        self,
        store: StateStore,
        models: ModelRegistry,
        options: EngineOptions | None = None,
        observer: EngineObserver | None = None,
    ) -> None:
        """Build the engine; `start` starts watching. The watchdog thread starts at once.

        Args:
            store: Loads and commits records.
            models: The loaded models.
            options: The options; None: the defaults.
            observer: Counts the work.
        """
        self.models = models
        self.store = store
        self.draining = False
        self._options = options or EngineOptions()
        self._observer = observer or EngineObserver()
        rate, max_streams = self._options.tenant_rate, self._options.tenant_max_streams
        self._rates = None if rate is None else TenantRates(rate)
        self._quota = None if max_streams is None else StreamQuota(max_streams)
        self._batchers: dict[ServedModel, Batcher] = {}
        self._cache_memory = CacheMemory(self._options.cache_bytes)
        self._interests = InterestTable(self._options.history)
        self.watch = WatchHub(self._interests, store, StorePubSub(store.transport))
        self._open = 0
        self._open_bytes = 0
        self._max_bytes = self._options.queue_bytes
        # With fewer open timesteps, one more is accepted without a closer check.
        self._fast_accept_limit = self._options.queue_limit
        self._drained = asyncio.Event()
        snapshots = SnapshotStore(store, ttl_s=self._options.snapshot_ttl_s, max_snapshots=self._options.max_snapshots)
        sources = StateSources(store, models, snapshots)
        deps = StreamOpDeps(store, models, self._start_request, self._quota, self._drop_cached)
        self.resets = Resets(deps, sources)
        self.copies = StreamCopies(deps, snapshots, sources)
        self._rollouts = RolloutService(deps, self._observer, self._interests, max_rows=self._options.max_batch_size)
        self._watchdog = Watchdog(
            self._options.run_timeout_s,
            lambda: [served.step_model for served in (*self._batchers, *self._rollouts.models)],
            self._sample_queues,
        )

    async def start(self) -> None:
        """Start publishing events to watchers, also to those of other workers."""
        await self.watch.start()

    # ---------------------------------------------------------------- stepping

    def submit(self, timestep: Timestep, done: ReplyCallback, served: ServedModel | None = None) -> None:
        """Step a stream; `done` is called with the result, exactly once, on the event loop.

        If the request is rejected, `done` may be called before this returns.

        Args:
            timestep: The request.
            done: Called with the prediction or the error.
            served: The model version for the timestep's model and version; None: it is looked up.
        """
        try:
            if served is None:
                served = self.models.get(timestep.key.model, timestep.version)
            batcher = self._batchers.get(served) or self._batcher(served)
            now = batcher.time()
            if self.draining or self._open >= self._fast_accept_limit or self._open_bytes >= self._max_bytes:
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
        """Step a stream by a single timestep without an idempotency key; otherwise as `submit`."""
        batcher = self._batchers.get(served) or self._batcher(served)
        now = batcher.time()
        try:
            if self.draining or self._open >= self._fast_accept_limit or self._open_bytes >= self._max_bytes:
                self._check_capacity(batcher)
            if self._rates is not None:
                self._rates.acquire(stream.key.tenant, 1, now)
        except ServiceError as exc:
            done(exc)
            return
        batcher.submit_single(stream, inputs, seq, after, done, now)
        self._open += 1
        self._open_bytes += batcher.timestep_bytes

    def submit_columnar(self, bulk: BulkTimesteps, done: Callable[[BulkOutcomes], None], served: ServedModel) -> bool:
        """Step many streams in one batch, if nothing about the request is unusual; otherwise as `submit`.

        Args:
            bulk: The request.
            done: Called with the results.
            served: The model version for the request's model and version.

        Returns:
            False: It was not accepted; its timesteps have to be submitted one by one, which may reject some of them.
        """
        batcher, rows = self._batchers.get(served) or self._batcher(served), len(bulk.names)
        nbytes = rows * bulk.length * batcher.timestep_bytes
        if self.draining or self._open + rows > self._fast_accept_limit or self._open_bytes + nbytes > self._max_bytes:
            return False
        if not batcher.accepts_columnar(bulk):
            return False
        now = batcher.time()
        if self._rates is not None and not self._rates.try_acquire(bulk.keys[0].tenant, bulk.length * rows, now):
            return False
        batcher.submit_columnar(bulk, done, now)
        self._open += rows
        self._open_bytes += nbytes
        return True

    async def advance(self, timestep: Timestep) -> Prediction:
        """Step a stream and return the committed prediction.

        The step continues if the caller is cancelled: it is applied or not, never in part.

        Raises:
            ServiceError: It was rejected, or its outcome is not known; see `applied`.
        """
        future, done = _future_and_callback()
        self.submit(timestep, done)
        return await future

    async def peek(self, timestep: Timestep) -> Prediction:
        """Return what a step would return; nothing is committed.

        `step` is the step that the stream would reach; `state_id` is that of the stream now. A missing stream is peeked
        from the initial state, and `state_id` is empty. An idempotency key is ignored.

        Raises:
            ServiceError: As for `advance`.
        """
        batcher = self._batcher(self.models.get(timestep.key.model, timestep.version))
        self._check_capacity(batcher)
        now = asyncio.get_running_loop().time()
        if self._rates is not None:
            self._rates.acquire(timestep.key.tenant, timestep.length, now)
        future, done = _future_and_callback()
        batcher.peek(timestep, done, now)
        self._open += 1
        self._open_bytes += timestep.length * batcher.timestep_bytes
        return await future

    async def rollout(self, request: RolloutRequest) -> RolloutResult:
        """Run a stream by the model's own predictions, from its current state; commit the result if requested.

        Raises:
            ServiceError: It was rejected, or its outcome is not known; see `applied`.
        """
        self._check_capacity()
        if self._rates is not None:
            self._rates.acquire(
                request.key.tenant, request.horizon * request.samples, asyncio.get_running_loop().time()
            )
        self._open += 1
        try:
            return await self._rollouts.run(request)
        finally:
            self._count_answered(1, 0)

    # ---------------------------------------------------------------- reset, delete

    async def reset(
        self,
        key: StreamKey,
        *,
        snapshot: str | None = None,
        version: int | None = None,
        after: bytes | None = None,
        idempotency_key: str | None = None,
    ) -> StreamPosition:
        """Set a stream back to its initial state, or to one of its snapshots; see `Resets`.

        Raises:
            ServiceError: It was rejected, or its outcome is not known; see `applied`.
        """
        if snapshot is None:
            return await self.resets.to_initial(key, version=version, after=after, idempotency_key=idempotency_key)
        return await self.resets.to_snapshot(
            key, snapshot, version=version, after=after, idempotency_key=idempotency_key
        )

    async def reset_all(self, tenant: str, model: str) -> int:
        """Reset all streams of a model that the tenant has, and return their number.

        Raises:
            ServiceError: Not all could be reset; `applied` is "no" if none was, "unknown" if some may have been. No
                reset is still running then.
        """
        self.models.get(model)
        cursor: str | None = None
        done: set[str] = set()
        while True:
            try:
                names, cursor = await self.store.page(tenant, model, "", cursor, 500, deadline=self._deadline())
            except ServiceError as exc:
                raise _partial_reset_error(len(done), [exc], is_all=False) from exc
            new_names = [name for name in names if name not in done]
            results = await asyncio.gather(*(self._try_reset(StreamKey(tenant, model, name)) for name in new_names))
            if errors := [error for error in results if error is not None]:
                raise _partial_reset_error(len(done) + len(new_names) - len(errors), errors, is_all=cursor is None)
            done.update(new_names)
            if cursor is None:
                return len(done)

    async def _try_reset(self, key: StreamKey) -> ServiceError | None:
        try:
            await self.reset(key)
        except ServiceError as exc:
            return exc
        return None

    async def delete(self, key: StreamKey) -> None:
        """Delete a stream, its snapshots and its event log, if there are any."""
        self.models.get(key.model)
        name = keys.record_key(*key)
        await self.store.delete(name, keys.snapshots_key(name), keys.event_log_key(name), deadline=self._deadline())
        if self._quota is not None:
            self._quota.needs_recount = True
        self._drop_cached(key)

    # ---------------------------------------------------------------- status

    async def status(self, key: StreamKey) -> StreamStatus:
        """Return a stream's position, version, times and last prediction.

        Raises:
            ServiceError: `stream_not_found`, `model_not_found`, `state_corrupt`, or an error of the store.
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
        names, next_cursor = await self.store.page(tenant, model, prefix, cursor, limit, deadline=deadline)
        records = [keys.record_key(tenant, model, name) for name in names]
        steps = await self.store.steps(records, deadline=deadline)
        streams = [(name, steps[record]) for name, record in zip(names, records, strict=True) if record in steps]
        return StreamList(streams, next_cursor)

    async def readiness_problems(self) -> list[str]:
        """Return the reasons why requests cannot be served now; empty: they can."""
        problems = []
        if self.draining:
            problems.append("a drain has started: no new requests are accepted")
        if not self.models.names():
            problems.append("no model is loaded")
        try:
            await self.store.ping(timeout=_READY_PING_S)
        except ServiceError as exc:
            problems.append(exc.problem)
        return problems

    def queue_rows(self) -> dict[str, int]:
        """Return the number of timesteps that wait, by model."""
        rows: dict[str, int] = {}
        for served, batcher in self._batchers.items():
            rows[served.name] = rows.get(served.name, 0) + batcher.rows
        return rows

    # ---------------------------------------------------------------- limits of tenants

    def check_rate(self, tenant: str) -> None:
        """Count a tenant's request that steps no stream as one timestep; other requests count by their timesteps.

        Raises:
            ServiceError: `rate_limited`.
        """
        if self._rates is not None:
            self._rates.acquire(tenant, 1, asyncio.get_running_loop().time())

    async def count_streams(self) -> None:
        """Count every tenant's streams in the store, if their number is limited and may have changed."""
        if self._quota is None or not self._quota.needs_recount:
            return
        self._quota.begin_count()
        try:
            self._quota.set_counts(await self.store.count_by_tenant(deadline=self._deadline))
        except ServiceError:
            self._quota.needs_recount = True
            raise

    # ---------------------------------------------------------------- drain, close

    async def drain(self, timeout: float) -> None:
        """Reject new requests, and wait until the accepted ones have their response, at most `timeout` seconds."""
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
        """Reply to open requests with errors, and end threads and connections; call `drain` first."""
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

    def _drop_cached(self, key: StreamKey) -> None:
        """Drop a stream's record from the caches of all versions of its model."""
        name = keys.record_key(*key)
        for batcher in self._batchers.values():
            batcher.cache.drop(name)

    def _close_idle_batchers(self) -> None:
        """Close the idle batchers of replaced models; a later request for a stream of theirs creates a new one."""
        for served, batcher in list(self._batchers.items()):
            if batcher.is_idle and not self.models.is_current(served):
                batcher.close()
                self._cache_memory.remove(batcher.cache)
                del self._batchers[served]

    def _reroute(self, requested: ServedModel, queued: QueuedStep, fingerprint: bytes) -> bool:
        """Submit a request to the version that wrote its stream's record; False: not loaded, or it has other inputs."""
        served = self.models.by_fingerprint(queued.timestep.key.model, fingerprint)
        if served is None or _tensor_signature(served) != _tensor_signature(requested):
            return False
        self._batcher(served).requeue(queued.for_other_version())
        return True

    def _sample_queues(self) -> None:
        """Sample how fast the queues drain. While one is long, every timestep is checked against the limits."""
        now = time.monotonic()
        is_long = False
        for batcher in list(self._batchers.values()):
            batcher.sample_load(now)
            is_long = is_long or 2 * batcher.rows >= batcher.admission.max_rows
        self._fast_accept_limit = 0 if is_long else self._options.queue_limit

    def _check_capacity(self, batcher: Batcher | None = None) -> None:
        if self.draining:
            raise ServiceError(
                "draining",
                "This process is about to end and accepts no new requests.",
                fix="Send the same request to another replica.",
            )
        waiting = sum(batcher.rows for batcher in self._batchers.values())
        waiting += self._rollouts.waiting
        if waiting >= self._options.queue_limit:
            raise ServiceError(
                "overloaded",
                f"{waiting} timesteps and rollouts are waiting; the limit is {self._options.queue_limit}.",
                fix="Send the same request again after a pause.",
            )
        if self._open_bytes >= self._max_bytes:
            raise ServiceError(
                "overloaded",
                f"{self._open_bytes} bytes of inputs are waiting or running; the limit is {self._max_bytes}.",
                fix="Send the same request again after a pause.",
            )
        if batcher is not None and (excess := batcher.admission.excess(batcher.rows)) is not None:
            limit, seconds = excess
            raise ServiceError(
                "overloaded",
                f"{batcher.rows} timesteps are waiting for this model; it can process {limit:.0f} in time.",
                fix="Send the same request again after a pause.",
                retry_after_s=seconds,
            )

    def _start_request(self) -> float:
        """Return the deadline of a request that starts now; raises if no more requests are accepted."""
        self._check_capacity()
        return self._deadline()

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._options.request_timeout_s


def _future_and_callback() -> tuple[asyncio.Future[Prediction], ReplyCallback]:
    """Return a future, and the callback that sets its result; the future may be cancelled before that."""
    future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()

    def done(result: Prediction | ServiceError) -> None:
        if future.done():
            return
        if isinstance(result, ServiceError):
            future.set_exception(result)
        else:
            future.set_result(result)

    return future, done


def _partial_reset_error(done: int, errors: Sequence[ServiceError], *, is_all: bool) -> ServiceError:
    """Return the error for a reset of all streams that failed.

    Args:
        done: Number of streams that were reset.
        errors: The errors of the others.
        is_all: Whether the streams of `done` and `errors` are all streams.
    """
    outcomes = {error.applied for error in errors}
    if (outcomes == {"no"} and not done) or (outcomes == {"yes"} and is_all):
        return errors[0]
    return ServiceError(
        "outcome_unknown",
        f"{done} streams were reset before others failed: {errors[0].problem}",
        fix="Send the same request again to reset the others; streams that were reset already are reset again.",
        applied="unknown",
    )


def _tensor_signature(served: ServedModel) -> list[tuple[str, str, tuple[int, ...]]]:
    """Return the inputs of a model: versions with the same inputs accept the same timesteps."""
    return [(spec.name, spec.dtype, spec.row_shape) for spec in served.inputs]
