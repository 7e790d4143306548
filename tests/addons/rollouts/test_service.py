"""Committed rollouts on a real store: once, in one order with the steps, through any worker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from stepwell.addons.rollouts.requests import RolloutRequest, RolloutResult
from stepwell.errors import ServiceError
from stepwell.store.keys import record_key
from stepwell.types import StreamKey
from tests.addons.rollouts.harness import rollouts_of
from tests.engine.harness import FOLD, gather_results, step, worker, ys
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


def request(stream: str, horizon: int, x: int | None = None, **more: object) -> RolloutRequest:
    inputs = {} if x is None else {"x": np.array([x], np.int64)}
    feedback = {"x": "y"}
    return RolloutRequest(StreamKey("default", FOLD, stream), horizon, inputs, feedback=feedback, **more)  # type: ignore[arg-type]  # by name


def predictions_of(found: RolloutResult) -> list[int]:
    return [int(y) for y in found.outputs["y"][0, :, 0]]


async def test_rollouts_and_steps_of_one_stream_have_one_order(folder: Path, redis_server: Server) -> None:
    """Each answer continues the fold from the previous one, whichever worker gave that; none is lost or doubled."""
    done: dict[int, tuple[int, list[int]]] = {}  # by last step: the first input and the predictions

    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:

        async def stepping(seed: int) -> None:
            for n in range(60):
                x = seed * 1000 + n
                answer = await (one, two)[n % 2].steps.advance(step("a", x))
                done[answer.step] = x, ys(answer)

        async def rolling(seed: int) -> None:
            for n in range(15):
                x = seed * 1000 + n
                answer = await rollouts_of((one, two)[n % 2]).run(request("a", 1 + n % 7, x, commit=True))
                done[answer.step] = x, predictions_of(answer)

        await asyncio.gather(stepping(1), stepping(2), rolling(3), rolling(4))
        status = await one.streams.status(StreamKey("default", FOLD, "a"))

    xs: list[int] = []
    answers: list[int] = []
    for last in sorted(done):
        x, predictions = done[last]
        assert last == len(xs) + len(predictions)
        xs += [x, *predictions[:-1]]
        answers += predictions
    assert answers == fold_reference(xs)
    assert status.step == len(xs) == 120 + 2 * sum(1 + n % 7 for n in range(15))


async def test_of_many_equal_concurrent_rollouts_one_is_committed(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        await one.steps.advance(step("a", 1))
        for more in ({"seq": 2}, {"idempotency_key": "k"}):
            found = await asyncio.gather(
                *(rollouts_of((one, two)[n % 2]).run(request("a", 5, 7, commit=True, **more)) for n in range(20))
            )
            assert len({(f.step, f.state_id, tuple(predictions_of(f))) for f in found}) == 1
            assert sum(not f.replayed for f in found) == 1
        status = await one.streams.status(StreamKey("default", FOLD, "a"))

    assert status.step == 11


async def test_a_rollout_creates_a_missing_stream_and_rejects_a_corrupt_one(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        made = await rollouts_of(engine).run(request("new", 2, 7, commit=True))
        with redis_server.client() as client:
            client.set(record_key("default", FOLD, "bad"), b"no record of ours")
        refused = await gather_results(
            rollouts_of(engine).run(request("bad", 2, 7, commit=True)), rollouts_of(engine).run(request("bad", 2))
        )

    assert (made.created, made.step, predictions_of(made)) == (True, 2, fold_reference([7, fold_reference([7])[0]]))
    assert [error.code for error in refused] == ["state_corrupt"] * 2


async def test_a_drain_waits_for_running_rollouts_and_rejects_new_ones(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        going = asyncio.create_task(rollouts_of(engine).run(request("a", 2000, 1, commit=True)))
        await asyncio.sleep(0)
        await engine.drain(30)
        with pytest.raises(ServiceError) as refused:
            await rollouts_of(engine).run(request("b", 1, 1))

    assert going.done()
    assert (await going).step == 2000
    assert refused.value.code == "draining"
