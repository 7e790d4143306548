"""`StepService`: the model versions that step streams, from their first timestep until nothing needs them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

from stepwell.engine.observer import sampler_of
from stepwell.engine.stepping.batcher import Batcher
from stepwell.engine.stepping.model_runner import ModelRunner
from stepwell.engine.stepping.outcomes import BulkOutcomes
from stepwell.engine.stepping.pipeline import BatchedVersion, PipelineDeps
from stepwell.engine.stepping.record_cache import CacheMemory
from stepwell.errors import ServiceError
from stepwell.models.served import ServedModel
from stepwell.store import keys
from stepwell.store.record_arrays import empty_header
from stepwell.types import BulkTimesteps, Prediction, ReplyCallback, StreamKey, Timestep

if TYPE_CHECKING:
    from stepwell.engine.admission import RequestAdmission
    from stepwell.engine.observer import EngineObserver, Samplers
    from stepwell.engine.options import EngineOptions
    from stepwell.engine.placing import Placing
    from stepwell.engine.publisher import Publisher
    from stepwell.engine.stepping.queued import QueuedStep
    from stepwell.engine.tenant_limits import StreamQuota
    from stepwell.models.registry import ModelRegistry
    from stepwell.store.record import Record
    from stepwell.store.source_ids import SourceIds
    from stepwell.store.state_store import StateStore


class _Versions(dict[ServedModel, BatchedVersion]):
    """What runs model versions. Each is created when it is first looked up: for its first timestep."""

    def __init__(self, new: Callable[[ServedModel], BatchedVersion]) -> None:
        super().__init__()
        self._new = new

    def __missing__(self, served: ServedModel) -> BatchedVersion:
        version = self[served] = self._new(served)
        return version


class StepService:
    """Steps streams, in batches of each model version.

    Attributes:
        versions: What runs each model version, joined ones included; one that is not there yet is created.

    Args:
        store: Loads and commits records.
        models: The loaded models.
        admission: Accepts or rejects requests.
        observer: Counts the work.
        publisher: Decides what is published with commits.
        quota: Limit on the streams of a tenant; None: no limit.
        options: The options of the engine.
        placing: Places streams on versions.
        samplers: What sees committed batches.
        source_ids: Writes the ids of sources.
    """

    def __init__(
        self,
        store: StateStore,
        models: ModelRegistry,
        admission: RequestAdmission,
        observer: EngineObserver,
        publisher: Publisher,
        *,
        quota: StreamQuota | None,
        options: EngineOptions,
        placing: Placing,
        samplers: Sequence[Samplers],
        source_ids: SourceIds,
    ) -> None:
        self._samplers = samplers
        self._placing = placing
        self._models = models
        self._admission = admission
        self._batchers: dict[str, Batcher] = {}
        self.versions = _Versions(self._new_version)
        self._cache_memory = CacheMemory(options.cache_bytes)
        self._observer = observer
        self._options = options
        self._new_deps = partial(
            PipelineDeps,
            store=store,
            observer=observer,
            publisher=publisher,
            timeout=options.request_timeout_s,
            quota=quota,
            committed=placing.committed,
            source_ids=source_ids,
        )

    def submit(
        self, timestep: Timestep, done: ReplyCallback, served: ServedModel | None = None, *, peek: bool = False
    ) -> None:
        """Step a stream; `done` is called with the result, exactly once, on the event loop.

        If the request is rejected, `done` may be called before this returns.

        Args:
            timestep: The request.
            done: Called with the prediction or the error.
            served: The model version for the timestep's model and version; None: it is looked up.
            peek: Only the prediction is wanted; nothing is committed.
        """
        if served is None:
            try:
                served = self._models.get(timestep.key.model, timestep.version)
            except ServiceError as exc:
                done(exc)
                return
        self.versions[served].submit(timestep, done, peek=peek)

    def submit_bulk(
        self,
        bulk: BulkTimesteps,
        done: Callable[[BulkOutcomes], None],
        served: ServedModel,
        faults: Mapping[int, ServiceError] = MappingProxyType({}),
    ) -> None:
        """Step many streams; see `BatchedVersion.submit_bulk`."""
        self.versions[served].submit_bulk(bulk, done, faults)

    async def advance(self, timestep: Timestep) -> Prediction:
        """Step a stream and return the committed prediction.

        The step continues if the caller is cancelled: it is applied or not, never in part.

        Raises:
            ServiceError: It was rejected, or its outcome is not known; see `applied`.
        """
        return await self._result(timestep, peek=False)

    async def peek(self, timestep: Timestep) -> Prediction:
        """Return what a step would return; nothing is committed.

        `step` is the step that the stream would reach; `state_id` is that of the stream now. A missing stream is peeked
        from the initial state, and `state_id` is empty. An idempotency key is ignored.

        Raises:
            ServiceError: As for `advance`.
        """
        return await self._result(timestep, peek=True)

    async def _result(self, timestep: Timestep, *, peek: bool) -> Prediction:
        future: asyncio.Future[Prediction] = asyncio.get_running_loop().create_future()

        def done(result: Prediction | ServiceError) -> None:
            if future.done():  # cancelled
                return
            if isinstance(result, ServiceError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.submit(timestep, done, peek=peek)
        return await future

    @property
    def models(self) -> list[ServedModel]:
        """The model versions, joined ones included, that have run timesteps."""
        return list(self.versions)

    @property
    def waiting(self) -> int:
        """The number of timesteps that wait."""
        return sum(batcher.queue.rows for batcher in self._batchers.values())

    def waiting_by_model(self) -> dict[str, int]:
        """Return the number of timesteps that wait, by model."""
        return {name: batcher.queue.rows for name, batcher in self._batchers.items()}

    def cached_by_model(self) -> dict[str, int]:
        """Return the number of streams whose records are cached, by model."""
        streams: dict[str, int] = {}
        for served, version in self.versions.items():
            streams[served.name] = streams.get(served.name, 0) + len(version.cache)
        return streams

    def drop_cached(self, key: StreamKey) -> None:
        """Drop a stream's record from the caches of all versions of its model."""
        name = keys.record_key(*key)
        for version in self.versions.values():
            version.cache.drop(name)

    def sample_queues(self) -> None:
        """Sample how fast the queues drain; may be called from any thread.

        While a queue is long, every timestep is checked against the limits.
        """
        now = time.monotonic()
        is_long = False
        for batcher in list(self._batchers.values()):
            batcher.sample_load(now)
            is_long = is_long or 2 * batcher.queue.rows >= batcher.admission.max_rows
        self._admission.quick_limit = 0 if is_long else self._admission.queue_limit

    async def close(self) -> None:
        """Reply to open timesteps with errors, and end the models' threads."""
        await asyncio.gather(*(batcher.stop() for batcher in self._batchers.values()))

    def close_unused(self) -> None:
        """Close joined and replaced models that have neither a timestep nor a cached record."""
        self._close_idle(cached=False)

    def _new_version(self, served: ServedModel) -> BatchedVersion:
        self._close_idle()
        cache = self._cache_memory.new_cache(empty_header(served.fingerprint), served.step_model.initial_state)

        def hand_over(row: QueuedStep, fingerprint: bytes) -> bool:
            return batcher.hand_over(version, row, fingerprint)

        deps = self._new_deps(
            served,
            cache=cache,
            runner=ModelRunner(served, self._observer),
            hand_over=hand_over,
            placement=self._placing.placement(served, hand_over, partial(self._changed_error, served)),
            sampler=sampler_of(served, self._samplers),
        )
        batcher = self._batchers.get(served.name) or self._batcher(served.name)
        version = BatchedVersion(batcher, deps, self._options.max_batch_size)
        batcher.add(version)
        return version

    def _batcher(self, name: str) -> Batcher:
        batcher = self._batchers[name] = Batcher(
            name,
            self._models,
            self.versions.__getitem__,
            placing=self._placing,
            timeout=self._options.request_timeout_s,
            max_wait=self._options.max_wait_s,
            requests=self._admission,
        )
        return batcher

    def _close_idle(self, *, cached: bool = True) -> None:
        """Close replaced models that run nothing; a later request for a stream of theirs begins anew.

        Args:
            cached: Also those that have cached records.
        """
        for served, version in list(self.versions.items()):
            is_idle = not version.in_use and (cached or not len(version.cache))
            if is_idle and not self._models.is_current(served):
                version.runner.close()
                for each in self._samplers:
                    each.end_sampler(served)
                self._cache_memory.remove(version.cache)
                del self.versions[served], version.batcher.versions[served]
        self._batchers = {
            name: batcher for name, batcher in self._batchers.items() if batcher.versions or not batcher.is_idle
        }

    def _changed_error(self, requested: ServedModel, queued: QueuedStep, record: Record) -> ServiceError:
        return self._models.changed_error(
            queued.timestep.key.model, record.fingerprint, requested, step=record.step, state_id=record.history_hash
        )
