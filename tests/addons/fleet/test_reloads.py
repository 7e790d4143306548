"""A reload in all workers of a store, and its report."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from stepwell.addons.fleet.reloads import SharedReloads
from stepwell.models.registry import ModelRegistry
from stepwell.store.state_store import StateStore
from tests.graphs import count, fold, write_model
from tests.servers import Server


@contextlib.asynccontextmanager
async def started(server: Server, models: Path) -> AsyncIterator[SharedReloads]:
    """Run a worker that has loaded its models, and follows the others."""
    store = StateStore(server.url)
    reloads = SharedReloads(store, ModelRegistry([models]))
    await reloads.load()
    following = asyncio.create_task(reloads.run())
    try:
        yield reloads
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await reloads.close()
        await store.close()


async def test_a_model_is_reported_as_loaded_by_a_worker_that_has_started_after_its_file_came(
    redis_server: Server, tmp_path: Path
) -> None:
    write_model(tmp_path, "fold", fold)
    async with started(redis_server, tmp_path):
        write_model(tmp_path, "later", count)
        async with started(redis_server, tmp_path) as newest:
            assert (await newest.reload()).loaded == ["later/1"]


async def test_a_model_that_only_another_replica_has_is_not_reported_as_loaded(
    redis_server: Server, tmp_path: Path
) -> None:
    write_model(tmp_path / "one", "fold", fold)
    write_model(tmp_path / "two", "fold", fold)
    async with started(redis_server, tmp_path / "one") as one, started(redis_server, tmp_path / "two"):
        write_model(tmp_path / "two", "later", count)

        assert (await one.reload()).loaded == []
