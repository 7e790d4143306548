"""A timestep that starts or ends a stream: one commit, exactly once under retries."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from stepwell.errors import ServiceError
from stepwell.store.keys import end_entry_key, record_key, snapshots_key
from stepwell.store.state_store import StateStore
from stepwell.types import StreamKey, Timestep
from tests.engine.harness import CountingObserver, expect_error, step, worker, ys
from tests.graphs import count, fold, fold_reference, lstm, nan_at, stateless, write_models
from tests.servers import Server
from tests.store.clusters import primary_and_replica

NAME = record_key("default", "fold", "a")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


def last(x: int, **more: Any) -> Timestep:
    return step("a", x, lifecycle="last", create="never", **more)


# ---------------------------------------------------------------- start


async def test_a_start_uses_the_initial_state(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        answers = [
            await engine.steps.advance(step("a", x, lifecycle=life)) for x, life in ((1, "new"), (2, "on"), (3, "new"))
        ]

    assert [ys(a) for a in answers] == [[y] for y in [*fold_reference([1, 2]), *fold_reference([3])]]
    assert [(a.step, a.created) for a in answers] == [(1, True), (2, False), (1, False)]


async def test_a_start_uses_an_initial_state_that_is_not_zero(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, write_models(tmp_path, count=lambda: count(start=7))) as engine:
        ask = Timestep(StreamKey("default", "count", "a"), (np.zeros((1, 1), np.float32).tobytes(),))
        answers = [await engine.steps.advance(replace(ask, lifecycle=life)) for life in ("new", "on", "new")]

    assert [ys(a) for a in answers] == [[8], [9], [8]]


async def test_a_restart_has_another_history_though_its_inputs_are_the_same(folder: Path, redis_server: Server) -> None:
    """So a late request of the previous incarnation, with `after`, is rejected."""
    async with worker(redis_server.url, folder) as engine:
        first = await engine.steps.advance(step("a", 1, lifecycle="new"))
        again = await engine.steps.advance(step("a", 1, lifecycle="new"))
        late = await expect_error(engine, step("a", 2, after=first.state_id))

    assert ys(first) == ys(again)
    assert first.state_id != again.state_id
    assert late.code == "state_changed"


async def test_the_key_of_a_start_cannot_be_used_for_a_continuation(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 1, lifecycle="new", idempotency_key="k"))

        assert (await expect_error(engine, step("a", 1, idempotency_key="k"))).code == "idempotency_key_reused"


async def test_a_start_moves_a_stream_of_another_model_version_to_the_current_one(
    tmp_path: Path, redis_server: Server
) -> None:
    folder = write_models(tmp_path, m=lstm)
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(Timestep(StreamKey("default", "m", "a"), (np.zeros((1, 4), np.float32).tobytes(),)))
        write_models(folder, m=fold)
        await engine.models.reload()
        answers = [
            await engine.steps.advance(step("a", x, model="m", lifecycle=life)) for x, life in ((1, "new"), (2, "on"))
        ]

    assert [ys(a) for a in answers] == [[y] for y in fold_reference([1, 2])]


async def test_a_start_that_the_model_cannot_run_leaves_the_stream_unchanged(
    tmp_path: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, write_models(tmp_path, m=lambda: nan_at(1))) as engine:
        key = StreamKey("default", "m", "a")
        refused = await expect_error(engine, Timestep(key, (np.ones((1, 1), np.float32).tobytes(),), lifecycle="new"))

        assert refused.code == "non_finite_state"
        assert (await expect_error(engine, step("a", 1, model="m", create="never"))).code == "stream_not_found"


# ---------------------------------------------------------------- end


async def test_a_retried_end_waits_for_a_replica_if_durability_requires_it(folder: Path, short_path: Path) -> None:
    with primary_and_replica(short_path) as (primary, _, _, _):
        async with worker(primary.url, folder, durability="replica") as engine:
            await engine.steps.advance(step("a", 1))
            first = await engine.steps.advance(last(2, seq=2))
            again = await engine.steps.advance(last(2, seq=2))
            keyed = [await engine.steps.advance(step("b", 1, lifecycle="whole", idempotency_key="k")) for _ in range(2)]

    assert (ys(again), again.replayed) == (ys(first), True)
    assert [a.replayed for a in keyed] == [False, True]


async def test_an_end_without_seq_or_key_is_rejected_the_second_time(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 1))
        await engine.steps.advance(last(2))

        assert (await expect_error(engine, last(2))).code == "stream_not_found"


async def test_a_late_end_is_rejected_by_the_next_incarnation(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        for x, life in ((1, "new"), (2, "on")):
            await engine.steps.advance(step("a", x, lifecycle=life))
        await engine.steps.advance(last(3, seq=3))
        await engine.steps.advance(step("a", 1, lifecycle="new"))

        assert (await expect_error(engine, last(3, seq=3))).code == "seq_gap"
        assert ys(await engine.steps.advance(step("a", 2))) == fold_reference([1, 2])[-1:]


async def test_an_end_whose_reply_was_lost_is_answered_and_not_applied_again(
    folder: Path, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store applied the commit, and the worker retries it because the reply did not arrive."""
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await engine.steps.advance(step("a", 1))
        commit = StateStore.commit

        async def twice(*args: Any, **more: Any) -> Any:
            await commit(*args, **more)
            return await commit(*args, **more)

        monkeypatch.setattr(StateStore, "commit", twice)
        end = await engine.steps.advance(last(2))

    assert (ys(end), end.step) == (fold_reference([1, 2])[-1:], 2)
    assert counts.regressed == 0


