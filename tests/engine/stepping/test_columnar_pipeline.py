"""Bulk requests in columns: the same answers as row by row, also when some rows fail."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import redis
from msgspec import structs

from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.engine.stepping.batch import BulkBatch, CoalescedBatch
from stepwell.errors import ServiceError
from stepwell.store.keys import record_key
from stepwell.store.record import Kind, decode, version_flags
from stepwell.types import Prediction, StreamKey, Timestep
from stepwell_client.wire.outcomes import ReturnMode
from tests.engine.harness import CountingObserver, chunk, gather_results, step, submit_bulk, worker, ys
from tests.graphs import fold, fold_reference, nan_at, write_models
from tests.servers import Server

MANY = [f"s{n}" for n in range(40)]


def next_key(case: dict[str, Any]) -> str:
    return next(iter(case))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


async def start_streams(engine: Engine) -> dict[str, bytes]:
    """Bring every stream to step 1 and return their state ids."""
    found = [await engine.steps.advance(step(name, at, seq=1)) for at, name in enumerate(MANY)]
    return {name: one.state_id for name, one in zip(MANY, found, strict=True)}


async def bulk_predictions(
    engine: Engine, rows: dict[str, tuple[list[int], int]], **more: Any
) -> dict[str, Prediction]:
    """Submit a bulk request and assert that every row was applied."""
    found = await submit_bulk(engine, rows, **more)
    assert not [one for one in found.values() if isinstance(one, ServiceError)]
    return {name: one for name, one in found.items() if isinstance(one, Prediction)}


@pytest.mark.parametrize("seed", range(4))
async def test_any_mix_of_transports_and_workers_folds_every_stream(
    folder: Path, redis_server: Server, seed: int
) -> None:
    rng, sent = random.Random(seed), {name: list[int]() for name in MANY}
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        for _ in range(30):
            engine, length, names = rng.choice((one, two)), rng.choice((1, 1, 3)), rng.sample(MANY, rng.randint(16, 40))
            rows = {name: ([rng.randrange(1000) for _ in range(length)], len(sent[name]) + 1) for name in names}
            if rng.random() < 0.5 or length > 1:
                answers = await bulk_predictions(engine, rows)
            else:
                found = await asyncio.gather(
                    *(engine.steps.advance(step(n, xs[0], seq=q)) for n, (xs, q) in rows.items())
                )
                answers = dict(zip(rows, found, strict=True))
            for name, (xs, _) in rows.items():
                sent[name] += xs
            wanted = {name: (fold_reference(sent[name])[-length:], len(sent[name])) for name in names}
            assert {name: (ys(one), one.step) for name, one in answers.items()} == wanted
            if rng.random() < 0.5:  # a retry, over either transport, on either worker
                again = await bulk_predictions(rng.choice((one, two)), rows)
                assert {name: one.state_id for name, one in again.items()} == {
                    name: one.state_id for name, one in answers.items()
                }
                assert all(one.replayed for one in again.values())


async def test_the_same_bulk_request_on_two_workers_is_applied_once(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await start_streams(one)
        for seq in range(2, 12):
            rows = {name: ([seq], seq) for name in MANY}
            first, second = await asyncio.gather(bulk_predictions(one, rows), bulk_predictions(two, rows))
            assert {n: (one.state_id, ys(one)) for n, one in first.items()} == {
                n: (one.state_id, ys(one)) for n, one in second.items()
            }
            assert all(first[name].replayed is not second[name].replayed for name in MANY)


async def test_a_stream_that_another_worker_stepped_is_rejected_alone(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await start_streams(one)
        await two.steps.advance(step("s7", 9, seq=2))
        found = await submit_bulk(one, {name: ([5], 2) for name in MANY})

    refused = {name: one for name, one in found.items() if isinstance(one, ServiceError)}
    assert {name: (one.code, one.step, one.applied) for name, one in refused.items()} == {
        "s7": ("seq_conflict", 2, "no")
    }
    others = [one for one in found.values() if isinstance(one, Prediction)]
    assert [(ys(one), one.step) for one in others] == [
        (fold_reference([at, 5])[-1:], 2) for at, name in enumerate(MANY) if name != "s7"
    ]


@pytest.mark.parametrize("known", [0, 20, 40])
async def test_records_missing_from_the_cache_are_loaded_in_one_batch(
    folder: Path, redis_server: Server, known: int
) -> None:
    """Some were never cached; others are stale, since another worker stepped their streams."""
    counts = CountingObserver()
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder, counts=counts) as two:
        await start_streams(one)
        if known:
            await asyncio.gather(*(two.steps.advance(step(name, 1, seq=2)) for name in MANY[:known]))
            await asyncio.gather(*(one.steps.advance(step(name, 1, seq=2)) for name in MANY[known:]))
            await bulk_predictions(one, {name: ([2], 3) for name in MANY})
        seq = 4 if known else 2
        counts.store_ops.clear()
        counts.batches.clear()
        answers = await bulk_predictions(two, {name: ([7], seq) for name in MANY})

    sent = [1, 2, 7] if known else [7]
    assert {n: ys(one) for n, one in answers.items()} == {
        name: fold_reference([at, *sent])[-1:] for at, name in enumerate(MANY)
    }
    assert (counts.store_ops, counts.batches, counts.conflicted) == (["load", "commit"], [40], 0)


async def test_a_corrupt_record_fails_its_own_row_only(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await start_streams(one)
        name = record_key("default", "fold", MANY[3])
        with redis.Redis.from_url(redis_server.url) as client:
            record = client.get(name)
            assert isinstance(record, bytes)
            client.set(name, record[:-1] + bytes([record[-1] ^ 1]))
        found = await submit_bulk(two, {stream: ([7], 2) for stream in MANY})

    failed = {stream: one.code for stream, one in found.items() if isinstance(one, ServiceError)}
    assert failed == {MANY[3]: "state_corrupt"}


async def test_after_is_checked_for_each_row(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        ids = await start_streams(engine)
        moved = await bulk_predictions(engine, {name: ([3], 2) for name in MANY}, afters=list(ids.values()))
        afters = [b"?" * 16 if name == "s3" else one.state_id for name, one in moved.items()]
        found = await submit_bulk(engine, {name: ([4], 3) for name in MANY}, afters=afters)

    codes = {name: one.code for name, one in found.items() if isinstance(one, ServiceError)}
    assert codes == {"s3": "state_changed"}


async def test_a_row_whose_state_is_not_finite_does_not_affect_the_others(tmp_path: Path, redis_server: Server) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, write_models(tmp_path, nan=lambda: nan_at(3)), counts=counts) as engine:

        def ask(name: str, seq: int) -> Timestep:
            return Timestep(StreamKey("default", "nan", name), (np.ones(1, np.float32).tobytes(),), seq=seq)

        for seq in (1, 2):
            await engine.steps.advance(ask("far", seq))
        for name in MANY:
            await engine.steps.advance(ask(name, 1))
        asked = [ask("far", 3), *(ask(name, 2) for name in MANY)]
        counts.batches.clear()
        far, *others = await gather_results(*(engine.steps.advance(one) for one in asked))

    assert isinstance(far, ServiceError)
    assert (far.code, far.applied) == ("non_finite_state", "no")
    assert counts.batches == [41], "rows that succeeded are not run again"
    assert [(one.step, float(one.outputs["y"][0, 0])) for one in others] == [(2, 2.0)] * len(MANY)


async def test_a_bulk_of_chunks_runs_the_model_once_per_timestep_and_commits_once(
    folder: Path, redis_server: Server
) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await start_streams(engine)
        counts.batches.clear()
        await bulk_predictions(engine, {name: ([1, 2, 3], 2) for name in MANY})
        await asyncio.gather(*(engine.steps.advance(step(name, 1, seq=5)) for name in MANY))

    assert counts.batches == [40, 40]


@pytest.mark.parametrize("more", [{"create": "must"}, {"idempotency_key": "k"}], ids=next_key)
async def test_a_bulk_request_with_a_key_or_for_new_streams_alone_is_applied_once(
    folder: Path, redis_server: Server, more: dict[str, Any]
) -> None:
    async with worker(redis_server.url, folder) as engine:
        first = await bulk_predictions(engine, {name: ([1], 1) for name in MANY}, **more)
        again = await bulk_predictions(engine, {name: ([1], 1) for name in MANY}, **more)

    assert {one.created for one in first.values()} == {True}
    assert {one.replayed for one in again.values()} == {True}


@pytest.mark.parametrize("n_faults", [0, 1, 3])
async def test_a_bulk_request_larger_than_a_batch_becomes_several(
    folder: Path, redis_server: Server, n_faults: int
) -> None:
    counts, faults = CountingObserver(), {at: ServiceError("bad_input", "x", fix="y") for at in range(n_faults)}
    async with worker(redis_server.url, folder, counts=counts, options=EngineOptions(max_batch_size=30)) as engine:
        await start_streams(engine)
        counts.batches.clear()
        found = await submit_bulk(engine, {name: ([at], 2) for at, name in enumerate(MANY)}, faults=faults)

    assert sorted(counts.batches) == [10 - n_faults, 30]  # a slow run of one does not keep the other waiting
    assert [one if isinstance(one, ServiceError) else ys(one) for one in (found[name] for name in MANY)] == [
        faults.get(at) or fold_reference([at, at])[-1:] for at in range(40)
    ]


async def test_a_bulk_request_without_a_valid_row_gets_its_errors(folder: Path, redis_server: Server) -> None:
    faults = {at: ServiceError("bad_input", f"row {at}", fix="y") for at in (1, 0)}
    async with worker(redis_server.url, folder) as engine:
        found = await submit_bulk(engine, {name: ([1], 1) for name in MANY[:2]}, faults=faults)

    assert list(found.values()) == [faults[0], faults[1]]


async def test_a_small_bulk_request_is_a_batch_of_its_own_only_while_nothing_else_waits(
    folder: Path, redis_server: Server
) -> None:
    """Under load, a few rows cost less if they share a batch with others."""
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await submit_bulk(engine, {name: ([1], 1) for name in MANY[:3]})
        other = asyncio.create_task(engine.steps.advance(step(MANY[9], 1)))
        await asyncio.sleep(0)  # the step is in the queue
        await submit_bulk(engine, {name: ([2], 2) for name in MANY[:3]})
        await other

    assert counts.batches == [3, 4]


@pytest.mark.parametrize("form", ["without a position", "by history", "by both", "all kinds in one batch"])
async def test_single_steps_of_existing_streams_are_processed_in_columns_however_they_state_their_position(
    folder: Path, redis_server: Server, form: str
) -> None:
    """The Python client states a history, Triton's clients state nothing; neither leaves the columnar pipeline."""
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        first = await asyncio.gather(*(engine.steps.advance(step(name, 1)) for name in MANY))
        counts.store_ops.clear()
        rows = []
        for n, (name, done) in enumerate(zip(MANY, first, strict=True)):
            kind = n % 3 if form.startswith("all") else ("without a position", "by history", "by both").index(form)
            more = ({}, {"after": done.state_id}, {"after": done.state_id, "seq": 2})[kind]
            rows.append(step(name, n, create="never" if n % 2 else "auto", **more))
        with watched_rows() as built:
            answers = await asyncio.gather(*map(engine.steps.advance, rows))

    assert [ys(one) for one in answers] == [fold_reference([1, n])[-1:] for n in range(40)]
    assert counts.store_ops == ["commit"]
    assert built == []


