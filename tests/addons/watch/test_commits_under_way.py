"""A watch is confirmed once no commit is under way that was begun without it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.rollouts.requests import RolloutRequest
from stepwell.addons.watch.hub import WatchHub
from stepwell.addons.watch.interests import InterestTable, Subscription
from stepwell.addons.watch.watcher_queue import EventGap, Subscriber
from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.store.commits_under_way import CommitsUnderWay
from stepwell.store.keys import record_key
from stepwell.store.state_store import StateStore
from stepwell.types import StreamKey
from tests.addons.rollouts.harness import rollouts_of
from tests.addons.watch.engines import watched_worker
from tests.engine.harness import step
from tests.graphs import fold, write_models
from tests.servers import Server

ONE = Subscription("default", "fold", "a")


@contextlib.asynccontextmanager
async def watch_hub(url: str) -> AsyncIterator[tuple[WatchHub, InterestTable, StateStore]]:
    """Run the watch hub of a worker."""
    store, interests = StateStore(url), InterestTable({})
    hub = WatchHub(interests, store, StorePubSub(store.transport))
    await hub.start()
    try:
        yield hub, interests, store
    finally:
        await hub.close()
        await store.close()


def stepped(engine: Engine) -> Coroutine[Any, Any, object]:
    return engine.steps.advance(step("a", 1))


def rolled_out(engine: Engine) -> Coroutine[Any, Any, object]:
    key, inputs = StreamKey("default", "fold", "a"), {"x": np.array([1], np.int64)}
    return rollouts_of(engine).run(RolloutRequest(key, 2, inputs, feedback={"x": "y"}, commit=True))


async def several_iterations() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_commits_that_have_begun_are_waited_for_and_later_ones_are_not() -> None:
    commits = CommitsUnderWay()
    with commits.newest:
        with commits.newest:
            waiting = asyncio.create_task(commits.wait())
            await several_iterations()
        with commits.newest:
            await several_iterations()
            assert not waiting.done()
    with commits.newest:
        await waiting


async def test_everybody_who_waits_waits_for_the_oldest_commit() -> None:
    commits = CommitsUnderWay()
    with commits.newest:
        waiting = [asyncio.create_task(commits.wait()) for _ in range(3)]
        await several_iterations()
        assert not any(one.done() for one in waiting)
    await asyncio.gather(*waiting)


async def test_a_watch_is_confirmed_after_the_commits_that_another_worker_has_begun_without_it(
    redis_server: Server,
) -> None:
    order: list[str] = []
    watcher = Subscriber([ONE], inputs=False)
    async with watch_hub(redis_server.url) as (here, *_), watch_hub(redis_server.url) as (_, interests, store):
        with store.commits_under_way.newest:
            watching = asyncio.create_task(here.add(watcher))
            watching.add_done_callback(lambda _: order.append("confirmed"))
            with redis_server.client() as client:
                while "fold" not in interests.watched or interests.publish_all:
                    await asyncio.to_thread(client.ping)
                for _ in range(20):
                    await asyncio.to_thread(client.ping)
            order.append("committed")
        await watching

    assert order == ["committed", "confirmed"]


@pytest.mark.parametrize("begin", [stepped, rolled_out])
async def test_a_watch_is_confirmed_after_the_commit_of_a_step_or_rollout_that_has_begun_without_it(
    redis_server: Server, tmp_path: Path, begin: Callable[[Engine], Coroutine[Any, Any, object]]
) -> None:
    """The commit is applied, and then waits for a replica, of which there is none."""
    folder = write_models(tmp_path, fold=fold)
    async with (
        watched_worker(redis_server.url, folder, durability="replica", timeout=3) as engine,
        watch_hub(redis_server.url) as (here, *_),
    ):
        await engine.watch.start()
        committing = asyncio.create_task(begin(engine))
        with redis_server.client() as client:
            while not await asyncio.to_thread(client.exists, record_key("default", "fold", "a")):
                assert not committing.done()
        await here.add(Subscriber([ONE], inputs=False))

        assert committing.done()
        with pytest.raises(ServiceError) as refused:
            await committing
        assert (refused.value.code, refused.value.applied) == ("not_durable", "yes")


async def test_a_watch_that_a_worker_does_not_acknowledge_begins_with_a_gap(redis_server: Server) -> None:
    watcher = Subscriber([ONE], inputs=False)
    async with watch_hub(redis_server.url) as (here, *_), watch_hub(redis_server.url) as (*_, store):
        with store.commits_under_way.newest:  # it never ends
            await here.add(watcher)

    assert await watcher.drain() == [EventGap(1)]
