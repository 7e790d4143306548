"""What waits for a model or runs on it is answered, also where something breaks or the engine is closed."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.rollouts.requests import RolloutRequest
from stepwell.engine.admission import QueueAdmission
from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.engine.protocol.op_ids import OpIdHasher
from stepwell.engine.stepping import batcher
from stepwell.errors import ServiceError
from stepwell.types import Prediction, StreamKey
from stepwell_export.runtime.manifest import BatchSpec
from tests.addons.rollouts.harness import rollouts_of
from tests.engine.harness import (
    FOLD,
    CountingObserver,
    chunk,
    expect_error,
    gather_results,
    step,
    submit_bulk,
    worker,
    ys,
)
from tests.graphs import Built, fold, fold_reference, slow, write_model, write_models
from tests.servers import Server

LONG = 200_000
"""Turns of the model `slow` that take about half a second, and end by themselves."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold, slow=slow)


def codes(found: Sequence[Any]) -> list[tuple[str, str]]:
    return [(one.code, one.applied) if isinstance(one, ServiceError) else ("", "yes") for one in found]


async def until_one_runs(engine: Engine, model: str) -> None:
    """Wait until what is about to be submitted has been, and was taken out of the queue again."""
    while not engine.steps.waiting_by_model().get(model):  # noqa: ASYNC110 - there is no event of it
        await asyncio.sleep(0)
    while engine.steps.waiting_by_model()[model]:  # noqa: ASYNC110 - nor of this
        await asyncio.sleep(0)


# ---------------------------------------------------------------- what breaks


