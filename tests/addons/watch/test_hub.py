"""Subscribers receive what any worker commits, in order; slow ones lose the oldest events and receive a gap."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.watch.commit_events import CommitEvent, PackedTensor
from stepwell.addons.watch.interests import Subscription
from stepwell.addons.watch.watcher_queue import MAX_QUEUED_BYTES, EventGap, Subscriber
from stepwell.types import StreamKey
from tests.addons.watch.engines import WatchedEngine, watched_worker
from tests.engine.harness import chunk, step
from tests.graphs import fold, write_models
from tests.servers import Server

A = StreamKey("default", "fold", "a")
ONE = Subscription("default", "fold", "a")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


@contextlib.asynccontextmanager
async def watch_engine(url: str, folder: Path, *, history: int = 0, **more: Any) -> AsyncIterator[WatchedEngine]:
    """Run an engine that publishes commits to subscribers."""
    async with watched_worker(url, folder, history={"fold": history}, **more) as engine:
        await engine.watch.start()
        yield engine


@contextlib.asynccontextmanager
async def subscribed(
    engine: WatchedEngine, *subscriptions: Subscription, since: int | None = None
) -> AsyncIterator[Subscriber]:
    watcher = Subscriber(subscriptions, inputs=True, since=None if since is None else {A: since})
    await engine.watch.add(watcher)
    try:
        yield watcher
    finally:
        engine.watch.remove(watcher)


async def received(watcher: Subscriber, n: int) -> list[Any]:
    """Return the next n items: `(stream, step)` for an event, the number of timesteps for a gap."""
    found: list[Any] = []
    while len(found) < n:
        news = await watcher.drain()
        found += [one.timesteps if isinstance(one, EventGap) else (one.stream, one.step) for one in news]
    return found


async def received_events(watcher: Subscriber, n: int) -> list[CommitEvent]:
    """Return the next n events."""
    found: list[CommitEvent] = []
    while len(found) < n:
        found += [news for news in await watcher.drain() if isinstance(news, CommitEvent)]
    return found


def steps(numbers: Sequence[int]) -> list[tuple[str, int]]:
    return [("a", number) for number in numbers]


def values(tensors: Mapping[str, PackedTensor]) -> Any:
    """Return the only tensor, as lists."""
    [packed] = tensors.values()
    return packed.array().tolist()


async def advance(engine: WatchedEngine, n: int, stream: str = "a") -> None:
    for x in range(n):
        await engine.steps.advance(step(stream, x))


async def test_a_subscriber_receives_the_commits_of_another_worker(folder: Path, redis_server: Server) -> None:
    async with (
        watch_engine(redis_server.url, folder) as here,
        watch_engine(redis_server.url, folder) as there,
        subscribed(here, ONE) as watcher,
    ):
        for x in range(100):
            await there.steps.advance(step("a", x))
            await there.steps.advance(step("unwatched", x))
        await here.steps.advance(step("a", 100))

        assert await received(watcher, 101) == steps(range(1, 102))


async def test_commits_of_two_workers_arrive_in_order(folder: Path, redis_server: Server) -> None:
    async with (
        watch_engine(redis_server.url, folder) as here,
        watch_engine(redis_server.url, folder) as there,
        subscribed(here, ONE) as watcher,
    ):
        for x in range(100):
            await (here, there)[x % 2].steps.advance(step("a", x))

        assert await received(watcher, 100) == steps(range(1, 101))


async def test_an_event_has_the_inputs_and_the_predictions(folder: Path, redis_server: Server) -> None:
    async with watch_engine(redis_server.url, folder) as engine, subscribed(engine, ONE) as watcher:
        first = await engine.steps.advance(step("a", 7))
        second = await engine.steps.advance(chunk("a", [8, 9]))
        one, two = await received_events(watcher, 2)

        assert (one.state_id, values(one.inputs), values(two.inputs)) == (first.state_id, [7], [[8], [9]])
        assert values(one.outputs) == first.outputs["y"][0].tolist()
        assert values(two.outputs) == second.outputs["y"].tolist()


class NeverHashed(bytes):
    """A message that nobody may hash: for one of megabytes that takes milliseconds."""

    __hash__ = None  # type: ignore[assignment]


async def test_events_are_told_from_marks_by_their_topic(folder: Path, redis_server: Server) -> None:
    event = CommitEvent(*A, 3, 1, b"i" * 16, {}, {})
    async with watch_engine(redis_server.url, folder) as engine, subscribed(engine, ONE) as watcher:
        engine.watch.on_message(ONE.topic, NeverHashed(event.encode()))

        assert await received(watcher, 1) == steps([3])


async def test_a_prefix_and_a_whole_model_can_be_followed(folder: Path, redis_server: Server) -> None:
    async with (
        watch_engine(redis_server.url, folder) as engine,
        subscribed(engine, Subscription("default", "fold", None, "pump-")) as pumps,
        subscribed(engine, Subscription("default", "fold")) as everything,
        subscribed(engine, Subscription("tenant2", "fold")) as others,
    ):
        await engine.steps.advance(step("pump-1", 1))
        await engine.steps.advance(chunk("fan-1", [1, 2, 3]))

        assert await received(everything, 2) == [("pump-1", 1), ("fan-1", 3)]
        assert await received(pumps, 1) == [("pump-1", 1)]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(others.drain(), 0.01)


async def test_a_subscriber_that_does_not_read_loses_the_oldest_events_and_receives_a_gap(
    folder: Path, redis_server: Server
) -> None:
    async with (
        watch_engine(redis_server.url, folder) as engine,
        subscribed(engine, ONE) as slow,
        subscribed(engine, ONE) as quick,
    ):
        for x in range(300):
            await engine.steps.advance(step("a", x))
            await received(quick, 1)

        assert await received(slow, 257) == [300 - 256, *steps(range(45, 301))]


async def test_an_event_that_the_event_log_had_already_is_delivered_once() -> None:
    """In a Cluster an event may arrive on its channel later than the mark of the read on the topic."""
    watcher = Subscriber([ONE], inputs=False, since={A: 1})
    events = [CommitEvent(*A, number, 1, bytes([number] * 16), {}, {}) for number in range(1, 6)]
    catch_up = watcher.begin_catch_up()[A]
    catch_up.is_read = True
    for event in events[1:4]:
        watcher.push(event)
    watcher.deliver_backlog(A, 0, events[1:3], catch_up)
    watcher.push(events[2])
    watcher.push(events[4])

    assert await received(watcher, 4) == steps([2, 3, 4, 5])


async def test_the_buffer_is_bounded_in_bytes() -> None:
    watcher = Subscriber([ONE], inputs=True)
    large = {"y": PackedTensor("uint8", (MAX_QUEUED_BYTES // 10,), bytes(MAX_QUEUED_BYTES // 10))}
    for number in range(1, 31):
        watcher.push(CommitEvent(*A, number, 1, b"", large, {}))

    assert await received(watcher, 11) == [20, *steps(range(21, 31))]


async def test_streams_without_subscribers_are_not_published(folder: Path, redis_server: Server) -> None:
    async with watch_engine(redis_server.url, folder) as engine, subscribed(engine, ONE):
        with redis_server.client() as client:
            before = client.info("commandstats")["cmdstat_publish"]["calls"]
            await advance(engine, 5, "unwatched")
            unwatched = client.info("commandstats")["cmdstat_publish"]["calls"]
            await advance(engine, 5, "a")
            watched = client.info("commandstats")["cmdstat_publish"]["calls"]

    assert (unwatched - before, watched - unwatched) == (0, 5)


async def test_a_worker_that_starts_later_publishes_to_existing_subscribers(folder: Path, redis_server: Server) -> None:
    async with watch_engine(redis_server.url, folder) as here, subscribed(here, ONE) as watcher:
        async with watch_engine(redis_server.url, folder) as late:
            await late.steps.advance(step("a", 1))

        assert await received(watcher, 1) == steps([1])


async def test_a_subscriber_that_reconnects_while_the_stream_is_stepped_misses_nothing(
    folder: Path, redis_server: Server
) -> None:
    async with (
        watch_engine(redis_server.url, folder, history=50) as here,
        watch_engine(redis_server.url, folder, history=50) as there,
    ):
        moving = asyncio.create_task(advance(there, 600))
        seen: list[Any] = []
        while len(seen) < 600:
            async with subscribed(here, ONE, since=len(seen)) as watcher:
                seen += await received(watcher, min(20, 600 - len(seen)))
        await moving

    assert seen == steps(range(1, 601))


async def test_a_deleted_stream_leaves_no_event_log(folder: Path, redis_server: Server) -> None:
    async with watch_engine(redis_server.url, folder, history=10) as engine:
        await advance(engine, 3)
        await engine.streams.delete(A)

        with redis_server.client() as client:
            assert client.dbsize() == 0


async def test_the_event_log_expires_with_its_stream(folder: Path, redis_server: Server) -> None:
    async with watch_engine(redis_server.url, folder, history=10, stream_ttl_s=100) as engine:
        await advance(engine, 1)

        with redis_server.client() as client:
            lives = [client.ttl(key) for key in client.scan_iter()]
    assert len(lives) == 2
    assert all(100 < left <= 125 for left in lives)


async def test_a_foreign_value_under_the_key_of_an_event_log_stops_no_step(folder: Path, redis_server: Server) -> None:
    async with watch_engine(redis_server.url, folder, history=10) as engine:
        with redis_server.client() as client:
            client.set("swl:1:{default/fold/a}:h", "foreign")
        await advance(engine, 3)

        assert (await engine.streams.status(A)).step == 3


async def test_a_worker_that_lost_its_subscription_recovers_what_its_subscribers_missed(
    folder: Path, redis_server: Server
) -> None:
    async with (
        watch_engine(redis_server.url, folder, history=100) as here,
        watch_engine(redis_server.url, folder, history=100) as there,
        subscribed(here, ONE) as watcher,
        subscribed(here, Subscription("default", "fold", None, "a")) as by_prefix,
    ):
        await advance(there, 5)
        assert await received(watcher, 5) == await received(by_prefix, 5) == steps(range(1, 6))
        with redis_server.client() as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await advance(there, 5)
        assert await received(watcher, 5) == steps(range(6, 11))

        assert await received(by_prefix, 1) == [1]  # at least one timestep
        await advance(there, 1)
        assert await received(by_prefix, 1) == await received(watcher, 1) == steps([11])


async def test_a_worker_that_cannot_receive_subscriptions_publishes_everything(
    folder: Path, redis_server: Server
) -> None:
    async with watch_engine(redis_server.url, folder) as engine:
        engine.watch.on_disconnect()
        with redis_server.client() as client:
            before = client.info("commandstats")["cmdstat_publish"]["calls"]
            await advance(engine, 5)

            assert client.info("commandstats")["cmdstat_publish"]["calls"] == before + 5


async def test_a_hub_that_ends_closes_its_watchers(folder: Path, redis_server: Server) -> None:
    async with watch_engine(redis_server.url, folder) as engine, subscribed(engine, ONE) as watcher:
        engine.watch.end_all()
        await watcher.drain()

        assert watcher.closed
