"""Faults of the store: restarts with and without its file, rollback, no space, failover, damaged records."""

from __future__ import annotations

import asyncio
import resource
import shutil
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.store.keys import idempotency_key_of, record_key
from stepwell.store.record import HEADER_BYTES
from stepwell.types import StreamKey
from tests.engine.harness import FOLD, chunk, expect_error, gather_results, step, worker, ys
from tests.faults.feeder import feeders, judged, reached, run, run_until, told
from tests.faults.proxy import Proxy
from tests.graphs import fold, fold_reference, write_models
from tests.servers import AOF, Server, server
from tests.store.clusters import has_caught_up, is_synchronized, primary_and_replica, sentinels

ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
QUICK = EngineOptions(request_timeout_s=1)
linux = pytest.mark.skipif(sys.platform != "linux", reason="limits a process of others")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


# ---------------------------------------------------------------- F10, F11, F12: restarted


async def test_a_store_that_lost_its_file_is_detected_and_can_be_refilled(folder: Path, redis_server: Server) -> None:
    """F12: no stream silently restarts at step 0; resent timesteps give the same outputs and state ids."""
    async with worker(redis_server.url, folder) as engine:
        streams = feeders([engine], 10)
        await run(streams, 5)
        redis_server.kill()
        redis_server.start()
        refused = await expect_error(engine, step("s0", 1, seq=6))
        await run(streams, 3, seed=1)

    assert (refused.code, refused.applied, refused.retry) == ("stream_not_found", "no", "resend_from")
    assert judged(streams) == []
    assert [stream.sent_again for stream in streams] == [5] * 10


async def test_a_truncated_file_is_detected_by_every_stream_that_lost_steps(folder: Path, short_path: Path) -> None:
    with server(short_path / "r", *AOF, "--aof-load-truncated", "yes", "--auto-aof-rewrite-percentage", "0") as one:
        async with worker(one.url, folder) as engine:
            streams = feeders([engine], 5)
            await run(streams, 20)
            one.kill()
            tear(short_path / "r", 3000)
            one.start()
            lost = [await expect_error(engine, step(f"s{n}", 0, seq=21 + 1)) for n in range(5)]
            await run(streams, 2, seed=1)

    assert {refused.code for refused in lost} == {"seq_gap"}
    assert all(refused.expected is not None and refused.expected <= 21 for refused in lost)
    assert min(refused.expected or 99 for refused in lost) < 21
    assert judged(streams) == []
    assert sum(stream.sent_again for stream in streams) == sum(21 - (refused.expected or 0) for refused in lost)


def tear(folder: Path, n: int) -> None:
    """Truncate the append-only file, as a power failure does."""
    file = max(folder.rglob("*.incr.aof"), default=None, key=lambda path: path.stat().st_size)
    file = file or next(iter(folder.glob("appendonly.aof")))
    size = file.stat().st_size
    with file.open("r+b") as tail:
        tail.truncate(size - n)


async def test_a_rolled_back_folder_is_detected_by_every_stream(folder: Path, short_path: Path) -> None:
    with server(short_path / "r", *ALWAYS) as one:
        async with worker(one.url, folder) as engine, worker(one.url, folder) as other:
            streams = feeders([engine, other], 12, keyed_every=3)
            await run(streams, 6)
            one.kill()
            shutil.copytree(short_path / "r", short_path / "older", ignore=shutil.ignore_patterns("s"))
            one.start()
            await run(streams, 4, seed=1)
            one.kill()
            shutil.rmtree(short_path / "r")
            shutil.copytree(short_path / "older", short_path / "r")
            one.start()
            refused = [await expect_error(engine, step(f"s{n}", 1, seq=11)) for n in range(12)]
            await run(streams, 2, seed=2)

    assert {(r.code, r.applied, r.retry, r.expected) for r in refused} == {("seq_gap", "no", "resend_from", 7)}
    assert judged(streams) == []
    assert [stream.sent_again for stream in streams] == [4] * 12


# ---------------------------------------------------------------- F16, F36: full


