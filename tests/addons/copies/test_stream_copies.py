"""Forks, snapshots and peeks on a real store: through any worker, and while the stream is stepped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from stepwell.addons.copies.snapshots import SnapshotStore
from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.errors import ServiceError
from stepwell.types import StreamKey, StreamPosition
from tests.engine.harness import FOLD, CountingObserver, chunk, expect_error, gather_results, step, worker, ys
from tests.graphs import fold, fold_reference, write_model, write_models
from tests.servers import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


def key(stream: str) -> StreamKey:
    return StreamKey("default", FOLD, stream)


async def fork(
    engine: Engine, to: str, *, after: bytes | None = None, idempotency_key: str | None = None
) -> StreamPosition:
    return await StreamCopies(engine).fork(
        key("a"), key(to), snapshot=None, version=None, after=after, idempotency_key=idempotency_key
    )


async def snapshot(engine: Engine, name: str) -> StreamPosition:
    return await StreamCopies(engine).create_snapshot(key("a"), name, after=None, idempotency_key=None)


# ---------------------------------------------------------------- forks


async def test_a_fork_of_a_busy_stream_copies_one_consistent_state(folder: Path, redis_server: Server) -> None:
    """Each branch continues the fold from the step at which it was forked."""
    steps, forks = 400, 30
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        workers = (one, two)

        async def live() -> list[int]:
            return [
                y
                for seq in range(1, steps + 1)
                for y in ys(await workers[seq % 2].steps.advance(step("a", seq, seq=seq)))
            ]

        async def branch(n: int) -> tuple[int, int]:
            """Fork the stream, step the fork once, and return the step of the fork and that step's prediction."""
            made = await fork(workers[n % 2], f"b{n}")
            after = await workers[(n + 1) % 2].steps.advance(step(f"b{n}", 1_000_000 + n, seq=made.step + 1))
            return made.step, ys(after)[0]

        async def branches() -> list[tuple[int, int]]:
            made = []
            for n in range(forks):
                made.append(await branch(n))
                await asyncio.sleep(0)
            return made

        await one.steps.advance(step("a", 0))
        await one.streams.reset(key("a"))
        trunk, made = await asyncio.gather(live(), branches())

    assert trunk == fold_reference(range(1, steps + 1))
    assert len({at for at, _ in made}) > forks // 2, "the forks were not made at different steps"
    assert [y for _, y in made] == [
        fold_reference([*range(1, at + 1), 1_000_000 + n])[-1] for n, (at, _) in enumerate(made)
    ]


async def test_of_many_different_concurrent_forks_onto_one_stream_one_is_made(
    folder: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 1))
        made = await gather_results(*(fork(engine, "b", idempotency_key=f"k{n}") for n in range(10)))

    assert sum(isinstance(p, StreamPosition) and not p.replayed for p in made) == 1
    assert [p.code for p in made if isinstance(p, ServiceError)] == ["stream_exists"] * 9


# ---------------------------------------------------------------- snapshots, states


async def test_concurrent_requests_cannot_exceed_the_snapshot_limit(folder: Path, redis_server: Server) -> None:
    options = EngineOptions(max_snapshots=5)
    async with (
        worker(redis_server.url, folder, options=options) as one,
        worker(redis_server.url, folder, options=options) as two,
    ):
        await one.steps.advance(step("a", 1))
        made = await gather_results(*(snapshot((one, two)[n % 2], f"s{n}") for n in range(20)))
        kept = await StreamCopies(one).list_snapshots(key("a"))

    assert sum(isinstance(p, StreamPosition) for p in made) == len(kept) == 5
    assert {p.code for p in made if isinstance(p, ServiceError)} == {"stream_quota"}


async def test_using_a_snapshot_extends_its_ttl(folder: Path, redis_server: Server) -> None:
    options = EngineOptions(snapshot_ttl_s=60)
    async with worker(redis_server.url, folder, options=options) as engine:
        await engine.steps.advance(step("a", 1))
        await snapshot(engine, "s")
        with redis_server.client() as client:
            [name] = client.keys("*:s")
            client.pexpire(name, 5_000)
            await StreamCopies(engine).list_snapshots(key("a"))
            looked = client.pttl(name)
            await engine.streams.reset(key("a"), snapshot="s")
            used = client.pttl(name)

    assert looked <= 5_000
    assert 50_000 < used <= 60_000


