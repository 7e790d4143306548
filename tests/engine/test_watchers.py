"""Watchers see what any worker commits, complete and in order; slow ones lose the oldest and are told."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.engine.engine import Engine
from service.engine.watchers import CONTROL_TOPIC, Want, Watcher, Watchers
from service.store.channel import Channel
from tests.engine.bench import chunk, models, step, worker
from tests.graphs import fold
from tests.servers import Server


@contextlib.asynccontextmanager
async def watched(engine: Engine) -> AsyncIterator[Watchers]:
    watchers = Watchers(engine)
    channel = Channel(engine.store.wire, watchers.hear, watchers.gap)
    await channel.start(CONTROL_TOPIC, watchers.own_topic)
    watchers.start(channel)
    try:
        yield watchers
    finally:
        await watchers.close()
        await channel.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models(tmp_path, fold=fold)


async def events(watcher: Watcher, n: int) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    while len(found) < n:
        _, some = await watcher.take()
        found += [(e["stream"], e["step"]) for e in some]
    return found


async def test_a_watcher_sees_the_commits_of_another_worker(folder: Path, redis_server: Server) -> None:
    async with (
        worker(redis_server.url, folder) as here,
        worker(redis_server.url, folder) as there,
        watched(here) as watchers,
        watched(there),
    ):
        watcher = Watcher([Want("default", "fold", stream="a")], inputs=True)
        await watchers.add(watcher)
        for x in range(200):
            await there.advance(step("a", x))
            await there.advance(step("unwatched", x))

        assert await events(watcher, 200) == [("a", n) for n in range(1, 201)]


async def test_prefix_and_whole_model_are_followed(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine, watched(engine) as watchers:
        pumps = Watcher([Want("default", "fold", prefix="pump-")], inputs=False)
        everything = Watcher([Want("default", "fold")], inputs=False)
        others = Watcher([Want("tenant2", "fold")], inputs=False)
        for watcher in (pumps, everything, others):
            await watchers.add(watcher)
        await engine.advance(step("pump-1", 1))
        await engine.advance(chunk("fan-1", [1, 2, 3]))

        assert await events(everything, 2) == [("pump-1", 1), ("fan-1", 3)]
        assert await events(pumps, 1) == [("pump-1", 1)]
        assert not others.events


async def test_a_watcher_that_does_not_read_loses_the_oldest_and_is_told(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine, watched(engine) as watchers:
        slow, quick = (Watcher([Want("default", "fold", stream="a")], inputs=False) for _ in range(2))
        for watcher in (slow, quick):
            await watchers.add(watcher)
        for x in range(300):
            await engine.advance(step("a", x))
            await events(quick, 1)
        lost, kept = await slow.take()

    assert lost == 300 - 256
    assert [event["step"] for event in kept] == list(range(45, 301))


async def test_nobody_watching_publishes_nothing(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine, watched(engine):
        await engine.advance(step("a", 1))
        with redis_server.client() as client:
            published = client.info("commandstats").get("cmdstat_publish")

    assert published is None