async def test_a_full_store_rejects_new_data_and_still_replays_retries(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        first = await engine.steps.advance(step("a", 1, seq=1))
        with redis_server.client() as client:
            client.config_set("maxmemory", 1)
        refused = [await expect_error(engine, step("a", 2, seq=2)), await expect_error(engine, step("b", 1, seq=1))]
        again = await engine.steps.advance(step("a", 1, seq=1))
        status = await engine.streams.status(StreamKey("default", FOLD, "a"))
        await engine.streams.delete(StreamKey("default", FOLD, "a"))
        ready = await engine.readiness_problems()
        with redis_server.client() as client:
            client.config_set("maxmemory", 0)
        after = await engine.steps.advance(step("b", 1, seq=1))

    assert [(r.code, r.applied, r.retry) for r in refused] == [("store_full", "no", "same")] * 2
    assert (again.state_id, again.replayed, status.step, ready) == (first.state_id, True, 1, [])
    assert after.step == 1


@linux
async def test_a_store_with_a_full_disk_rejects_steps_until_there_is_space(folder: Path, short_path: Path) -> None:
    """F36, simulated by a limit on the size of the store's files (MISCONF)."""
    with server(short_path / "r", *AOF) as one:
        async with worker(one.url, folder, options=QUICK) as engine:
            await engine.steps.advance(step("a", 1, seq=1))
            room = resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
            seq = 2
            while written(refused := await gather_results(engine.steps.advance(step("a", seq, seq=seq)))):
                seq += 1  # the file is written periodically, not with each step
            resource.prlimit(one.pid, resource.RLIMIT_FSIZE, room)
            while not written(after := await gather_results(engine.steps.advance(step("a", seq, seq=seq)))):
                refused += after
            one.kill()
            one.start()
            status = await engine.streams.status(StreamKey("default", FOLD, "a"))

    assert {(exc.code, exc.applied) for exc in refused} == {("store_unavailable", "no")}
    assert ys(after[0]) == fold_reference(range(1, seq + 1))[-1:]
    assert status.step in (seq - 1, seq)  # with `everysec` the newest step may not have been flushed


def written(answers: list[object]) -> bool:
    return not any(isinstance(answer, Exception) for answer in answers)


# ---------------------------------------------------------------- F18, F20: replicas and failovers


async def test_steps_missing_on_a_promoted_replica_are_detected_and_can_be_resent(
    folder: Path, short_path: Path
) -> None:
    """F18: the replica is disconnected, the primary continues, and then the replica is promoted."""
    with primary_and_replica(short_path) as (primary, replica, port, _), Proxy(("127.0.0.1", port)) as way:
        with replica.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", way.port)
            while not is_synchronized(client):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        async with worker(primary.url, folder) as before, worker(replica.url, folder) as after:
            where = [before]
            streams = feeders(where, 10)
            way.delay = 0.05
            await run(streams, 5)
            with primary.client() as first, replica.client() as second:
                while not has_caught_up(second, first):  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.02)
                way.blackhole = True
                await run(streams, 4, seed=1)
                second.execute_command("REPLICAOF", "NO", "ONE")
            where[0] = after
            refused = await expect_error(after, step("s0", 1, seq=10))
            changed = await expect_error(after, step("s1", 1, seq=10, after=streams[1].told[-1][1]))
            await run(streams, 2, seed=2)
            way.heal()

    assert (refused.code, refused.expected) == ("seq_gap", 6)
    assert (changed.code, changed.retry, changed.step) == ("state_changed", "resend_from", 5)
    assert judged(streams) == []
    assert [stream.sent_again for stream in streams] == [4] * 10


