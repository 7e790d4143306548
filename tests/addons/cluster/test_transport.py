"""Streams on a Redis Cluster: slots that move, nodes that fail, and what clients see of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from websockets.sync.client import connect

from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.addons.watch.commit_events import CommitEvent
from stepwell.addons.watch.interests import Subscription
from stepwell.addons.watch.watcher_queue import Subscriber
from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.errors import OutcomeUnknownError, ServiceError, StoreUnavailableError
from stepwell.store import listing
from stepwell.store.checks.safety import UnsafeStoreError, check_safe, read_server_info
from stepwell.store.commits import Outcome
from stepwell.store.keys import idempotency_key_of, record_key
from stepwell.store.state_store import StateStore
from stepwell.store.transport.connection import NotSentError
from stepwell.store.transport.transport import open_transport
from stepwell.types import StreamKey
from tests.addons.watch.engines import watched_worker
from tests.api.running import running_service
from tests.engine.harness import FOLD, step, worker, ys
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server
from tests.store.clusters import Cluster, cluster, slot_of
from tests.store.test_laws import SOON, make_record, now, write


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    with cluster() as one:
        yield one


@pytest.fixture
async def store(three: Cluster) -> AsyncIterator[StateStore]:
    one = StateStore(three.url)
    yield one
    await one.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


async def committed(store: StateStore, *commits: object, within: float = SOON) -> list[Outcome]:
    answers = await store.commit(commits, deadline=now() + within)  # type: ignore[arg-type]
    return [answers[place].outcome for place in range(len(commits))]


async def test_a_batch_is_committed_on_every_primary(three: Cluster, store: StateStore) -> None:
    keys = [record_key("default", "batch", f"s{n}") for n in range(60)]

    assert await committed(store, *(write(key, make_record(1)) for key in keys)) == [Outcome.APPLIED] * 60
    assert await store.load(keys, deadline=now() + SOON) == [make_record(1).encode()] * 60
    assert {three.owner(slot_of(key)).port for key in keys} == {node.port for node in three.primaries}


async def test_a_moved_slot_is_followed(three: Cluster, store: StateStore) -> None:
    key = record_key("default", "m", "moved")
    slot = slot_of(key)
    await committed(store, write(key, make_record(1)))
    for _ in three.primaries:
        source = three.owner(slot)
        target = three.primaries[three.primaries.index(source) - 1]
        three.move(slot, target)
        [stored] = await store.load([key], deadline=now() + SOON)
        assert stored == make_record(1).encode()
    assert await committed(store, write(key, make_record(2), make_record(1).guard)) == [Outcome.APPLIED]


async def test_a_stream_in_a_migrating_slot_is_served_on_both_nodes(three: Cluster, store: StateStore) -> None:
    """ASK: a new stream starts on the slot's next node, an existing one is served by its current node."""
    old, new = "swl:1:{way}old", "swl:1:{way}new"
    slot = slot_of(old)
    await committed(store, write(old, make_record(1)))
    source = three.owner(slot)
    target = three.primaries[three.primaries.index(source) - 1]
    three.start_move(slot, target)

    assert (
        await committed(store, write(old, make_record(2), make_record(1).guard), write(new, make_record(1)))
        == [Outcome.APPLIED] * 2
    )
    assert await store.load([old, new], deadline=now() + SOON) == [make_record(2).encode(), make_record(1).encode()]
    three.move(slot, target)
    assert await store.load([old, new], deadline=now() + SOON) == [make_record(2).encode(), make_record(1).encode()]


async def test_a_keyed_commit_in_a_migrating_slot_waits_for_the_migration(three: Cluster, store: StateStore) -> None:
    """TRYAGAIN: the record is on one node, the entry of the new idempotency key would be on the other."""
    key = record_key("default", "m", "try-again")
    slot = slot_of(key)
    await committed(store, write(key, make_record(1)))
    source = three.owner(slot)
    target = three.primaries[three.primaries.index(source) - 1]
    three.start_move(slot, target)
    commit = write(key, make_record(2), make_record(1).guard, entry="k")

    with pytest.raises(StoreUnavailableError) as refused:
        (await store.commit([commit], deadline=now() + 0.3))[0]
    waiting = asyncio.create_task(committed(store, commit))
    await asyncio.to_thread(three.move, slot, target)

    assert (refused.value.applied, "TRYAGAIN" in str(refused.value)) == ("no", True)
    assert await waiting == [Outcome.APPLIED]
    assert None not in await store.load([key, idempotency_key_of(key, "k")], deadline=now() + SOON)


