"""A timestep that begins a stream anew or ends it: one commit, exactly once under retry."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from service.engine.types import Life, StreamKey, Timestep
from service.store.keys import last_words_key, record_key, snapshots_key
from service.store.redis import StateStore
from tests.engine.bench import Counts, all_of, chunk, models, refusal, step, worker, ys
from tests.graphs import count, fold, fold_reference, lstm, nan_at, stateless
from tests.servers import Server
from tests.store.clusters import pair

NAME = record_key("default", "fold", "a")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return models(tmp_path, fold=fold)


def last(x: int, **more: Any) -> Timestep:
    return step("a", x, life="last", create="never", **more)


# ---------------------------------------------------------------- beginning anew


async def test_a_stream_that_begins_anew_starts_from_the_initial_state(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        answers = [await engine.advance(step("a", x, life=life)) for x, life in ((1, "new"), (2, "on"), (3, "new"))]

    assert [ys(a) for a in answers] == [[y] for y in [*fold_reference([1, 2]), *fold_reference([3])]]
    assert [(a.step, a.created) for a in answers] == [(1, True), (2, False), (1, False)]


async def test_an_initial_state_that_is_not_zero_is_begun_with_again(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, models(tmp_path, count=lambda: count(start=7))) as engine:
        ask = Timestep(StreamKey("default", "count", "a"), (np.zeros((1, 1), np.float32).tobytes(),))
        answers = [await engine.advance(replace(ask, life=life)) for life in ("new", "on", "new")]

    assert [ys(a) for a in answers] == [[8], [9], [8]]


async def test_a_new_life_is_another_history_though_its_inputs_are_the_same(folder: Path, redis_server: Server) -> None:
    """So a late request of the first life, with `after`, finds nothing that it fits."""
    async with worker(redis_server.url, folder) as engine:
        first = await engine.advance(step("a", 1, life="new"))
        again = await engine.advance(step("a", 1, life="new"))
        late = await refusal(engine, step("a", 2, after=first.state_id))

    assert ys(first) == ys(again)
    assert first.state_id != again.state_id
    assert late.code == "state_changed"


async def test_a_retry_of_a_numbered_beginning_gets_its_first_answer(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        first = await one.advance(step("a", 1, seq=1, life="new"))
        again = await all_of(*(engine.advance(step("a", 1, seq=1, life="new")) for engine in (one, two)))

    assert [(ys(a), a.step, a.state_id, a.replayed) for a in again] == [(ys(first), 1, first.state_id, True)] * 2


async def test_a_late_retry_of_a_beginning_with_a_key_does_not_begin_again(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        first = await one.advance(step("a", 1, life="new", idempotency_key="k"))
        await two.advance(step("a", 2))
        again = await one.advance(step("a", 1, life="new", idempotency_key="k"))
        onward = await two.advance(step("a", 3))

    assert (ys(again), again.replayed) == (ys(first), True)
    assert ys(onward) == fold_reference([1, 2, 3])[-1:]


async def test_a_key_that_began_a_stream_is_no_key_for_going_on(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.advance(step("a", 1, life="new", idempotency_key="k"))

        assert (await refusal(engine, step("a", 1, idempotency_key="k"))).code == "idempotency_key_reused"


async def test_beginnings_at_the_same_time_leave_one_of_them(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        answers = await asyncio.gather(*((one, two)[n % 2].advance(step("a", n, life="new")) for n in range(20)))
        onward = await one.advance(step("a", 5))

    assert [ys(a) for a in answers] == [fold_reference([n]) for n in range(20)]
    assert onward.step == 2
    assert ys(onward) in [fold_reference([n, 5])[-1:] for n in range(20)]


async def test_a_stream_of_another_model_version_begins_anew_with_this_one(
    tmp_path: Path, redis_server: Server
) -> None:
    folder = models(tmp_path, m=lstm)
    async with worker(redis_server.url, folder) as engine:
        await engine.advance(Timestep(StreamKey("default", "m", "a"), (np.zeros((1, 4), np.float32).tobytes(),)))
        models(folder, m=fold)
        await engine.shelf.reload()
        answers = [await engine.advance(step("a", x, model="m", life=life)) for x, life in ((1, "new"), (2, "on"))]

    assert [ys(a) for a in answers] == [[y] for y in fold_reference([1, 2])]


async def test_a_beginning_that_the_model_cannot_take_leaves_the_stream(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, models(tmp_path, m=lambda: nan_at(1))) as engine:
        key = StreamKey("default", "m", "a")
        refused = await refusal(engine, Timestep(key, (np.ones((1, 1), np.float32).tobytes(),), life="new"))

        assert refused.code == "non_finite_state"
        assert (await refusal(engine, step("a", 1, model="m", create="never"))).code == "stream_not_found"


# ---------------------------------------------------------------- ending


async def test_a_stream_is_forgotten_after_its_last_timestep(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.advance(step("a", 1))
        end = await engine.advance(last(2))
        page = await engine.list_streams("default", "fold")
        refused = await refusal(engine, step("a", 3, create="never"))

    assert (ys(end), end.step) == (fold_reference([1, 2])[-1:], 2)
    assert page.streams == []
    assert refused.code == "stream_not_found"


@pytest.mark.parametrize("named", [{"seq": 2}, {"idempotency_key": "k"}], ids=["by its number", "by its key"])
async def test_a_retry_of_an_end_gets_its_first_answer(
    folder: Path, redis_server: Server, named: dict[str, Any]
) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await one.advance(step("a", 1))
        first = await one.advance(last(2, **named))
        again = await all_of(*(engine.advance(last(2, **named)) for engine in (one, two)))

    assert [(ys(a), a.step, a.state_id, a.replayed) for a in again] == [(ys(first), 2, first.state_id, True)] * 2


async def test_a_retry_of_an_end_waits_for_a_replica_where_that_is_promised(folder: Path, short_path: Path) -> None:
    with pair(short_path) as (primary, _, _, _):
        async with worker(primary.url, folder, durability="replica") as engine:
            await engine.advance(step("a", 1))
            first = await engine.advance(last(2, seq=2))
            again = await engine.advance(last(2, seq=2))
            keyed = [await engine.advance(step("b", 1, life="whole", idempotency_key="k")) for _ in range(2)]

    assert (ys(again), again.replayed) == (ys(first), True)
    assert [a.replayed for a in keyed] == [False, True]


async def test_ends_at_the_same_time_are_one(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await one.advance(step("a", 1))
        answers = await asyncio.gather(*((one, two)[n % 2].advance(last(2, seq=2)) for n in range(20)))

    assert {(tuple(ys(a)), a.step) for a in answers} == {(tuple(fold_reference([1, 2])[-1:]), 2)}
    assert sum(not a.replayed for a in answers) == 1


async def test_whole_lives_of_one_key_at_the_same_time_are_one(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        ask = step("a", 1, life="whole", idempotency_key="k")
        answers = await asyncio.gather(*((one, two)[n % 2].advance(ask) for n in range(20)))

    assert [ys(a) for a in answers] == [fold_reference([1])] * 20
    assert sum(not a.replayed for a in answers) == 1


async def test_an_end_without_a_name_is_not_done_twice(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.advance(step("a", 1))
        await engine.advance(last(2))

        assert (await refusal(engine, last(2))).code == "stream_not_found"


async def test_the_last_words_of_one_life_answer_nothing_in_the_next(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        for x in (1, 5):
            await one.advance(step("a", x, life="new"))
            end = await two.advance(last(2, seq=2))

            assert (ys(end), end.replayed) == (fold_reference([x, 2])[-1:], False)


async def test_an_end_that_comes_late_into_the_next_life_is_refused(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        for x, life in ((1, "new"), (2, "on")):
            await engine.advance(step("a", x, life=life))
        await engine.advance(last(3, seq=3))
        await engine.advance(step("a", 1, life="new"))

        assert (await refusal(engine, last(3, seq=3))).code == "seq_gap"
        assert ys(await engine.advance(step("a", 2))) == fold_reference([1, 2])[-1:]


async def test_an_end_whose_reply_was_lost_is_answered_and_not_done_again(
    folder: Path, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store has done it, and the worker asks again because it did not hear."""
    counts = Counts()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await engine.advance(step("a", 1))
        commit = StateStore.commit

        async def twice(*args: Any, **more: Any) -> Any:
            await commit(*args, **more)
            return await commit(*args, **more)

        monkeypatch.setattr(StateStore, "commit", twice)
        end = await engine.advance(last(2))

    assert (ys(end), end.step) == (fold_reference([1, 2])[-1:], 2)
    assert counts.regressed == 0