@pytest.mark.parametrize("fault", ["cut off", "frozen"])
async def test_a_step_that_no_replica_has_is_never_acknowledged(folder: Path, short_path: Path, fault: str) -> None:
    """F20: neither is its retry, on any worker, with `seq` or with a key, nor a replayed response."""
    with primary_and_replica(short_path) as (primary, replica, port, _), Proxy(("127.0.0.1", port)) as way:
        with replica.client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", way.port)
            while not is_synchronized(client):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)
        level: dict[str, Any] = {"durability": "replica", "timeout": 0.6}
        async with worker(primary.url, folder, **level) as one, worker(primary.url, folder, **level) as two:
            for stream in "abc":
                await one.steps.advance(step(stream, 1, seq=1))
            if fault == "frozen":
                replica.send(signal.SIGSTOP)
            else:
                way.blackhole = True
            keyed = step("b", 2, seq=2, idempotency_key="k")
            requests = [step("a", 2, seq=2), keyed]
            refused = [await expect_error(engine, request) for request in requests for engine in (one, one, two)]
            refused.append(await expect_error(two, step("a", 3, seq=3)))
            refused.append(
                await expect_error(one, step("a", 2, seq=2))
            )  # an older step by now, and not confirmed either
            reset = StreamKey("default", FOLD, "c")
            for _ in range(2):
                try:
                    await one.streams.reset(reset, idempotency_key="r")
                except Exception as exc:  # noqa: BLE001 - checked below
                    refused.append(exc)  # type: ignore[arg-type]
            way.heal()
            replica.send(signal.SIGCONT)
            confirmed = [await two.steps.advance(request) for request in (step("a", 3, seq=3), keyed)]
            passed = await expect_error(one, step("a", 2, seq=2))
            again = await one.streams.reset(reset, idempotency_key="r")

    assert {(exc.code, exc.applied, exc.retry) for exc in refused} == {("not_durable", "yes", "same")}
    assert len(refused) == 10
    assert [(a.replayed, ys(a)) for a in confirmed] == [
        (True, fold_reference([1, 2, 3])[-1:]),
        (True, fold_reference([1, 2])[-1:]),
    ]
    assert (passed.code, passed.applied) == ("seq_passed", "yes")
    assert (again.step, again.replayed) == (0, True)


async def test_a_conflict_is_not_reported_as_applied_while_no_replica_confirms(
    folder: Path, redis_server: Server
) -> None:
    """The row that lost the race was not applied, whether or not replicas confirm the other rows."""
    async with (
        worker(redis_server.url, folder) as writer,
        worker(redis_server.url, folder, durability="replica", timeout=0.4) as engine,
    ):
        await writer.steps.advance(step("a", 1, seq=1))
        await expect_error(engine, step("b", 1, seq=1))
        with redis_server.client() as client:
            before = client.get(record_key("default", FOLD, "a"))
        await expect_error(engine, step("a", 2, seq=2))
        with redis_server.client() as client:
            client.set(record_key("default", FOLD, "a"), before)
        refused = await expect_error(engine, step("a", 3, seq=3))

    assert (refused.code, refused.applied, refused.expected) == ("seq_gap", "no", 2)


async def test_sentinel_resolves_the_new_primary_and_no_confirmed_step_is_lost(folder: Path, short_path: Path) -> None:
    with primary_and_replica(short_path, *AOF) as (primary, replica, port, _), sentinels(short_path, port) as guard:
        url = f"redis+sentinel://127.0.0.1:1,127.0.0.1:{guard}/pumps/0"  # the first Sentinel is unreachable
        async with worker(url, folder, durability="replica") as engine:
            before = feeders([engine], 10)
            await run(before, 5)
        primary.kill()
        async with worker(url, folder) as engine:
            for stream in before:
                stream.pick = lambda: engine
            async with asyncio.timeout(60):
                await run(before, 3, seed=1)
        with replica.client() as client:
            role = client.info("replication")["role"]

    assert role == "master"
    assert judged(before) == []
    assert sum(stream.sent_again for stream in before) == 0


# ---------------------------------------------------------------- F21: expiry during a step


async def test_a_stream_that_expires_before_its_commit_is_reported_as_missing(
    folder: Path, redis_server: Server
) -> None:
    """The worker still has the record in its cache, so it does not load it before the commit."""
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        with redis_server.client() as client:
            client.pexpire(record_key("default", FOLD, "a"), 1)
            while client.exists(record_key("default", FOLD, "a")):
                pass
        refused = await expect_error(engine, step("a", 2, seq=2))
        again = await engine.steps.advance(step("a", 1, seq=1))

    assert (refused.code, refused.applied) == ("stream_not_found", "no")
    assert (again.step, again.created) == (1, True)


# ---------------------------------------------------------------- F37, F38, F39: damaged records and other versions


async def every_answer(
    engine: Engine, server: Server, key: str, raw: bytes, request: object
) -> list[tuple[str, str, bool]]:
    """Return the error of a request for each flipped byte of a value, and whether the value was left unchanged."""
    found: list[tuple[str, str, bool]] = []
    with server.client() as client:
        for position in range(len(raw)):
            broken = bytearray(raw)
            broken[position] ^= 0xFF
            client.set(key, bytes(broken))
            exc = await expect_error(engine, request)  # type: ignore[arg-type]
            found.append((exc.code, exc.applied, client.get(key) == bytes(broken)))
    return found