async def test_a_node_that_has_left_is_no_final_answer(three: Cluster, store: StateStore) -> None:
    """Its connections are closed while commands are on their way to it; another node has its slots then."""
    key = record_key("default", "m", "left")
    await store.load([key], deadline=now() + SOON)
    for node in (await store.transport.primaries())[1]:
        await node.close()

    [reply] = await store.transport.call(("GET", key))

    assert isinstance(reply, NotSentError)
    assert not reply.is_permanent


async def test_a_closed_way_to_a_cluster_opens_no_connection(three: Cluster) -> None:
    known, new = open_transport(three.url, timeout=5), open_transport(three.url, timeout=5)
    await known.call(("PING",))
    for one in (known, new):
        await one.close()
        try:
            [reply] = await one.call(("PING",))
        except NotSentError as exc:
            reply = exc

        assert isinstance(reply, NotSentError)
        assert reply.is_permanent


async def test_a_flushed_script_is_loaded_again_where_it_is_missing(three: Cluster, store: StateStore) -> None:
    keys = [record_key("default", "flushed", f"s{n}") for n in range(30)]
    await committed(store, *(write(key, make_record(1)) for key in keys))
    with three.primaries[1].client() as client:
        client.script_flush()

    commits = [write(key, make_record(2), make_record(1).guard) for key in keys]
    assert await committed(store, *commits) == [Outcome.APPLIED] * 30


async def test_reported_settings_are_those_of_the_worst_primary(three: Cluster, store: StateStore) -> None:
    with three.primaries[2].client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        facts = await read_server_info(store, timeout=SOON)
        client.config_set("maxmemory-policy", "noeviction")

    assert (facts.primaries, facts.policy, facts.replicas) == (3, "allkeys-lru", 0)
    with pytest.raises(UnsafeStoreError, match="for each primary"):
        check_safe(facts, "replica", allow_eviction=True)


class RecordingListener:
    """Records the messages of a channel."""

    def __init__(self) -> None:
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()

    def on_message(self, topic: str, message: bytes) -> None:
        self.messages.put_nowait((topic, message))

    def on_disconnect(self) -> None:
        """Never called here."""

    def on_reconnect(self) -> None:
        """Never called here."""


async def test_messages_reach_listeners_on_other_nodes(three: Cluster) -> None:
    heard = [RecordingListener() for _ in range(3)]
    wires = [open_transport(three.url, timeout=2) for _ in range(3)]
    channels = [StorePubSub(wire) for wire in wires]
    for n, channel in enumerate(channels):
        for _ in range(n):
            (await wires[n].open_dedicated()).close()  # each on another node
        await channel.start(heard[n])
        await channel.subscribe(["swl:news"])
    async with asyncio.timeout(SOON):
        await channels[0].publish("swl:news", b"x")
        assert [await one.messages.get() for one in heard] == [("swl:news", b"x")] * 3
    for channel, wire in zip(channels, wires, strict=True):
        await channel.close()
        await wire.close()


async def test_watchers_receive_the_commits_of_every_shard_and_reconnect(three: Cluster, folder: Path) -> None:
    async with (
        watched_worker(three.url, folder, history={"fold": 100}) as here,
        watched_worker(three.url, folder, history={"fold": 100}) as there,
    ):
        await there.watch.start()
        await here.watch.start()
        names = [f"w{n}" for n in range(12)]
        for x in range(5):
            await asyncio.gather(*(there.steps.advance(step(name, x)) for name in names))
        subscriptions = [Subscription("default", "fold", name) for name in names]
        since = {StreamKey("default", "fold", name): 2 for name in names}
        watcher = Subscriber(subscriptions, inputs=False, since=since)
        await here.watch.add(watcher)
        for x in range(5):
            await asyncio.gather(*(there.steps.advance(step(name, x)) for name in names))
        seen: dict[str, list[int]] = {name: [] for name in names}
        async with asyncio.timeout(SOON):
            while sum(map(len, seen.values())) < 8 * len(names):
                for news in await watcher.drain():
                    assert isinstance(news, CommitEvent)
                    seen[news.stream].append(news.step)
        here.watch.remove(watcher)

    assert seen == {name: list(range(3, 11)) for name in names}


