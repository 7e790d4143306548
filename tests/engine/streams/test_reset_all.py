"""A reset of all streams of a model, while some of them are deleted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stepwell.engine.streams.resets import ReplacedPosition
from stepwell.engine.streams.service import StreamService
from stepwell.engine.streams.transaction import StreamOpDeps
from stepwell.store.keys import record_key
from stepwell.store.snapshots import SnapshotStore
from stepwell.store.source_ids import SourceIds
from stepwell.types import StreamKey
from tests.engine.harness import FOLD, step, worker
from tests.graphs import fold, write_models
from tests.servers import Server


class RacingService(StreamService):
    """Deletes the stream `b` after it was listed, and before it is reset."""

    async def reset(self, key: StreamKey, **more: Any) -> ReplacedPosition:
        if key.stream == "b":
            await self.delete(key)
        return await super().reset(key, **more)


async def test_a_stream_that_is_deleted_after_it_was_listed_is_not_created_again(
    tmp_path: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, write_models(tmp_path, fold=fold)) as engine:
        for name in ("a", "b", "c"):
            await engine.steps.advance(step(name, 1))
        store = engine.store
        ids = SourceIds(store, longest_ttl_s=60)
        deps = StreamOpDeps(store, engine.models, engine.admission, None, engine.steps.drop_cached, ids)
        service = RacingService(deps, SnapshotStore(store, ttl_s=None, max_snapshots=4), engine.plans)
        reset = await service.reset_all("default", FOLD)

    assert reset == 2
    with redis_server.client() as client:
        found = [client.exists(record_key("default", FOLD, name)) for name in ("a", "b", "c")]
    assert found == [1, 0, 1]
