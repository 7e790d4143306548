"""A batch of one timestep: the same records, responses and errors as in a batch of several rows."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from msgspec.structs import replace

from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.store.keys import record_key
from stepwell.store.record import Record, decode
from stepwell.types import Prediction, Source, StreamKey, Timestep
from tests.engine.harness import CountingObserver, expect_error, step, submit_bulk, worker, ys
from tests.graphs import fold, fold_reference, lstm, nan_at, two_inputs, write_models
from tests.servers import Server

XS = list(range(1, 8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


async def one_by_one(engine: Engine, stream: str, xs: list[int], *, after: int = 0) -> list[Prediction]:
    """Step a stream; each timestep is sent after the response to the previous one."""
    return [await engine.steps.advance(step(stream, x, seq=after + at)) for at, x in enumerate(xs, 1)]


def record_of(url: str, model: str, stream: str) -> Record:
    with redis.Redis.from_url(url) as client:
        raw: Any = client.get(record_key(*StreamKey("default", model, stream)))
        return decode(raw)


@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (fold, (np.ones(1, np.int64),)),
        (lstm, (np.ones(4, np.float32),)),
        (two_inputs, (np.ones(2, np.int64), np.ones((), np.int32))),
    ],
    ids=["fold", "lstm", "two_inputs"],
)
async def test_a_single_timestep_leaves_the_record_that_it_leaves_in_a_larger_batch(
    tmp_path: Path, redis_server: Server, build: Any, inputs: tuple[np.ndarray[Any, Any], ...]
) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, write_models(tmp_path, m=build), counts=counts) as engine:

        def timestep(stream: str, seq: int) -> Timestep:
            return Timestep(StreamKey("default", "m", stream), tuple(one.tobytes() for one in inputs), seq=seq)

        for seq in range(1, 5):
            single = await engine.steps.advance(timestep("single", seq))
            batched, _ = await asyncio.gather(
                *(engine.steps.advance(timestep(stream, seq)) for stream in ("batched", "others"))
            )

    first, second = (record_of(redis_server.url, "m", stream) for stream in ("single", "batched"))
    assert counts.batches == [1, 2] * 4
    assert (first.step, first.length, first.flags, first.op_id, first.history_hash) == (
        second.step,
        second.length,
        second.flags,
        second.op_id,
        second.history_hash,
    )
    assert len(first.state) == len(second.state)
    assert first.outputs == b"".join(array.tobytes() for array in single.outputs.values())
    assert (single.step, single.state_id) == (batched.step, batched.state_id)
    for name, array in batched.outputs.items():
        np.testing.assert_allclose(single.outputs[name], array, rtol=1e-6, strict=True)


async def test_a_single_timestep_with_a_source_leaves_the_record_that_it_leaves_row_by_row(
    folder: Path, redis_server: Server
) -> None:
    """`keep: last` is processed row by row; two sources take turns, and a timestep without one is in between."""
    counts = CountingObserver()
    logs = (b"log.....", b"log.....", b"other...", b"log.....", None, b"other...", b"other...")
    async with worker(redis_server.url, folder, counts=counts) as engine:
        for at, (log, x) in enumerate(zip(logs, XS, strict=True)):
            source = None if log is None else Source(log, (at,))
            single = await engine.steps.advance(step("single", x, seq=at + 1, source=source))
            row = await engine.steps.advance(step("row", x, seq=at + 1, source=source, keep="last"))
            first, second = (record_of(redis_server.url, "fold", stream) for stream in ("single", "row"))

            assert (ys(single), single.step, single.state_id) == (ys(row), row.step, row.state_id)
            assert first == replace(second, epoch=first.epoch, updated_ms=first.updated_ms, created_ms=first.created_ms)

    assert counts.store_ops == ["load", "commit"] * 2 + ["commit"] * 12
    assert len(first.sources) == 2


async def test_a_timestep_that_another_worker_applied_gets_the_response_of_that_worker(
    folder: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await one_by_one(one, "s", XS[:3])
        await two.steps.advance(step("s", XS[3], seq=4))
        first = await two.steps.advance(step("s", XS[4], seq=5))  # from here on the first worker's record is stale
        again = await one.steps.advance(step("s", XS[4], seq=5))

    assert (again.replayed, again.state_id, ys(again)) == (True, first.state_id, ys(first))


@pytest.mark.parametrize(("x", "expected"), [(9, "seq_conflict"), (4, {"replayed": True})])
async def test_a_stale_cached_record_is_detected_by_the_commit(
    folder: Path, redis_server: Server, x: int, expected: object
) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as one, worker(redis_server.url, folder) as two:
        await one_by_one(one, "s", [1, 2, 3])
        await two.steps.advance(step("s", 4, seq=4))
        counts.store_ops.clear()
        [result] = await asyncio.gather(one.steps.advance(step("s", x, seq=4)), return_exceptions=True)
        again = await one.steps.advance(step("s", 5, seq=5))

    found = result.code if isinstance(result, ServiceError) else {"replayed": getattr(result, "replayed", None)}
    assert (found, counts.store_ops[0]) == (expected, "commit")
    assert ys(again) == fold_reference([1, 2, 3, 4, 5])[-1:]


async def test_a_single_timestep_is_applied_only_as_the_next_one(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await one_by_one(engine, "s", XS[:3])

        codes = [(await expect_error(engine, step("s", 99, seq=seq))).code for seq in (2, 3, 5)]
        again = await engine.steps.advance(step("s", XS[3], seq=4))

    assert codes == ["seq_passed", "seq_conflict", "seq_gap"]
    assert ys(again) == fold_reference(XS[:4])[-1:]


async def test_a_single_timestep_is_applied_only_after_the_state_id_that_it_names(
    folder: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, folder) as engine:
        first, last = await one_by_one(engine, "s", XS[:2])

        error = await expect_error(engine, step("s", 99, after=first.state_id))
        again = await engine.steps.advance(step("s", XS[2], after=last.state_id))

    assert error.code == "state_changed"
    assert ys(again) == fold_reference(XS[:3])[-1:]


async def test_a_bulk_request_of_one_row_leaves_the_record_that_a_larger_one_leaves(
    folder: Path, redis_server: Server
) -> None:
    async with worker(redis_server.url, folder) as engine:
        for length, keep in itertools.product((1, 3), ("all", "last", "none")):
            names = [f"{name}-{length}-{keep}" for name in ("single", *(f"s{n}" for n in range(16)))]
            for streams in (names[:1], names[1:]):
                for start in (1, 1 + length):
                    await submit_bulk(engine, dict.fromkeys(streams, (XS[:length], start)), keep=keep)

            single, batched = (record_of(redis_server.url, "fold", stream) for stream in names[:2])
            assert (single.step, single.length, single.outputs, single.state, single.history_hash) == (
                batched.step,
                batched.length,
                batched.outputs,
                batched.state,
                batched.history_hash,
            ), (length, keep)


async def test_a_state_that_is_not_finite_is_not_committed(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, write_models(tmp_path, nan=lambda: nan_at(3))) as engine:

        def timestep(seq: int) -> Timestep:
            return Timestep(StreamKey("default", "nan", "s"), (np.ones(1, np.float32).tobytes(),), seq=seq)

        for seq in (1, 2):
            await engine.steps.advance(timestep(seq))
        error = await expect_error(engine, timestep(3))

    assert (error.code, error.applied) == ("non_finite_state", "no")
    assert record_of(redis_server.url, "nan", "s").step == 2