async def test_an_error_before_a_batch_is_run_is_answered_and_the_queue_goes_on(
    folder: Path, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbered, errors = OpIdHasher.for_rows, [MemoryError("no room")]

    def failing_once(self: OpIdHasher, *args: Any) -> list[bytes]:
        if errors:
            raise errors.pop()
        return numbered(self, *args)

    monkeypatch.setattr(OpIdHasher, "for_rows", failing_once)
    async with worker(redis_server.url, folder) as engine, asyncio.timeout(60):
        first = await gather_results(
            engine.steps.advance(step("a", 1, seq=1)), engine.steps.advance(step("b", 1, seq=1))
        )
        second = await gather_results(
            engine.steps.advance(step("a", 1, seq=1)), engine.steps.advance(step("b", 1, seq=1))
        )
        await engine.drain(5)  # ends as soon as nothing is open

    assert codes(first) == [("internal", "no")] * 2
    assert [answer.step for answer in second] == [1, 1]


# ---------------------------------------------------------------- what is refused


async def test_what_is_refused_for_want_of_room_costs_no_tokens(folder: Path, redis_server: Server) -> None:
    """Of a thousand a second, nine hundred are still there for the same chunk sent again."""
    options = EngineOptions(queue_limit=4, tenant_rate=1000)
    async with worker(redis_server.url, folder, options=options) as engine:
        full = [engine.steps.advance(step("a", 1)) for _ in range(4)]
        *_, crowded = await gather_results(*full, engine.steps.advance(chunk("b", [1] * 900)))
        again = await engine.steps.advance(chunk("b", [1] * 900))

    assert codes([crowded]) == [("overloaded", "no")]
    assert again.step == 900


async def test_a_rollout_that_is_refused_for_want_of_room_costs_no_tokens(folder: Path, redis_server: Server) -> None:
    ask = RolloutRequest(StreamKey("default", FOLD, "b"), 900, {"x": np.array([1], np.int64)}, feedback={"x": "y"})
    options = EngineOptions(queue_limit=4, tenant_rate=1000)
    async with worker(redis_server.url, folder, options=options) as engine:
        full = [engine.steps.advance(step("a", 1)) for _ in range(4)]
        *_, crowded = await gather_results(*full, rollouts_of(engine).run(ask))
        again = await rollouts_of(engine).run(ask)

    assert codes([crowded]) == [("overloaded", "no")]
    assert again.outputs["y"].shape == (1, 900, 1)


@pytest.mark.parametrize(("length", "fit"), [(1, 20), (10, 2), (100, 1)])
async def test_a_queue_is_bounded_by_the_bytes_of_its_inputs(
    folder: Path, redis_server: Server, length: int, fit: int
) -> None:
    """A timestep of `fold` has eight; as long as there is room at all, a longer chunk is taken, too."""
    async with worker(redis_server.url, folder, options=EngineOptions(queue_bytes=160)) as engine:
        for n in range(3):  # what is answered, however that is, has left
            rows = [chunk(f"s{i}", [1] * length, seq=1 + n * length) for i in range(fit)]
            refused = [chunk("a", [1] * length, seq=1), chunk("b", [1] * length)]
            found = await gather_results(*(engine.steps.advance(one) for one in (*rows, *refused)))

            assert [one.step for one in found[:fit]] == [(n + 1) * length] * fit
            assert codes(found[fit:]) == [("overloaded", "no")] * 2


async def test_columns_and_peeks_count_towards_the_bytes_that_wait(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder, options=EngineOptions(queue_bytes=160)) as engine:
        for seq in (1, 2):
            columns = asyncio.ensure_future(submit_bulk(engine, {f"s{i}": ([1], seq) for i in range(20)}))
            await asyncio.sleep(0)
            for ask in (engine.steps.advance(step("a", 1)), engine.steps.peek(step("a", 1))):
                with pytest.raises(ServiceError) as refused:
                    await ask
                assert refused.value.code == "overloaded"
            await columns

        found = await submit_bulk(engine, {f"s{i}": ([1], 3) for i in range(21)})
        assert codes([one for one in found.values() if isinstance(one, ServiceError)]) == [("overloaded", "no")]
        assert (await engine.steps.peek(chunk("a", [1] * 20))).step == 20
        assert (await engine.steps.peek(chunk("a", [1] * 20))).step == 20


async def test_a_refusal_has_the_number_that_it_was_decided_on(
    folder: Path, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watchdog's thread writes it at any time."""

    class Wavering(QueueAdmission):
        """Has room for one where the event loop reads it first, and for everyone from then on."""

        def __getattribute__(self, name: str) -> Any:
            if name != "max_rows" or threading.current_thread() is not threading.main_thread():
                return super().__getattribute__(name)
            asked = self.__dict__.setdefault("asked", [])
            asked.append(name)
            return 1.0 if len(asked) == 1 else math.inf

    monkeypatch.setattr(batcher, "QueueAdmission", Wavering)
    async with worker(redis_server.url, folder) as engine:
        answers: list[Any] = []
        for n in range(3):
            engine.steps.submit(step(f"s{n}", 1), answers.append)
        with pytest.raises(ServiceError) as refused:
            await engine.steps.peek(step("b", 1))
        await engine.drain(5)

    assert refused.value.code == "overloaded"
    assert "it can process 1 in time" in refused.value.problem
    assert refused.value.retry_after_s


# ---------------------------------------------------------------- closing


async def test_closing_answers_what_runs_and_what_waits(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        running = asyncio.ensure_future(expect_error(engine, step("a", LONG, model="slow")))
        await until_one_runs(engine, "slow")
        found: list[Any] = []
        for n in range(3):
            engine.steps.submit(step("a", 2, model="slow", seq=2 + n), found.append)
            engine.steps.submit(step(f"s{n}", 1, seq=1), found.append)
        columns = asyncio.ensure_future(submit_bulk(engine, {f"c{n}": ([1], 1) for n in range(20)}))
        await asyncio.sleep(0)
        await engine.close()
        async with asyncio.timeout(5):
            found = [await running, *found, *(await columns or {}).values()]

        assert codes(found[:1]) == [("outcome_unknown", "unknown")]
        assert len(found) == 1 + 2 * 3 + 20
        assert set(codes(found)) == {("outcome_unknown", "unknown"), ("draining", "no")}
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_ends_commits_to_a_store_that_is_away(folder: Path, redis_server: Server) -> None:
    """They would go on until their deadline, and open connections that nobody closes."""
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await engine.steps.advance(step("a", 1))
        redis_server.stop()
        running = asyncio.ensure_future(expect_error(engine, step("a", 2)))
        while len(counts.batches) < 2:  # noqa: ASYNC110 - there is no event of it
            await asyncio.sleep(0)
        await engine.close()
        async with asyncio.timeout(5):
            found = await running

        assert codes([found]) == [("outcome_unknown", "unknown")]
        assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_answers_rollouts(folder: Path, redis_server: Server) -> None:
    ask = RolloutRequest(StreamKey("default", FOLD, "a"), 10**6, {"x": np.array([1], np.int64)}, feedback={"x": "y"})
    async with worker(redis_server.url, folder) as engine:
        rollouts = [asyncio.ensure_future(rollouts_of(engine).run(ask)) for _ in range(2)]
        done, _ = await asyncio.wait(rollouts, timeout=0.2)
        await engine.close()
        async with asyncio.timeout(5):
            found = await gather_results(*rollouts)

    assert not done
    assert codes(found) == [("draining", "no")] * 2


async def test_a_request_for_streams_of_two_replaced_models_steps_both(tmp_path: Path, redis_server: Server) -> None:
    """Neither is closed while the other one begins."""
    factors = {"a": 31, "b": 37, "c": 41}
    write_model(tmp_path, FOLD, partial(fold, factors["a"]))
    async with worker(redis_server.url, tmp_path) as engine:
        for stream, factor in factors.items():
            write_model(tmp_path, FOLD, partial(fold, factor))
            await engine.models.reload()
            await engine.steps.advance(step(stream, 1))
        found = await submit_bulk(engine, {stream: ([2], 2) for stream in factors})

    assert {stream: ys(one) for stream, one in found.items() if isinstance(one, Prediction)} == {
        stream: fold_reference([1, 2], factor=factor)[-1:] for stream, factor in factors.items()
    }


async def test_a_version_that_runs_few_rows_gets_no_larger_batches(tmp_path: Path, redis_server: Server) -> None:
    def at_most_two() -> Built:
        graph, manifest = fold()
        return graph, manifest.model_copy(update={"batch": BatchSpec(max=2)})

    write_model(tmp_path, FOLD, fold, version=1)
    write_model(tmp_path, FOLD, at_most_two, version=2)
    counts = CountingObserver()
    async with worker(redis_server.url, tmp_path, counts=counts) as engine:
        await engine.steps.advance(step("other", 1, version=1))
        counts.batches.clear()
        await gather_results(*(engine.steps.advance(chunk(f"s{n}", [1, 2], version=2)) for n in range(6)))

    assert sum(counts.batches) == 6
    assert max(counts.batches) <= 2