async def test_a_step_by_history_is_refused_in_columns_if_the_stream_has_moved(
    folder: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        first = await asyncio.gather(*(one.steps.advance(step(name, 1)) for name in MANY))
        await two.steps.advance(step(MANY[3], 5))
        rows = [step(name, 2, after=done.state_id) for name, done in zip(MANY, first, strict=True)]
        answers = await asyncio.gather(*map(one.steps.advance, rows), return_exceptions=True)
        again = await asyncio.gather(*map(one.steps.advance, rows), return_exceptions=True)

    codes = [getattr(answer, "code", "ok") for answer in answers]
    assert codes == ["ok"] * 3 + ["state_changed"] + ["ok"] * 36
    repeated = [
        answer.code if isinstance(answer, ServiceError) else getattr(answer, "replayed", None) for answer in again
    ]
    assert repeated == [True] * 3 + ["state_changed"] + [True] * 36


async def test_a_step_without_a_position_starts_a_missing_stream(folder: Path, redis_server: Server) -> None:
    """A missing stream is never mistaken for one at step 0, also beside streams that exist."""
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step(MANY[0], 1))
        answers = await asyncio.gather(
            engine.steps.advance(step(MANY[0], 2)),
            engine.steps.advance(step(MANY[1], 2)),
            engine.steps.advance(step(MANY[2], 2, create="never")),
            return_exceptions=True,
        )

    assert [getattr(answer, "created", None) for answer in answers] == [False, True, None]
    assert isinstance(answers[2], ServiceError)
    assert answers[2].code == "stream_not_found"


