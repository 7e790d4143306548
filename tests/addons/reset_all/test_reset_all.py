"""A reset of all streams of a model: page by page, within a time, while streams are deleted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from stepwell.addons.reset_all import reset_all
from stepwell.addons.reset_all.reset_all import reset_all_streams
from stepwell.engine.streams.service import StreamService
from stepwell.engine.streams.transaction import StreamOpDeps
from stepwell.errors import ServiceError
from stepwell.store.keys import record_key
from stepwell.store.source_ids import SourceIds
from stepwell.store.state_store import StateStore
from stepwell.types import StreamKey
from tests.engine.harness import FOLD, step, worker
from tests.graphs import fold, write_models
from tests.servers import Server

B = StreamKey("default", FOLD, "b")


class RacingStore(StateStore):
    """Deletes the stream `b` right before or right after it is loaded for the first time."""

    def __init__(self, server: Server, *, before: bool) -> None:
        super().__init__(server.url)
        self._server = server
        self._before = before
        self._is_deleted = False

    async def load_with_errors(
        self, names: Sequence[str], *, deadline: float, exact: bool = False
    ) -> list[bytes | ServiceError | None]:
        if self._before:
            self._delete()
        values = await super().load_with_errors(names, deadline=deadline, exact=exact)
        self._delete()
        return values

    def _delete(self) -> None:
        if not self._is_deleted:
            self._is_deleted = True
            with self._server.client() as client:
                assert client.delete(record_key(*B)) == 1


@pytest.mark.parametrize("before", [True, False], ids=["before it is read", "before it is written"])
async def test_a_stream_that_is_deleted_after_it_was_listed_is_not_created_again(
    tmp_path: Path, redis_server: Server, before: bool
) -> None:
    async with worker(redis_server.url, write_models(tmp_path, fold=fold)) as engine:
        for name in ("a", "b", "c"):
            await engine.steps.advance(step(name, 1))
        store = RacingStore(redis_server, before=before)
        ids = SourceIds(store, longest_ttl_s=60)
        deps = StreamOpDeps(store, engine.models, engine.admission, None, engine.steps.drop_cached, ids)
        service = StreamService(deps, engine.placing)
        reset = await reset_all_streams(service, "default", FOLD)
        await store.close()

    assert reset == 2
    with redis_server.client() as client:
        found = [client.exists(record_key("default", FOLD, name)) for name in ("a", "b", "c")]
    assert found == [1, 0, 1]


async def test_all_streams_of_a_page_are_reset_in_one_call(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, write_models(tmp_path, fold=fold)) as engine:
        await asyncio.gather(*(engine.steps.advance(step(f"s{n}", n)) for n in range(600)))
        with redis_server.client() as client:
            client.config_resetstat()
            reset = await reset_all_streams(engine.streams, "default", FOLD)
            calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]

    assert (reset, calls) == (600, 2)


async def test_a_reset_of_all_ends_after_its_longest_time(
    tmp_path: Path, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reset_all, "_LONGEST_S", 0.0)
    async with worker(redis_server.url, write_models(tmp_path, fold=fold)) as engine:
        await engine.steps.advance(step("a", 1))
        with pytest.raises(ServiceError) as late:
            await reset_all_streams(engine.streams, "default", FOLD)

    assert (late.value.code, late.value.applied) == ("overloaded", "no")
    assert late.value.problem == "The reset of all streams took longer than 0 s."
