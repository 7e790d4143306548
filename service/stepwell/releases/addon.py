"""`WorkerReleases`: the parts of releases in one worker: the follower, the counter of streams, and the service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from typing import Any, Final

from stepwell.background import run_forever
from stepwell.engine.streams.service import StreamService
from stepwell.errors import ServiceError
from stepwell.releases.follower import ReleaseFollower
from stepwell.releases.gate import Gates
from stepwell.releases.placing import ReleasePlacing
from stepwell.releases.service import ReleaseService
from stepwell.releases.store import ReleaseStore
from stepwell.releases.stream_counts import StreamCounter
from stepwell.releases.stream_moves import StreamMoves
from stepwell.releases.sweeper import Sweeper
from stepwell.releases.view import ended_by_model, streams_by_version
from stepwell.store.pubsub import StorePubSub

_FIRST_READ_S: Final = 2.0
_COUNT_EVERY_S: Final = 1.0
_COMPARE_EVERY_S: Final = 1.0


class WorkerReleases:
    """Releases in one worker.

    Attributes:
        service: Starts, changes and ends releases.
        gates: Judge the releases that have a gate, and abort those above a limit.
    """

    def __init__(self, placing: ReleasePlacing, streams: StreamService) -> None:
        """Create the parts; nothing is read yet.

        Args:
            placing: Places the streams of the engine.
            streams: The engine's operations on streams.
        """
        deps, models, releases = streams.deps, streams.deps.models, placing.documents
        store, documents = deps.store, ReleaseStore(deps.store)
        self._placing = placing
        self._sweeper = Sweeper(deps, placing)
        self._models = models
        self._releases = releases
        self._counter = StreamCounter(documents, releases)
        self._follower = ReleaseFollower(documents, releases, models, StorePubSub(store.transport))
        moves = StreamMoves(deps, placing, streams.sources)
        self.service = ReleaseService(documents, models, self._follower, self._counter, moves)
        self.gates = Gates(store, releases, self.service)

    async def load(self) -> None:
        """Read the documents for the first time, so that the first request finds them.

        If the store is unavailable, nothing can be stepped, and `background` reads them later.
        """
        with contextlib.suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(_FIRST_READ_S):
                await self._follower.refresh()

    def background(self) -> Iterator[Coroutine[Any, Any, None]]:
        """Yield the background work, each to run in its own task."""
        yield self._follower.follow()
        yield run_forever(self._counter.refresh, every_s=_COUNT_EVERY_S, name="Counting streams by version")
        yield run_forever(self._compare, every_s=_COMPARE_EVERY_S, name="Comparing the versions of releases")
        yield run_forever(self._sweeper.run, every_s=_COMPARE_EVERY_S, name="Moving streams that sleep")

    async def close(self) -> None:
        """Add what was counted since the last time."""
        await self._placing.comparison.flush()

    async def _compare(self) -> None:
        await self._placing.comparison.flush()
        await self.gates.judge()

    def ended(self) -> dict[tuple[str, ...], float]:
        """Return when the last trial of each model ended, seconds since 1970, by model and how it ended."""
        return ended_by_model(self._releases)

    def streams(self) -> dict[tuple[str, ...], float]:
        """Return the number of streams by model and version, as they were counted last."""
        return streams_by_version(self._releases, self._models, self._counter.counts)