@contextlib.contextmanager
def watched_rows() -> Iterator[list[int]]:
    """List the rows of batches that get an object of their own meanwhile."""
    built: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for kind in (CoalescedBatch, BulkBatch):
            build = kind._new_row

            def observed(batch: Any, i: int, build: Any = build) -> Any:
                built.append(i)
                return build(batch, i)

            patch.setattr(kind, "_new_row", observed)
        yield built


@pytest.mark.parametrize("send", ["columns", "one by one"])
async def test_new_replayed_and_refused_rows_are_processed_in_columns(
    folder: Path, redis_server: Server, send: str
) -> None:
    """Among usual rows: one load for them, then one run and one commit for all rows that are applied."""
    counts = CountingObserver()
    names = [*MANY, "new"]
    seqs = [2] * 38 + [1, 9, 1]
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await start_streams(engine)
        counts.store_ops.clear()
        counts.batches.clear()
        with watched_rows() as built:
            if send == "columns":
                found = await submit_bulk(
                    engine, {name: ([at], seq) for at, (name, seq) in enumerate(zip(names, seqs, strict=True))}
                )
                answers: list[Any] = list(found.values())
            else:
                rows = (step(name, at, seq=seq) for at, (name, seq) in enumerate(zip(names, seqs, strict=True)))
                answers = await gather_results(*map(engine.steps.advance, rows))

    assert built == []
    assert (counts.store_ops, counts.batches) == (["load", "commit"], [39])
    assert [ys(one) for one in answers[:38]] == [fold_reference([at, at])[-1:] for at in range(38)]
    assert (answers[38].replayed, answers[39].code, answers[40].created) == (True, "seq_gap", True)


