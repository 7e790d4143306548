"""Network faults between a worker and its store: lost replies, delayed writes, a slow or broken connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.errors import ServiceError
from stepwell.store.keys import record_key
from stepwell.types import StreamKey
from tests.engine.harness import FOLD, CountingObserver, expect_error, gather_results, step, worker, ys
from tests.faults.proxy import Proxy
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server

QUICK = EngineOptions(request_timeout_s=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


@pytest.fixture
def proxy(redis_server: Server) -> Iterator[Proxy]:
    with Proxy(redis_server.socket) as one:
        yield one


# ---------------------------------------------------------------- F14: the reply is lost


async def test_a_lost_reply_is_resolved_by_sending_the_same_bytes_again(folder: Path, proxy: Proxy) -> None:
    """With `seq`, with a key, and without a name, whose reply is lost three times."""
    async with worker(proxy.url, folder) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        proxy.lose_reply(to=b"EVALSHA")
        answers = [await engine.steps.advance(step("a", 2, seq=2))]
        proxy.lose_reply(to=b"EVALSHA")
        answers.append(await engine.steps.advance(step("a", 3, seq=3, idempotency_key="k")))
        proxy.lose_reply(to=b"EVALSHA", times=3)
        answers.append(await engine.steps.advance(step("a", 4)))

    assert proxy.lost == 5
    assert [(ys(answer)[0], answer.step) for answer in answers] == [
        (y, n) for n, y in enumerate(fold_reference([1, 2, 3, 4])[1:], 2)
    ]


async def test_an_unknown_outcome_is_reported_and_resolved_by_the_retry(folder: Path, proxy: Proxy) -> None:
    async with worker(proxy.url, folder, options=QUICK) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        proxy.lose_reply(to=b"EVALSHA", times=10_000)
        unknown = await expect_error(engine, step("a", 2, seq=2))
        proxy.heal()
        again = await engine.steps.advance(step("a", 2, seq=2))

    assert (unknown.code, unknown.applied, unknown.retry) == ("outcome_unknown", "unknown", "same")
    assert (ys(again), again.step, again.replayed) == (fold_reference([1, 2])[-1:], 2, True)


@pytest.mark.parametrize("key", [None, "once"])
async def test_the_unknown_outcome_of_a_deletion_is_reported(folder: Path, proxy: Proxy, key: str | None) -> None:
    async with worker(proxy.url, folder, options=QUICK) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        proxy.lose_reply(to=b"EVALSHA", times=10_000)
        with pytest.raises(ServiceError) as unknown:
            await engine.streams.delete(StreamKey("default", FOLD, "a"), idempotency_key=key)
        proxy.heal()
        await engine.streams.delete(StreamKey("default", FOLD, "a"), idempotency_key=key)
        begun = await engine.steps.advance(step("a", 1, seq=1))

    assert (unknown.value.code, unknown.value.applied, unknown.value.retry) == ("outcome_unknown", "unknown", "same")
    assert begun.created is True


@pytest.mark.parametrize("key", [None, "once"])
async def test_a_deletion_whose_reply_is_lost_does_not_delete_a_stream_that_is_created_then(
    folder: Path, proxy: Proxy, redis_server: Server, key: str | None
) -> None:
    stream = StreamKey("default", FOLD, "a")
    async with worker(proxy.url, folder, timeout=20) as engine, worker(redis_server.url, folder) as other:
        await engine.steps.advance(step("a", 1))
        await engine.steps.advance(step("a", 2))
        proxy.lose_reply(to=b"EVALSHA", times=10_000)
        deletion = asyncio.create_task(engine.streams.delete(stream, idempotency_key=key))
        with redis_server.client() as client:
            while client.exists(record_key(*stream)):  # noqa: ASYNC110 - the store has no event for it
                await asyncio.sleep(0.005)
        begun = await other.steps.advance(step("a", 3))
        proxy.heal()
        await deletion
        status = await other.streams.status(stream)

    assert (begun.created, status.step, status.state_id) == (True, 1, begun.state_id)


# ---------------------------------------------------------------- F9: a delayed write of a frozen worker


async def held(proxy: Proxy) -> None:
    """Wait until the proxy holds back data."""
    while not proxy.held:  # noqa: ASYNC110 - the proxy runs in another thread
        await asyncio.sleep(0.005)


async def test_a_delayed_write_of_a_frozen_worker_changes_nothing(
    folder: Path, proxy: Proxy, redis_server: Server
) -> None:
    """Its write arrives after other workers have stepped the stream, so the guard does not match."""
    async with worker(proxy.url, folder, timeout=20) as zombie, worker(redis_server.url, folder) as other:
        await zombie.steps.advance(step("a", 1, seq=1))
        proxy.hold_requests = True
        late = asyncio.create_task(expect_error(zombie, step("a", 99, seq=2)))
        twice = asyncio.create_task(zombie.steps.advance(step("b", 5, seq=1)))
        await held(proxy)
        others = [await other.steps.advance(step("a", x, seq=x)) for x in (2, 3)]
        twin = await other.steps.advance(step("b", 5, seq=1))
        proxy.heal()
        refused, replayed = await late, await twice
        after = await other.steps.advance(step("a", 4, seq=4))

    assert refused.applied in ("no", "yes")
    assert refused.code in ("seq_conflict", "seq_passed")
    assert [ys(a)[0] for a in (*others, after)] == fold_reference([1, 2, 3, 4])[1:]
    assert (ys(replayed), replayed.state_id) == (ys(twin), twin.state_id)


async def test_a_delayed_first_step_does_not_undo_a_reset(folder: Path, proxy: Proxy, redis_server: Server) -> None:
    async with worker(proxy.url, folder, timeout=20) as zombie, worker(redis_server.url, folder) as other:
        first = await zombie.steps.advance(step("a", 1, seq=1))
        proxy.hold_requests = True
        late = asyncio.create_task(expect_error(zombie, step("a", 2, seq=2, after=first.state_id)))
        await held(proxy)
        await other.streams.reset(step("a", 0).key)
        proxy.heal()
        refused = await late
        status = await other.streams.status(step("a", 0).key)

    assert (refused.code, refused.applied, status.step) == ("state_changed", "no", 0)


# ---------------------------------------------------------------- F13, F15: slow or broken connections


async def test_a_slow_network_only_adds_latency(folder: Path, proxy: Proxy) -> None:
    async with worker(proxy.url, folder) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        proxy.delay = 0.2
        began = time.monotonic()
        answers = await asyncio.gather(*(engine.steps.advance(step(f"s{n}", 1, seq=1)) for n in range(50)))
        took = time.monotonic() - began

    assert [answer.step for answer in answers] == [1] * 50
    assert took < 50 * 2 * 0.2  # as long as one after the other would take


async def within(fact: Any, seconds: float = 30) -> None:
    """Call a coroutine function until it returns True."""
    async with asyncio.timeout(seconds):
        while not await fact():  # noqa: ASYNC110 - another process gives no event
            await asyncio.sleep(0.02)


async def goes_on(engine: Engine, stream: str, seq: int) -> bool:
    try:
        return (await engine.steps.advance(step(stream, seq, seq=seq))).step == seq
    except ServiceError:
        return False


@pytest.mark.parametrize("fault", ["slow", "cut"])
async def test_an_unreachable_store_fails_fast_and_is_used_again_once_it_responds(
    folder: Path, proxy: Proxy, fault: str
) -> None:
    async with worker(proxy.url, folder, timeout=1.5) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        if fault == "slow":
            proxy.delay = 4
        else:
            proxy.blackhole = True

        async def not_ready() -> bool:
            return bool(await engine.readiness_problems())

        await within(not_ready)
        waiting = await gather_results(*(engine.steps.advance(step(f"s{n}", 1, seq=1)) for n in range(20)))
        began = time.monotonic()
        refused = await expect_error(engine, step("a", 2, seq=2))
        told_in = time.monotonic() - began
        proxy.heal()
        await within(lambda: goes_on(engine, "a", 2))
        ready = await engine.readiness_problems()

    assert {error.code for error in waiting} <= {"store_unavailable", "outcome_unknown"}
    assert (refused.code, refused.applied) == ("store_unavailable", "no")
    assert told_in < 1  # without waiting for the store
    assert ready == []


async def test_a_timeout_of_one_caller_does_not_close_a_shared_connection(folder: Path, proxy: Proxy) -> None:
    """Of two requests on one connection, only the one with the earlier deadline fails."""
    async with worker(proxy.url, folder) as engine:
        store = engine.store
        await engine.steps.advance(step("a", 1, seq=1))
        name = record_key("default", FOLD, "a")
        proxy.delay = 0.2
        loop = asyncio.get_running_loop()
        patient = asyncio.create_task(store.load([name], deadline=loop.time() + 5))
        with pytest.raises(ServiceError):
            await store.load([name], deadline=loop.time() + 0.1)
        connections = proxy.connections
        assert (await patient)[0] is not None
        assert proxy.connections == connections


async def test_lost_steps_are_counted(folder: Path, redis_server: Server) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        with redis_server.client() as client:
            before = client.get(record_key("default", FOLD, "a"))
            await engine.steps.advance(step("a", 2, seq=2))
            client.set(record_key("default", FOLD, "a"), before)
        refused = await expect_error(engine, step("a", 3, seq=3))

    assert (refused.code, refused.expected, counts.regressed) == ("seq_gap", 2, 1)


async def ran(counts: CountingObserver, batches: int) -> None:
    """Wait until the model has run this number of batches."""
    for _ in range(1_000_000):
        if len(counts.batches) >= batches:
            return
        await asyncio.sleep(0)
    raise AssertionError(f"only {counts.batches}")


async def test_many_steps_that_arrive_during_a_batch_run_at_once(folder: Path, proxy: Proxy) -> None:
    counts, streams = CountingObserver(), [f"s{n}" for n in range(100)]
    async with worker(proxy.url, folder, counts=counts) as engine:
        await asyncio.gather(*(engine.steps.advance(step(stream, 1, seq=1)) for stream in streams))
        counts.batches.clear()
        proxy.blackhole = True
        asked = [asyncio.create_task(engine.steps.advance(step(streams[0], 2, seq=2)))]
        await ran(counts, 1)
        for share in (streams[1:34], streams[34:67], streams[67:]):
            asked += [asyncio.create_task(engine.steps.advance(step(stream, 2, seq=2))) for stream in share]
            for _ in range(3):
                await asyncio.sleep(0)
        proxy.blackhole = False
        answers = await asyncio.gather(*asked)

    assert counts.batches == [1, 33, 33, 33]
    assert {answer.step for answer in answers} == {2}
