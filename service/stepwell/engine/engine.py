"""`Engine`: the parts that serve requests for streams, used by every transport."""

from __future__ import annotations

from collections.abc import Sequence

from stepwell.engine.admission import RequestAdmission
from stepwell.engine.model_runs import ModelRuns, Runs, Watchdog
from stepwell.engine.observer import EngineObserver, Samplers
from stepwell.engine.options import EngineOptions
from stepwell.engine.placing import Placing
from stepwell.engine.publisher import Publisher
from stepwell.engine.stepping.service import StepService
from stepwell.engine.streams.service import StreamService
from stepwell.engine.streams.transaction import StreamOpDeps
from stepwell.engine.tenant_limits import StreamQuota
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell.store.source_ids import SourceIds
from stepwell.store.state_store import StateStore

_READY_PING_S = 1.0


class Engine:
    """Steps, resets and copies streams. All durable data is in the store; the engine has only caches.

    Attributes:
        models: The loaded models.
        steps: Steps streams.
        runs: What runs models besides steps, of add-ons.
        streams: Operations on whole streams: status, reset, deletion.
        publisher: Decides what is published with commits.
        observer: Counts the work.
        options: The options.
        admission: Accepts or rejects requests; rejects all while a drain is in progress.
        store: Loads and commits records.
        placing: Places streams on versions.
        store_reachable: Whether the store replied to the last readiness check.
    """

    def __init__(
        self,
        store: StateStore,
        models: ModelRegistry,
        options: EngineOptions | None = None,
        observer: EngineObserver | None = None,
        *,
        placing: Placing | None = None,
        publisher: Publisher | None = None,
        samplers: Sequence[Samplers] = (),
    ) -> None:
        """Build the engine; the watchdog thread starts at once.

        Args:
            store: Loads and commits records.
            models: The loaded models.
            options: The options; None: the defaults.
            observer: Counts the work.
            placing: Places streams on versions; None: each stays on the one that wrote its record.
            publisher: Decides what is published with commits; None: nothing is.
            samplers: What sees committed batches.
        """
        options, observer = options or EngineOptions(), observer or EngineObserver()
        quota = None if options.tenant_max_streams is None else StreamQuota(options.tenant_max_streams)
        self.publisher = publisher or Publisher()
        self.observer, self.options = observer, options
        self.models = models
        self.store = store
        self.store_reachable = False
        self.admission = RequestAdmission(options, n_waiting=self._waiting)
        self.placing = Placing(models) if placing is None else placing
        longest_ttl_s = max(store.stream_ttl_s, options.snapshot_ttl_s or 0.0)
        source_ids = SourceIds(store, longest_ttl_s=longest_ttl_s)
        self.steps = StepService(
            store,
            models,
            self.admission,
            observer,
            self.publisher,
            quota=quota,
            options=options,
            placing=self.placing,
            samplers=samplers,
            source_ids=source_ids,
        )
        deps = StreamOpDeps(store, models, self.admission, quota, self.steps.drop_cached, source_ids)
        self.streams = StreamService(deps, self.placing)
        self.runs: list[ModelRuns] = []
        self._watchdog = Watchdog(options.run_timeout_s, self._running, self.steps.sample_queues)

    async def readiness_problems(self) -> list[str]:
        """Return the reasons why requests cannot be served now; empty: they can."""
        problems = []
        if self.admission.draining:
            problems.append("a drain has started: no new requests are accepted")
        if not self.models.names() and not self.models.unloaded:  # else nothing could load it through a balancer
            problems.append("no model is loaded")
        try:
            await self.store.ping(timeout=_READY_PING_S)
        except ServiceError as exc:
            problems.append(exc.problem)
            self.store_reachable = False
        else:
            self.store_reachable = True
        return problems

    async def drain(self, timeout: float) -> None:
        """Reject new requests, and wait until the accepted ones have their response, at most `timeout` seconds."""
        await self.admission.drain(timeout)

    async def close(self) -> None:
        """Reply to open requests with errors, and end threads and connections; call `drain` first."""
        self.admission.draining = True
        self._watchdog.stop()
        for runs in self.runs:
            runs.close()
        await self.steps.close()
        await self.store.close()

    def _waiting(self) -> int:
        return self.steps.waiting + sum(runs.waiting for runs in self.runs)

    def _running(self) -> list[Runs]:
        return [served.step_model for served in self.steps.models] + [one for runs in self.runs for one in runs.running]
