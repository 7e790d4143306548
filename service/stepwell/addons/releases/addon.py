"""`ReleasesAddon`: releases in one worker: where streams are stepped, the routes, and the work in the background."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI

from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.releases.follower import ReleaseFollower
from stepwell.addons.releases.gate import Gates
from stepwell.addons.releases.metrics import ReleaseMetrics
from stepwell.addons.releases.move_one import StreamMoves
from stepwell.addons.releases.placing import ReleasePlacing
from stepwell.addons.releases.routes import add_routes
from stepwell.addons.releases.service import ReleaseService
from stepwell.addons.releases.store import ReleaseStore
from stepwell.addons.releases.stream_counts import StreamCounter
from stepwell.addons.releases.sweeper import Sweeper
from stepwell.addons.releases.view import ended_by_model, streams_by_version
from stepwell.background import run_forever
from stepwell.errors import ServiceError
from stepwell.service_addon import ServiceAddon

if TYPE_CHECKING:
    from stepwell.addons.releases.translations import Translations
    from stepwell.engine.engine import Engine
    from stepwell.models.registry import ModelRegistry
    from stepwell.requests.context import AppContext
    from stepwell.store.state_store import StateStore
    from stepwell.store.transport.connection import Argument

_FIRST_READ_S: Final = 2.0
_EVERY_S: Final = 1.0


class ReleasesAddon(ServiceAddon):
    """New versions take over the streams of a model, by its release document.

    Attributes:
        service: Starts, changes and ends releases; set while the service runs.
    """

    service: ReleaseService
    _placing: ReleasePlacing
    _follower: ReleaseFollower

    def __init__(self, context: AppContext, version: str) -> None:
        super().__init__(context, version)
        self._metrics = ReleaseMetrics(context.metrics.registry)
        self._metrics.add_gauges(context.metrics)

    @staticmethod
    def store_commands(record: str) -> Iterator[Sequence[Argument]]:
        """Yield what counts a trial, and what writes and reads a document."""
        key = f"{record}:trial"
        yield "HINCRBY", key, "steps", 1
        yield "HINCRBYFLOAT", key, "run_s", 1
        yield "HSET", key, "release", b""
        yield "HGETALL", key
        yield "DEL", key

    def add_routes(self, app: FastAPI) -> None:
        """Declare the routes."""
        add_routes(app, self)

    def placing(self, store: StateStore, models: ModelRegistry) -> ReleasePlacing:
        """Return what places the streams of the engine."""
        if not self.context.metrics.is_shared:  # series cannot be removed from shared files
            self.context.metrics.on_refresh(lambda: self._metrics.keep_models(models.names()))
        self._placing = ReleasePlacing(store, models, self._metrics)
        return self._placing

    def model_runs(self, engine: Engine) -> Translations:
        """Return the translations of states, whose runs are ended as those of models are."""
        return self._placing.translations

    async def start(self) -> None:
        """Read the documents for the first time, so that the first request finds them.

        If the store is unavailable, nothing can be stepped, and the work in the background reads them later.
        """
        with contextlib.suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(_FIRST_READ_S):
                await self._follower.refresh()

    def background(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Follow the documents, count streams, compare versions, judge gates, and run sweeps."""
        placing, streams = self._placing, self.context.engine.streams
        deps, documents = streams.deps, placing.documents
        store, models = ReleaseStore(deps.store), deps.models
        counter = StreamCounter(store, documents)
        self._follower = ReleaseFollower(
            store, documents, models, StorePubSub(deps.store.transport), placing.translations
        )
        moves, sweeper = StreamMoves(deps, placing), Sweeper(deps, placing)
        self.service = ReleaseService(store, models, self._follower, counter, moves)
        gates = Gates(deps.store, documents, self.service)

        async def compare() -> None:
            await placing.comparison.flush()
            await gates.judge()

        self.context.metrics.read_gauges(
            streams=lambda: streams_by_version(documents, models, counter.counts),
            release_ended_timestamp_seconds=lambda: ended_by_model(documents),
            release_gate_waits=gates.waiting,
        )
        yield self._follower.follow()
        yield run_forever(counter.refresh, every_s=_EVERY_S, name="Counting streams by version")
        yield run_forever(compare, every_s=_EVERY_S, name="Comparing the versions of releases")
        yield run_forever(sweeper.run, every_s=_EVERY_S, name="Moving streams that sleep")

    async def close(self) -> None:
        """Add what was counted since the last time."""
        await self._placing.comparison.flush()