async def test_what_others_did_meanwhile_is_what_an_end_follows(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await one.advance(step("a", 1))
        await two.advance(step("a", 2))
        end = await one.advance(last(3))
        refused = await refusal(two, step("a", 4, create="never"))

    assert ys(end) == fold_reference([1, 2, 3])[-1:]
    assert refused.code == "stream_not_found"


@pytest.mark.parametrize("life", ["on", "whole"])
async def test_a_whole_life_in_one_timestep_leaves_nothing(folder: Path, redis_server: Server, life: Life) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.advance(step("a", 9, life=life))
        answers = [await engine.advance(step("a", 1, seq=1, life="whole")) for _ in range(2)]

        assert [(ys(a), a.step) for a in answers] == [(fold_reference([1]), 1)] * 2
        assert (await refusal(engine, step("a", 2, create="never"))).code == "stream_not_found"


async def test_an_ended_stream_leaves_no_snapshots(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.advance(step("a", 1))
        redis_server.client().hset(snapshots_key(NAME), "s", "...")
        await engine.advance(last(2))

    assert redis_server.client().exists(snapshots_key(NAME)) == 0


async def test_last_words_are_forgotten_in_their_time(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder, idempotency_ttl_s=50) as engine:
        await engine.advance(step("a", 1))
        await engine.advance(last(2, seq=2))

    assert redis_server.client().exists(NAME) == 0
    assert 40_000 < redis_server.client().pttl(last_words_key(NAME)) <= 50_000


async def test_a_chunk_may_begin_or_end_a_stream(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.advance(step("a", 9))
        begun = await engine.advance(chunk("a", [1, 2], life="new"))
        ended = await engine.advance(chunk("a", [3, 4], life="last"))

    assert [*ys(begun), *ys(ended)] == fold_reference([1, 2, 3, 4])


# ---------------------------------------------------------------- of no stream


async def test_a_model_without_state_runs_timesteps_of_no_stream_together(tmp_path: Path, redis_server: Server) -> None:
    counts = Counts()
    async with worker(redis_server.url, models(tmp_path, double=stateless), counts=counts) as engine:
        key = StreamKey("default", "double", "")
        rows = [Timestep(key, (np.array([[n, 1]], np.float32).tobytes(),), life="none") for n in range(50)]
        answers = await asyncio.gather(*map(engine.advance, rows))

    assert [a.outputs["y"].tolist() for a in answers] == [[[2.0 * n, 2.0]] for n in range(50)]
    assert max(counts.batches) > 10
    assert redis_server.client().dbsize() == 0