async def test_a_reset_to_a_snapshot_rejects_steps_of_the_previous_history(folder: Path, redis_server: Server) -> None:
    """A late step that names the previous history is rejected, although the stream is at the same step again."""
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        old = await one.steps.advance(step("a", 1))
        await snapshot(one, "s")
        await two.streams.reset(key("a"), snapshot="s")
        late = await expect_error(one, step("a", 2, after=old.state_id))
        goes_on = await one.steps.advance(step("a", 2, seq=2))

    assert late.code == "state_changed"
    assert ys(goes_on) == fold_reference([1, 2])[-1:]


async def test_an_expired_stream_can_be_restored_from_a_snapshot_that_outlived_it(
    folder: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, folder, options=EngineOptions(snapshot_ttl_s=60)) as engine:
        await engine.steps.advance(chunk("a", [1, 2, 3]))
        await snapshot(engine, "s")
        with redis_server.client() as client:
            client.delete(*[name for name in client.keys("*") if not name.endswith(b":s")])
        back = await engine.streams.reset(key("a"), snapshot="s")
        goes_on = await engine.steps.advance(step("a", 4, seq=4))

    assert back.step == 3
    assert ys(goes_on) == fold_reference([1, 2, 3, 4])[-1:]


# ---------------------------------------------------------------- peeks


async def test_peeks_at_many_streams_run_in_one_batch(folder: Path, redis_server: Server) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        found = await asyncio.gather(*(engine.steps.peek(step(f"s{n}", n)) for n in range(100)))

    assert [ys(p) for p in found] == [fold_reference([n]) for n in range(100)]
    assert max(counts.batches) > 10


async def test_a_peek_runs_after_the_steps_that_were_sent_before_it(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        *_, found, last = await asyncio.gather(
            *(engine.steps.advance(step("a", x)) for x in range(5)),
            engine.steps.peek(step("a", 5)),
            engine.steps.advance(step("a", 6)),
        )

    assert ys(found) == fold_reference(range(6))[-1:]
    assert ys(last) == fold_reference([0, 1, 2, 3, 4, 6])[-1:]


async def test_a_peek_runs_the_model_version_that_started_the_stream(tmp_path: Path, redis_server: Server) -> None:
    write_model(tmp_path, "fold", lambda: fold(factor=3))
    async with worker(redis_server.url, tmp_path) as engine:
        await engine.steps.advance(step("a", 1))
        write_model(tmp_path, "fold", fold)
        await engine.models.reload()
        old, new = await engine.steps.peek(step("a", 2)), await engine.steps.peek(step("b", 2))

    assert (ys(old), ys(new)) == (fold_reference([1, 2], factor=3)[-1:], fold_reference([2]))


async def test_a_draining_engine_rejects_peeks_forks_and_snapshots(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.drain(0)
        refused = await gather_results(engine.steps.peek(step("a", 1)), fork(engine, "b"), snapshot(engine, "s"))

    assert [error.code for error in refused] == ["draining"] * 3


class RacingSnapshots(SnapshotStore):
    """Deletes the stream, and lets `then` create it again, after it was read and before its snapshot is stored."""

    engine: Engine
    then: Callable[[], Awaitable[object]] | None = None
    has_raced = False

    async def put(self, stream: str, name: str, record: bytes, **more: Any) -> bytes | None:
        if not self.has_raced:
            self.has_raced = True
            await self.engine.streams.delete(key("a"))
            if self.then is not None:
                await self.then()
        return await super().put(stream, name, record, **more)


async def racing_copies(engine: Engine, then: Callable[[], Awaitable[object]] | None) -> StreamCopies:
    snapshots = RacingSnapshots(engine.store, ttl_s=None, max_snapshots=4)
    snapshots.engine, snapshots.then = engine, then
    return StreamCopies(engine, snapshots)


async def test_no_snapshot_is_stored_of_a_stream_that_was_deleted_meanwhile(folder: Path, redis_server: Server) -> None:
    """It would belong to the next stream of that id."""
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 1))
        copies = await racing_copies(engine, None)
        with pytest.raises(ServiceError) as refused:
            await copies.create_snapshot(key("a"), "s", after=None, idempotency_key=None)
        await engine.steps.advance(step("a", 2))
        found = await StreamCopies(engine).list_snapshots(key("a"))

    assert refused.value.code == "stream_not_found"
    assert found == []


async def test_a_snapshot_is_of_the_stream_that_was_created_meanwhile(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 1))
        copies = await racing_copies(engine, lambda: engine.steps.advance(chunk("a", [5, 6, 7])))
        made = await copies.create_snapshot(key("a"), "s", after=None, idempotency_key=None)
        status, _ = await StreamCopies(engine).get_snapshot(key("a"), "s")

    assert (made.step, status.step) == (3, 3)