async def test_an_ended_stream_leaves_no_snapshots(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 1))
        redis_server.client().hset(snapshots_key(NAME), "s", "...")
        await engine.steps.advance(last(2))

    assert redis_server.client().exists(snapshots_key(NAME)) == 0


async def test_the_replay_entry_of_an_end_expires(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder, idempotency_ttl_s=50) as engine:
        await engine.steps.advance(step("a", 1))
        await engine.steps.advance(last(2, seq=2))

    assert redis_server.client().exists(NAME) == 0
    assert 40_000 < redis_server.client().pttl(end_entry_key(NAME)) <= 50_000


# ---------------------------------------------------------------- stateless


async def test_timesteps_of_a_stateless_model_run_in_one_batch(tmp_path: Path, redis_server: Server) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, write_models(tmp_path, double=stateless), counts=counts) as engine:
        key = StreamKey("default", "double", "")
        rows = [Timestep(key, (np.array([[n, 1]], np.float32).tobytes(),), lifecycle="none") for n in range(50)]
        answers = await asyncio.gather(*map(engine.steps.advance, rows))

    assert [a.outputs["y"].tolist() for a in answers] == [[[2.0 * n, 2.0]] for n in range(50)]
    assert max(counts.batches) > 10
    assert redis_server.client().dbsize() == 0


async def test_a_stateless_timestep_that_the_model_rejects_fails_no_other(tmp_path: Path, redis_server: Server) -> None:
    values = [1.0, 3e38, 2.0, 3.0]  # twice the second one is infinite
    async with worker(redis_server.url, write_models(tmp_path, double=stateless)) as engine:
        key = StreamKey("default", "double", "")
        rows = [Timestep(key, (np.array([[x, 1]], np.float32).tobytes(),), lifecycle="none") for x in values]
        first, rejected, *others = await asyncio.gather(*map(engine.steps.advance, rows), return_exceptions=True)

    assert isinstance(rejected, ServiceError)
    assert (rejected.code, rejected.applied) == ("non_finite_state", "no")
    assert [a.outputs["y"].tolist() for a in [first, *others]] == [[[2.0, 2.0]], [[4.0, 2.0]], [[6.0, 2.0]]]  # type: ignore[union-attr]