@pytest.mark.parametrize(
    "other", [{"flags": Kind.STEP | version_flags(3, changed=True)}, {"fingerprint": b"another!"}], ids=next_key
)
async def test_a_replay_of_another_version_is_the_same_in_columns_as_of_each_row(
    folder: Path, redis_server: Server, other: dict[str, Any]
) -> None:
    rows = {name: ([at], 1) for at, name in enumerate(MANY)}

    def shown(result: Any) -> tuple[Any, ...]:
        if isinstance(result, ServiceError):
            return result.code, result.applied, result.step
        return result.replayed, result.step, result.state_id, result.version, result.shows_version, ys(result)

    async with worker(redis_server.url, folder) as engine:
        await bulk_predictions(engine, rows)
        with redis.Redis.from_url(redis_server.url) as client:
            for name in MANY[:3]:
                key = record_key("default", "fold", name)
                stored = client.get(key)
                assert isinstance(stored, bytes)
                client.set(key, structs.replace(decode(stored), **other).encode())
        together = await submit_bulk(engine, rows)
        alone = [await gather_results(engine.steps.advance(step(n, x, seq=1))) for n, ([x], _) in rows.items()]

    assert [*map(shown, together.values())] == [shown(one) for [one] in alone]
    assert len({shown(one)[0:1] + shown(one)[3:5] for one in together.values()}) == 2