async def test_a_listing_that_started_before_slots_moved_misses_no_stream(three: Cluster, store: StateStore) -> None:
    names = {f"s{n}" for n in range(120)}
    await committed(store, *(write(record_key("default", "list", name), make_record(1)) for name in names))
    found, cursor = await listing.page(store.transport, "default", "list", "", None, limit=20, deadline=now() + SOON)
    for slot in {slot_of(record_key("default", "list", name)) for name in list(names)[:20]}:
        source = three.owner(slot)
        await asyncio.to_thread(three.move, slot, three.primaries[three.primaries.index(source) - 1])
        await asyncio.to_thread(three.wait_agreed)
    await asyncio.sleep(1.1)  # longer than the cached slot table is trusted
    while cursor is not None:
        page, cursor = await listing.page(
            store.transport, "default", "list", "", cursor, limit=20, deadline=now() + SOON
        )
        found += page

    assert set(found) == names


async def test_an_unreachable_shard_fails_its_own_streams_only(folder: Path) -> None:
    """One batch holds streams of every shard; those of the reachable shards are answered."""
    with cluster() as three:
        for node in three.nodes:
            with node.client() as client:
                client.config_set("cluster-require-full-coverage", "no")
        async with worker(three.url, folder, options=EngineOptions(request_timeout_s=2)) as engine:
            names = [f"s{n}" for n in range(30)]
            await asyncio.gather(*(engine.steps.advance(step(name, 1, seq=1)) for name in names))
            gone = three.primaries[1]
            lost = {n for n in names if three.owner(slot_of(record_key("default", FOLD, n))) is gone}
            gone.kill()
            answers = dict(zip(names, await asyncio.gather(*(advanced(engine, n, 2) for n in names)), strict=True))

    assert 0 < len(lost) < 30
    assert answers == {name: "store_unavailable" if name in lost else 2 for name in names}


async def advanced(engine: Engine, name: str, seq: int) -> int | str:
    try:
        return (await engine.steps.advance(step(name, seq, seq=seq))).step
    except ServiceError as exc:
        return exc.code


async def test_a_failed_primary_is_replaced_by_its_replica(folder: Path) -> None:
    names = [f"s{n}" for n in range(20)]
    with cluster(replicas=1) as six:
        async with worker(six.url, folder, durability="replica") as engine:
            await asyncio.gather(*(engine.steps.advance(step(name, 1, seq=1)) for name in names))
        async with worker(six.url, folder) as engine:
            six.primaries[0].kill()

            async def retry_until_answered(name: str) -> int:
                while True:
                    with contextlib.suppress(ServiceError):
                        return ys(await engine.steps.advance(step(name, 2, seq=2)))[0]

            async with asyncio.timeout(40):
                answers = await asyncio.gather(*(retry_until_answered(name) for name in names))

    assert answers == [fold_reference([1, 2])[-1]] * 20


def test_a_service_on_a_cluster_steps_lists_snapshots_and_is_watched(three: Cluster, tmp_path: Path) -> None:
    with running_service(three.url, write_models(tmp_path, of_its_own=fold)) as one:
        url = f"ws://127.0.0.1:{one.port}/v1/watch"
        with connect(url) as watcher:
            watcher.send(json.dumps({"watch": [{"model": "of_its_own"}]}))
            watcher.recv(timeout=SOON)
            streams = [f"s{n}" for n in range(20)]
            body = {"streams": streams, "inputs": [[n] for n in range(20)], "seq": [1] * 20}
            answer = one.http.post("/v1/models/of_its_own/step", json=body).json()
            seen = {json.loads(watcher.recv(timeout=SOON))["stream"] for _ in streams}
        listed = one.http.get("/v1/models/of_its_own/streams?limit=50").json()["streams"]
        snapshot = one.http.put(one.path("of_its_own", "s1", "snapshots/x"))
        forked = one.http.post(one.path("of_its_own", "s1", "fork"), json={"to": "elsewhere"})
        reset = one.http.post("/v1/models/of_its_own/reset").json()
        info = one.http.get("/v1/info").json()
        ready = one.http.get("/readyz").status_code

    assert (answer["step"], answer["errors"]) == ([1] * 20, {})
    assert seen == {entry["stream"] for entry in listed} == set(streams)
    assert (snapshot.status_code, forked.status_code, reset) == (200, 200, {"reset": 21})
    assert (info["store"]["primaries"], ready) == (3, 200)


async def test_a_server_without_cluster_mode_is_named_in_the_error(redis_server: Server, short_path: Path) -> None:
    store = StateStore("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout=0.3)

    with pytest.raises(UnsafeStoreError, match="no node of the Cluster"):
        await read_server_info(store, timeout=0)
    with pytest.raises(StoreUnavailableError):
        await store.load(["swl:1:{a}"], deadline=now() + 0.3)
    with pytest.raises((StoreUnavailableError, OutcomeUnknownError)):
        (await store.commit([write("swl:1:{a}", make_record(1))], deadline=now() + 0.3))[0]
    await store.close()
