"""Columns with positions of sources: the same answers and positions as row by row, and none is lost in between."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.engine.publisher import PendingCommits, Publisher
from stepwell.errors import ServiceError
from stepwell.store.commits import Notification
from stepwell.store.keys import event_log_key, record_key
from stepwell.store.record import SourcePosition, decode
from stepwell.types import Prediction, Source, StreamKey
from tests.engine.harness import CountingObserver, chunk, gather_results, step, submit_bulk, worker, ys
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server

MANY = [f"s{n}" for n in range(24)]
LOG, OTHER = b"log.....", b"other..."


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


def sources(at: Sequence[Sequence[int]], log: bytes = LOG) -> list[Source]:
    return [Source(log, tuple(row)) for row in at]


async def bulk(
    engine: Engine, names: Sequence[str], xs: Sequence[list[int]], rows: Sequence[Source] = ()
) -> dict[str, Prediction | ServiceError]:
    found = await submit_bulk(
        engine, {name: (row, 0) for name, row in zip(names, xs, strict=True)}, seqs=[None] * len(names), sources=rows
    )
    assert found is not None
    return found


def stored_sources(server: Server, name: str) -> tuple[SourcePosition, ...]:
    with server.client() as client:
        raw = client.get(record_key("default", "fold", name))
    assert isinstance(raw, bytes)
    return decode(raw).sources


def comparable(found: Prediction | ServiceError) -> Any:
    """Return everything that a response has of a result."""
    if isinstance(found, ServiceError):
        return found.code, found.problem, found.applied, found.step, found.state_id, found.expected, found.at
    flags = found.replayed, found.created, found.skipped, found.unknown, found.source_changed, found.version
    return ys(found), found.step, found.state_id, flags


async def test_columns_that_continue_their_sources_need_one_run_and_no_load(folder: Path, redis_server: Server) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await bulk(engine, MANY, [[i] for i in range(24)], sources([[0]] * 24))
        counts.batches.clear()
        counts.store_ops.clear()
        for at in range(1, 4):
            await bulk(engine, MANY, [[at]] * 24, sources([[at]] * 24))
        chunks = await bulk(engine, MANY, [[4, 5]] * 24, sources([[4, 7]] * 24))

    assert counts.batches == [24] * 4
    assert counts.store_ops == ["commit"] * 4
    assert [ys(one) for one in chunks.values() if isinstance(one, Prediction)] == [
        fold_reference([i, 1, 2, 3, 4, 5])[-2:] for i in range(24)
    ]
    assert stored_sources(redis_server, "s5") == (SourcePosition(LOG, 7),)


async def test_streams_that_another_worker_has_stepped_are_loaded_in_columns(
    folder: Path, redis_server: Server
) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder, counts=counts) as two:
        await bulk(one, MANY, [[i] for i in range(24)], sources([[0]] * 24))
        await bulk(two, MANY, [[1]] * 24, sources([[1]] * 24))
        await bulk(one, MANY[:5], [[2]] * 5, sources([[2]] * 5))
        found = await bulk(two, MANY, [[2 + (i < 5)] for i in range(24)], sources([[2 + (i < 5)] for i in range(24)]))

    assert counts.store_ops == ["load", "commit", "commit", "commit"]  # five rows meet a conflict
    assert counts.conflicted == 5
    assert [ys(one)[-1] for one in found.values() if isinstance(one, Prediction)] == [
        fold_reference([i, 1, 2, *([3] if i < 5 else [])])[-1] for i in range(24)
    ]
    assert stored_sources(redis_server, "s3") == (SourcePosition(LOG, 3),)


async def test_single_timesteps_with_sources_run_in_one_batch_and_others_in_another(
    folder: Path, redis_server: Server
) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await bulk(engine, MANY, [[i] for i in range(24)], sources([[0]] * 24))
        await asyncio.gather(*(engine.steps.advance(step(f"plain{i}", i)) for i in range(24)))
        counts.batches.clear()
        counts.store_ops.clear()
        for at in range(1, 4):
            found = await asyncio.gather(
                *(engine.steps.advance(step(name, at, source=Source(LOG, (at,)))) for name in MANY),
                *(engine.steps.advance(step(f"plain{i}", at)) for i in range(24)),
            )

    assert counts.batches == [24] * 6
    assert counts.store_ops == ["commit"] * 6
    assert [ys(one) for one in found] == [fold_reference([i, 1, 2, 3])[-1:] for i in range(24)] * 2
    assert stored_sources(redis_server, "s5") == (SourcePosition(LOG, 3),)


@pytest.mark.parametrize("seed", range(6))
async def test_a_timestep_in_columns_gets_the_answer_that_it_gets_row_by_row(
    folder: Path, redis_server: Server, seed: int
) -> None:
    """`keep: last` is processed row by row, and differs in nothing else for a single timestep."""
    rng = random.Random(seed)
    steps, at, state_ids = dict.fromkeys(MANY, 0), dict.fromkeys(MANY, 0), dict[str, bytes]()
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        for _ in range(40):
            requests = list[tuple[str, dict[str, Any]]]()
            for name in rng.sample(MANY, rng.choice((1, 2, 20))):
                source = Source(rng.choice((LOG, LOG, LOG, OTHER)), (at[name] + rng.choice((1, 1, 1, 0, -1, 7)) + 9,))
                more: dict[str, Any] = {"source": source}
                if rng.random() < 0.3:
                    more["seq"] = steps[name] + rng.choice((1, 1, 1, 0, 2))
                if rng.random() < 0.2:
                    more["after"] = rng.choice((state_ids.get(name, LOG * 2), LOG * 2))
                requests.append((name, more | {"create": rng.choice(("auto", "auto", "never"))}))
            engine, xs = rng.choice((one, two)), [rng.randrange(100) for _ in requests]
            columns, rows = [
                await gather_results(
                    *(
                        engine.steps.advance(step(f"{keep}-{name}", x, keep=keep, **more))
                        for (name, more), x in zip(requests, xs, strict=True)
                    )
                )
                for keep in ("all", "last")
            ]

            assert list(map(comparable, columns)) == list(map(comparable, rows))
            for (name, more), found in zip(requests, columns, strict=True):
                if isinstance(found, Prediction) and not found.skipped:
                    steps[name], at[name], state_ids[name] = found.step, more["source"].at[0] - 9, found.state_id

    for name in MANY:
        assert stored_sources(redis_server, f"all-{name}") == stored_sources(redis_server, f"last-{name}")


class LogOfEach(Publisher):
    """Keeps two events of each stream."""

    watched = ("fold",)

    def notifications(self, batch: PendingCommits) -> list[Notification]:
        logs = [event_log_key(record_key(*timestep.key)) for timestep in batch.timesteps]
        return [Notification(row, b"event", "", log, 2, 0) for row, log in enumerate(logs)]


@pytest.mark.parametrize("watched", [False, True], ids=["unwatched", "watched"])
@pytest.mark.parametrize("seed", range(4))
async def test_any_mix_of_columns_and_rows_applies_each_timestep_once(
    folder: Path, redis_server: Server, seed: int, watched: bool
) -> None:
    """With and without sources, read again or not, on two workers; watched batches are committed row by row."""
    rng = random.Random(seed)
    sent = {name: list[int]() for name in MANY}
    position = {(name, log): -1 for name in MANY for log in (LOG, OTHER)}
    publisher = LogOfEach() if watched else None
    async with (
        worker(redis_server.url, folder, publisher=publisher) as one,
        worker(redis_server.url, folder, publisher=publisher) as two,
    ):
        for _ in range(40):
            engine, length, names = rng.choice((one, two)), rng.choice((1, 1, 3)), rng.sample(MANY, rng.choice((1, 20)))
            log = rng.choice((LOG, LOG, LOG, OTHER, None))
            back = rng.choice((0, 0, 0, 1, 2)) if log else 0
            first = {name: max(0, position[name, log] + 1 - back) if log else 0 for name in names}
            xs = {name: [rng.randrange(1000) for _ in range(length)] for name in names}
            rows = {name: Source(log, tuple(range(at, at + length))) for name, at in first.items()} if log else {}
            if rng.random() < 0.7:
                found = await bulk(engine, names, list(xs.values()), list(rows.values()))
            else:
                one_by_one = (engine.steps.advance(chunk(name, xs[name], source=rows.get(name))) for name in names)
                found = dict(zip(names, await gather_results(*one_by_one), strict=True))
            for name in names:
                skipped = min(length, max(0, position[name, log] + 1 - first[name])) if log else 0
                if skipped < length:
                    sent[name] += xs[name][skipped:]
                    if log:
                        position[name, log] = first[name] + length - 1
                    result = found[name]
                    assert isinstance(result, Prediction)
                    assert (result.skipped, result.step) == (skipped, len(sent[name]))
                    assert ys(result)[skipped:] == fold_reference(sent[name])[-(length - skipped) :]
                else:
                    result = found[name]
                    assert (
                        result.skipped == length if isinstance(result, Prediction) else result.code == "source_passed"
                    )
        final = await asyncio.gather(*(one.steps.advance(step(name, 7)) for name in MANY))

    assert {name: ys(result) for name, result in zip(MANY, final, strict=True)} == {
        name: fold_reference([*xs, 7])[-1:] for name, xs in sent.items()
    }
    for name in MANY:
        kept = dict(stored_sources(redis_server, name))
        assert kept == {log: position[name, log] for log in (LOG, OTHER) if position[name, log] >= 0}


async def test_a_full_cache_keeps_sources_with_their_records(folder: Path, redis_server: Server) -> None:
    """The cache has room for a few records, and some of them have sources."""
    sent = {name: list[int]() for name in MANY}
    async with worker(redis_server.url, folder, options=EngineOptions(cache_bytes=4000)) as engine:
        for at in range(30):
            for name in MANY[at % 5 :: 3]:
                source = Source(LOG, (at,)) if name in MANY[::2] else None
                await engine.steps.advance(chunk(name, [at], source=source))
                sent[name].append(at)
        final = await asyncio.gather(*(engine.steps.advance(step(name, 7)) for name in MANY))

    assert [ys(result) for result in final] == [fold_reference([*sent[name], 7])[-1:] for name in MANY]
    assert [bool(stored_sources(redis_server, name)) for name in MANY] == [name in MANY[::2] for name in MANY]


async def test_the_first_source_of_a_cached_stream_alone_in_its_request_is_stored(
    folder: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("s0", 1))
        await bulk(engine, ["s0"], [[2]], sources([[5]]))

    assert stored_sources(redis_server, "s0") == (SourcePosition(LOG, 5),)


async def test_a_stream_that_begins_anew_has_no_position_of_its_predecessor(folder: Path, redis_server: Server) -> None:
    """The worker's cache has the deleted stream, with a source."""
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await bulk(one, MANY, [[1]] * 24, sources([[3]] * 24))
        await two.streams.delete(StreamKey("default", "fold", "s5"))
        found = await submit_bulk(one, {name: ([4], 1 if name == "s5" else 2) for name in MANY})

    assert [one.created for one in found.values() if isinstance(one, Prediction)].count(True) == 1
    assert stored_sources(redis_server, "s5") == ()
    assert stored_sources(redis_server, "s6") == (SourcePosition(LOG, 3),)


async def test_a_stream_created_again_elsewhere_has_no_position_of_its_predecessor(
    folder: Path, redis_server: Server
) -> None:
    """The worker's cache has the deleted stream, with two sources; the new one is loaded in columns."""
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await bulk(one, MANY, [[1]] * 24, sources([[3]] * 24, OTHER))
        await bulk(one, MANY, [[1]] * 24, sources([[9]] * 24))
        for name in MANY:
            await two.streams.delete(StreamKey("default", "fold", name))
        await asyncio.gather(*(two.steps.advance(chunk(name, [1, 2, 3])) for name in MANY))
        found = await submit_bulk(one, {name: ([4], 4) for name in MANY}, sources=sources([[10]] * 24))

    assert found is not None
    assert [ys(result) for result in found.values() if isinstance(result, Prediction)] == [
        fold_reference([1, 2, 3, 4])[-1:]
    ] * 24
    assert stored_sources(redis_server, "s5") == (SourcePosition(LOG, 10),)
