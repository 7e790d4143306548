"""Each timestep of a batch has its own deadline, whatever the deadlines of the others are."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.errors import ServiceError
from stepwell.types import Prediction, Timestep
from tests.engine.harness import chunk, step, worker, ys
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server

YOUNG = [f"s{n}" for n in range(8)]
OPTIONS = EngineOptions(request_timeout_s=3.0, max_wait_s=1.5)


def submit(engine: Engine, timestep: Timestep) -> asyncio.Future[Prediction | ServiceError]:
    done: asyncio.Future[Prediction | ServiceError] = asyncio.get_running_loop().create_future()
    engine.steps.submit(timestep, done.set_result)
    return done


async def in_one_batch(
    engine: Engine, server: Server, old: Timestep, young: Sequence[Timestep]
) -> tuple[Prediction | ServiceError, list[Prediction | ServiceError]]:
    """Send timesteps that share a batch to a store that replies again when the oldest one has its response."""
    server.send(signal.SIGSTOP)
    first, loop = submit(engine, old), asyncio.get_running_loop()
    submitted: asyncio.Future[list[asyncio.Future[Prediction | ServiceError]]] = loop.create_future()
    loop.call_later(1.4, lambda: submitted.set_result([submit(engine, one) for one in young]))
    try:
        found = await first
    finally:
        server.send(signal.SIGCONT)
    return found, await asyncio.gather(*await submitted)


@pytest.mark.parametrize("length", [1, 2])
async def test_a_row_that_expires_before_it_is_committed_fails_alone_and_was_not_applied(
    tmp_path: Path, redis_server: Server, length: int
) -> None:
    """Its record is to be loaded; a batch of single timesteps is processed as columns, one of chunks row by row."""
    xs = [7] * length
    async with worker(redis_server.url, write_models(tmp_path, fold=fold), options=OPTIONS) as engine:
        old, young = await in_one_batch(engine, redis_server, chunk("old", xs), [chunk(name, xs) for name in YOUNG])
        after = await engine.steps.advance(step("old", 7))

    assert isinstance(old, ServiceError)
    assert (old.code, old.applied) == ("overloaded", "no")
    assert [ys(one) for one in young if isinstance(one, Prediction)] == [fold_reference(xs)] * 8
    assert (after.created, after.step) == (True, 1)


@pytest.mark.parametrize("length", [1, 2])
async def test_a_row_that_expires_while_its_commit_is_under_way_fails_alone_and_its_outcome_is_unknown(
    tmp_path: Path, redis_server: Server, length: int
) -> None:
    """All records are cached, so the commit is the first command; its retry gets the first response."""
    xs = [7] * length
    async with worker(redis_server.url, write_models(tmp_path, fold=fold), options=OPTIONS) as engine:
        await asyncio.gather(*(engine.steps.advance(step(name, 7, seq=1)) for name in ["old", *YOUNG]))
        old_step, *young_steps = [chunk(name, xs, seq=2) for name in ["old", *YOUNG]]
        old, young = await in_one_batch(engine, redis_server, old_step, young_steps)
        again = await engine.steps.advance(old_step)

    assert isinstance(old, ServiceError)
    assert (old.code, old.applied) == ("outcome_unknown", "unknown")
    expected = fold_reference([7, *xs])[1:]
    assert [ys(one) for one in young if isinstance(one, Prediction)] == [expected] * 8
    assert (ys(again), again.replayed, again.step) == (expected, True, 1 + length)
