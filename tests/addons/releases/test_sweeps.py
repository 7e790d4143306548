"""A sweep: one worker at a time moves the sleeping streams of a model, however long it pauses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from stepwell.addons.releases import keys
from stepwell.addons.releases.document import ReleaseDocument, ReleaseVersion, Trial
from stepwell.addons.releases.document_changes import end
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.placing import ReleasePlacing
from stepwell.addons.releases.sweep_progress import SweepProgress, read_sweep, request_sweep
from stepwell.addons.releases.sweeper import Sweeper
from stepwell.engine.engine import Engine
from stepwell.engine.streams.transaction import StreamOpDeps
from stepwell.models.registry import ModelRegistry
from stepwell.store.source_ids import SourceIds
from stepwell.store.state_store import StateStore
from stepwell_export.runtime.step_model import StepModel
from tests.engine.harness import FOLD, step
from tests.graphs import fold, write_model
from tests.servers import Server

MANY = [f"s{n}" for n in range(40)]


@asynccontextmanager
async def promoted(url: str, folder: Path, *, lease_s: float) -> AsyncIterator[tuple[Engine, Sweeper]]:
    """Run a worker whose release was promoted from version 1 to 2; its streams have not moved yet."""
    models, releases = ModelRegistry([folder], StepModel), Releases()
    assert not (await models.reload()).failed
    old, new = (ReleaseVersion(n, models.get(FOLD, n).fingerprint) for n in (1, 2))
    trial = Trial(old, new, 2, 0.0, "switch", ((0.0, 0.0),), 0.0, salt="salt")
    releases.put(FOLD, end(ReleaseDocument(FOLD, 2, old, 0.0, trial), "promoted", None, 0.0))
    store = StateStore(url)
    placing = ReleasePlacing(store, models, documents=releases)
    engine = Engine(store, models, placing=placing)
    ids = SourceIds(engine.store, longest_ttl_s=60)
    deps = StreamOpDeps(engine.store, models, engine.admission, None, engine.steps.drop_cached, ids)
    try:
        yield engine, Sweeper(deps, placing, lease_s=lease_s)
    finally:
        await engine.close()


async def test_a_limited_sweep_is_run_by_one_worker_though_its_pauses_are_longer_than_the_lease(
    redis_server: Server, tmp_path: Path
) -> None:
    """40 streams at 20 in a second: the pause after them is two seconds, four times as long as the lease."""
    for version, factor in ((1, 1_000_003), (2, 31)):
        write_model(tmp_path, FOLD, partial(fold, factor), version=version)
    async with AsyncExitStack() as stack:
        (engine, first), (_, second) = [
            await stack.enter_async_context(promoted(redis_server.url, tmp_path, lease_s=0.5)) for _ in range(2)
        ]
        await asyncio.gather(*(engine.steps.advance(step(name, 1, version=1)) for name in MANY))
        await request_sweep(engine.store, FOLD, SweepProgress(1.0, 3, limit_per_s=20, left=1))
        running, holders = asyncio.create_task(first.run()), set[bytes | None]()
        with redis_server.client() as client:
            while not running.done():
                await second.run()
                holders.add(client.get(keys.sweep_lease_key(FOLD)))
        progress = await read_sweep(engine.store, FOLD)

    assert len(holders - {None}) == 1
    assert (progress.moved, progress.left) == (40, 0)