async def test_a_record_with_a_damaged_byte_is_never_used(folder: Path, redis_server: Server) -> None:
    key = record_key("default", FOLD, "a")
    async with worker(redis_server.url, folder) as writer:
        await writer.steps.advance(step("a", 1, seq=1))
    with redis_server.client() as client:
        raw = client.get(key)
    assert isinstance(raw, bytes)
    async with worker(redis_server.url, folder) as engine:
        found = await every_answer(engine, redis_server, key, raw, step("a", 2, seq=2))
        retried = await every_answer(engine, redis_server, key, raw, step("a", 1, seq=1))
        bystander = await engine.steps.advance(step("b", 1, seq=1))

    version = [("record_version", "no", True)]
    damaged = [("state_corrupt", "no", True)]
    assert len(raw) > HEADER_BYTES
    assert found == retried == damaged * 2 + version + damaged * (len(raw) - 3)
    assert bystander.step == 1


async def test_an_idempotency_entry_with_a_damaged_byte_is_never_used(folder: Path, redis_server: Server) -> None:
    request = step("a", 1, seq=1, idempotency_key="k")
    key = idempotency_key_of(record_key("default", FOLD, "a"), "k")
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(request)
        await engine.steps.advance(step("a", 2, seq=2))
        with redis_server.client() as client:
            raw = client.get(key)
        assert isinstance(raw, bytes)
        found = await every_answer(engine, redis_server, key, raw, request)

    assert {(code, left) for code, _, left in found} == {("state_corrupt", True), ("record_version", True)}


async def test_a_record_of_another_format_version_is_rejected_and_kept(folder: Path, redis_server: Server) -> None:
    key = StreamKey("default", FOLD, "a")
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 1, seq=1))
        with redis_server.client() as client:
            raw = client.get(record_key(*key))
            assert isinstance(raw, bytes)
            other = raw[:2] + b"4" + raw[3:HEADER_BYTES] + b"a field that we do not know" + raw[HEADER_BYTES:]
            client.set(record_key(*key), other)
    async with worker(redis_server.url, folder) as engine:
        refused = [
            await expect_error(engine, request)
            for request in (step("a", 2, seq=2), step("a", 1, seq=1), chunk("a", [1, 2]))
        ]
        try:
            await engine.streams.reset(key)
        except Exception as exc:  # noqa: BLE001 - checked below
            refused.append(exc)  # type: ignore[arg-type]
        with redis_server.client() as client:
            left = client.get(record_key(*key))

    assert [(exc.code, exc.applied, exc.retry) for exc in refused] == [("record_version", "no", "same")] * 4
    assert left == other


# ---------------------------------------------------------------- F7, F35: two clients, clock jumps


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
async def test_a_clock_jump_changes_no_stream_and_no_expiry(
    folder: Path, redis_server: Server, monkeypatch: pytest.MonkeyPatch, jump_s: int
) -> None:
    wall = time.time
    async with worker(redis_server.url, folder, stream_ttl_s=100) as engine:
        before = await engine.steps.advance(step("a", 1, seq=1, idempotency_key="k"))
        monkeypatch.setattr(time, "time", lambda: wall() + jump_s)
        again = await engine.steps.advance(step("a", 1, seq=1, idempotency_key="k"))
        after = await engine.steps.advance(step("a", 2, seq=2))
        status = await engine.streams.status(StreamKey("default", FOLD, "a"))

    assert (again.state_id, again.replayed) == (before.state_id, True)
    assert ys(after) == fold_reference([1, 2])[-1:]
    assert 100_000 <= status.expires_in_ms <= 125_000


# ---------------------------------------------------------------- F22: a model is replaced under live streams


async def test_live_streams_keep_their_model_version_after_a_reload(tmp_path: Path, redis_server: Server) -> None:
    folder = write_models(tmp_path, fold=fold)
    async with worker(redis_server.url, folder) as engine:
        streams, done = feeders([engine], 10), asyncio.Event()
        running = asyncio.create_task(run_until(streams, done))
        for factor in (3, 5, 7):
            await reached(streams, told(streams) + 100)
            write_models(folder, fold=partial(fold, factor))
            await engine.models.reload()
            new = await engine.steps.advance(chunk(f"new-{factor}", [1, 2, 3]))
            assert ys(new) == fold_reference([1, 2, 3], factor=factor)
        done.set()
        await running

    assert judged(streams) == []
