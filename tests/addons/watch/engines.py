"""Engines whose commits are published to watchers, as the add-on builds them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.watch.hub import WatchHub
from stepwell.addons.watch.interests import InterestTable
from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.models.registry import ModelRegistry
from stepwell.store.state_store import StateStore


class WatchedEngine(Engine):
    """An engine and its watchers; `watch.start` starts watching."""

    def __init__(
        self, store: StateStore, models: ModelRegistry, options: EngineOptions | None, history: Mapping[str, int]
    ) -> None:
        self.interests = InterestTable(history)
        self.watch = WatchHub(self.interests, store, StorePubSub(store.transport))
        super().__init__(store, models, options, publisher=self.interests)

    async def close(self) -> None:
        await self.watch.close()
        await super().close()


@contextlib.asynccontextmanager
async def watched_worker(
    url: str,
    models: Path,
    *,
    history: Mapping[str, int] | None = None,
    options: EngineOptions | None = None,
    **store: Any,
) -> AsyncIterator[WatchedEngine]:
    """Run an engine, as one worker process does, with every model of a folder and an event log of some streams."""
    shelf = ModelRegistry([models])
    report = await shelf.reload()
    assert not report.failed
    engine = WatchedEngine(StateStore(url, **store), shelf, options, history or {})
    try:
        yield engine
    finally:
        await engine.close()