async def test_a_stream_that_was_deleted_elsewhere_begins_anew_although_its_record_is_cached(
    folder: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await start_streams(one)
        for name in MANY[:3]:
            await two.streams.delete(StreamKey("default", "fold", name))
        with watched_rows() as built:
            found = await bulk_predictions(one, {name: ([7], 1 if name in MANY[:3] else 2) for name in MANY})
        again = await bulk_predictions(two, {name: ([8], 2 if name in MANY[:3] else 3) for name in MANY})

    assert built == []
    assert [(one.created, one.step) for one in found.values()] == [(True, 1)] * 3 + [(False, 2)] * 37
    assert [ys(one) for one in found.values()] == [fold_reference([7] if at < 3 else [at, 7])[-1:] for at in range(40)]
    assert [ys(one) for one in again.values()] == [
        fold_reference([7, 8] if at < 3 else [at, 7, 8])[-1:] for at in range(40)
    ]


@pytest.mark.parametrize(("kept", "wanted"), [*itertools.product(get_args(ReturnMode), repeat=2)])
async def test_a_replay_in_columns_is_the_replay_of_each_row(
    folder: Path, redis_server: Server, kept: ReturnMode, wanted: ReturnMode
) -> None:
    """With as many predictions as the retry requests, or an error if fewer are stored."""
    rows = {name: ([at, 2, 3], 1) for at, name in enumerate(MANY)}

    def shown(result: Any) -> tuple[Any, ...]:
        if isinstance(result, ServiceError):
            return result.code, result.applied, result.step
        return result.replayed, result.step, result.state_id, result.version, ys(result) if result.outputs else None

    async with worker(redis_server.url, folder) as engine:
        first = await bulk_predictions(engine, rows, keep=kept)
        with watched_rows() as built:
            together = await submit_bulk(engine, rows, keep=wanted)
        alone = await gather_results(
            *(engine.steps.advance(chunk(name, xs, seq=seq, keep=wanted)) for name, (xs, seq) in rows.items())
        )

    assert [*map(shown, together.values())] == [*map(shown, alone)]
    if kept == wanted:
        assert [(one.state_id, shown(one)[-1]) for one in first.values()] == [shown(one)[2::2] for one in alone]
        assert built == []


@pytest.mark.parametrize(("most", "parts"), [(256, [160, 96]), (100, [100, 100, 56])])
async def test_many_single_steps_are_split_into_batches(
    folder: Path, redis_server: Server, most: int, parts: list[int]
) -> None:
    """One batch runs while the store commits the other; no batch exceeds `max_batch_size`."""
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts, options=EngineOptions(max_batch_size=most)) as engine:
        for seq in (1, 2):
            asked = (engine.steps.advance(step(f"s{n}", n, seq=seq)) for n in range(256))
            answers = await asyncio.gather(*asked)

    assert [ys(one) for one in answers] == [fold_reference([n, n])[-1:] for n in range(256)]
    assert sorted(counts.batches) == sorted(parts * 2)


async def test_a_bulk_request_waits_for_earlier_steps_of_one_of_its_streams(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await start_streams(engine)
        earlier = asyncio.gather(*(engine.steps.advance(step("s5", 7, seq=seq)) for seq in (2, 3, 4)))
        await asyncio.sleep(0)
        after = await bulk_predictions(engine, {name: ([8], 5 if name == "s5" else 2) for name in MANY})
        await earlier

    assert ys(after["s5"]) == fold_reference([5, 7, 7, 7, 8])[-1:]


async def test_a_reply_callback_that_raises_does_not_affect_the_others(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await start_streams(engine)
        answers: list[asyncio.Future[Any]] = [asyncio.get_running_loop().create_future() for _ in MANY]

        def broken(_: Any) -> None:
            raise RuntimeError("a broken callback")

        for at, (name, answer) in enumerate(zip(MANY, answers, strict=True)):
            engine.steps.submit(step(name, 1, seq=2), answer.set_result if at else broken)
        found = await asyncio.wait_for(asyncio.gather(*answers[1:]), 60)

    assert [one.step for one in found] == [2] * 39


async def test_a_rejected_bulk_request_costs_the_tenant_no_rate(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder, options=EngineOptions(tenant_rate=50)) as engine:
        await bulk_predictions(engine, {name: ([1], 1) for name in MANY})
        found = await submit_bulk(engine, {name: ([1], 2) for name in MANY})

    moved = [one for one in found.values() if isinstance(one, Prediction)]
    assert 10 <= len(moved) < len(MANY), "the rejected bulk request took tokens of the tenant"
