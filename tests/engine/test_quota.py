"""The streams of a tenant are counted where they begin: once each, and not where a request came to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.addons.rollouts.requests import RolloutRequest
from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.engine.stepping.batcher import Batcher
from stepwell.engine.stepping.queued import QueuedStep
from stepwell.engine.tenant_limits import Reservation, StreamQuota
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell.types import Prediction, StreamKey, Timestep
from tests.addons.rollouts.harness import rollouts_of
from tests.engine.harness import FOLD, CountingObserver, expect_error, gather_results, step, worker
from tests.graphs import fold, nan_at, write_models
from tests.servers import Server


def limited(streams: int) -> EngineOptions:
    return EngineOptions(tenant_max_streams=streams)


def forbid_writes(server: Server) -> None:
    """Take the right to run scripts from the account that everybody uses: no commit is applied from now on."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-evalsha", "-eval")


def allow_writes(server: Server) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "+@all")


# ---------------------------------------------------------------- the count itself


def test_what_begins_while_the_store_is_counted_is_not_forgotten() -> None:
    quota = StreamQuota(2)
    quota.begin_count()
    quota.check("a")
    quota.confirm("a")
    assert quota.needs_recount
    quota.set_counts({"a": 1})

    with pytest.raises(ServiceError):
        quota.check("a")


def test_room_that_is_taken_before_a_count_and_given_back_after_it_is_the_same_room() -> None:
    for counts in (0, 1):
        quota = StreamQuota(2)
        quota.check("a")
        for _ in range(counts):
            quota.begin_count()
            quota.set_counts({"a": 1})
        quota.release("a")
        for _ in range(2 - counts):
            quota.check("a")

        with pytest.raises(ServiceError):
            quota.check("a")


# ---------------------------------------------------------------- steps


async def test_steps_that_the_model_or_the_store_refuses_take_no_room(tmp_path: Path, redis_server: Server) -> None:
    folder = write_models(tmp_path, fold=fold, bad=lambda: nan_at(1))
    async with worker(redis_server.url, folder, options=limited(2)) as engine:
        for n in range(5):
            bad = Timestep(StreamKey("default", "bad", f"bad{n}"), (np.zeros((1, 1), np.float32).tobytes(),))
            assert (await expect_error(engine, bad)).code == "non_finite_state"
        forbid_writes(redis_server)
        for n in range(5):
            assert (await expect_error(engine, step(f"s{n}", 1))).code == "store_unavailable"
        allow_writes(redis_server)

        assert [(await engine.steps.advance(step(name, 1))).created for name in "ab"] == [True] * 2
        assert (await expect_error(engine, step("c", 1))).code == "stream_quota"


async def test_a_step_that_finds_the_stream_begun_by_another_worker_takes_no_room(
    tmp_path: Path, redis_server: Server
) -> None:
    """Both find none and let it begin; the one that comes second is decided again on what is there then."""
    folder, counts = write_models(tmp_path, fold=fold), CountingObserver()
    async with (
        worker(redis_server.url, folder) as other,
        worker(redis_server.url, folder, options=limited(1), counts=counts) as here,
    ):
        while not counts.conflicted:
            await here.streams.count()
            answers = await gather_results(other.steps.advance(step("a", 1)), here.steps.advance(step("a", 2)))
            assert {answer.step for answer in answers} == {1, 2}
            await here.streams.delete(StreamKey("default", FOLD, "a"))

        assert (await here.steps.advance(step("own", 1))).created


async def test_steps_that_end_a_stream_at_once_take_no_room(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, write_models(tmp_path, fold=fold), options=limited(1)) as engine:
        for n in range(3):
            await engine.steps.advance(step(f"s{n}", 1, lifecycle="whole"))
            await engine.steps.advance(step(f"t{n}", 1, lifecycle="last"))

        assert (await engine.steps.advance(step("a", 1))).created


async def test_many_streams_that_begin_at_once_are_counted_one_by_one(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, write_models(tmp_path, fold=fold), options=limited(3)) as engine:
        answers = await gather_results(*(engine.steps.advance(step(f"s{n}", 1)) for n in range(8)))

    assert sorted(str(getattr(one, "code", "begun")) for one in answers) == ["begun"] * 3 + ["stream_quota"] * 5


# ---------------------------------------------------------------- other operations that begin streams


async def reset(engine: Engine, stream: str) -> object:
    return await engine.streams.reset(StreamKey("default", FOLD, stream))


async def fork(engine: Engine, stream: str) -> object:
    """Fork the stream of the same name in upper case."""
    source, to = StreamKey("default", FOLD, stream.upper()), StreamKey("default", FOLD, stream)
    copies = StreamCopies(engine)
    return await copies.fork(source, to, snapshot=None, version=None, after=None, idempotency_key=None)


async def roll_out(engine: Engine, stream: str) -> object:
    first, feedback = {"x": np.array([1], np.int64)}, {"x": "y"}
    return await rollouts_of(engine).run(
        RolloutRequest(StreamKey("default", FOLD, stream), 3, first, feedback=feedback, commit=True)
    )


Begin = Callable[[Engine, str], Awaitable[object]]


@pytest.fixture(params=[reset, fork, roll_out])
def begin(request: pytest.FixtureRequest) -> Begin:
    return request.param  # type: ignore[no-any-return]


async def test_what_the_store_refuses_takes_no_room(begin: Begin, tmp_path: Path, redis_server: Server) -> None:
    folder = write_models(tmp_path, fold=fold)
    async with worker(redis_server.url, folder) as free, worker(redis_server.url, folder, options=limited(2)) as engine:
        for name in "ABCDE":
            await free.steps.advance(step(name, 1))
        forbid_writes(redis_server)
        refused = [(await gather_results(begin(engine, name)))[0] for name in "abcde"]
        allow_writes(redis_server)
        begun = [(await gather_results(begin(engine, name)))[0] for name in "abc"]

    assert {one.code for one in refused} == {"store_unavailable"}
    assert [getattr(one, "code", "begun") for one in begun] == ["begun", "begun", "stream_quota"]


async def test_what_another_worker_has_begun_meanwhile_takes_no_room(
    begin: Begin, tmp_path: Path, redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was missing when it was read; its commit finds the other worker's, and it goes on from that or is refused."""
    folder, begun = write_models(tmp_path, fold=fold), list[Prediction]()
    async with worker(redis_server.url, folder) as other, worker(redis_server.url, folder, options=limited(1)) as here:
        load = here.store.load_with_errors

        async def load_before_the_other_begins(*args: Any, **more: Any) -> Any:
            found = await load(*args, **more)
            if not begun:
                begun.append(await other.steps.advance(step("a", 1)))
            return found

        for name in ("A", "OWN"):
            await other.steps.advance(step(name, 1))
        monkeypatch.setattr(here.store, "load_with_errors", load_before_the_other_begins)
        await gather_results(begin(here, "a"))
        after = await here.streams.status(StreamKey("default", FOLD, "a"))
        await begin(here, "own")

    assert begun[0].created
    expected: dict[Begin, int] = {reset: 0, fork: 1, roll_out: 4}
    assert after.step == expected[begin]


async def test_a_peek_of_a_missing_stream_needs_no_room(tmp_path: Path, redis_server: Server) -> None:
    folder = write_models(tmp_path, fold=fold)
    async with worker(redis_server.url, folder, options=limited(1)) as engine:
        await engine.steps.advance(step("only", 1))
        peeked = await engine.steps.peek(step("missing", 1))

    assert peeked.step == 1


async def test_a_row_that_waits_for_another_version_gives_its_room_back_when_it_is_rejected(
    tmp_path: Path, redis_server: Server
) -> None:
    """Its version is being loaded when the service ends."""

    async def load_later(_name: str, _fingerprint: bytes) -> None:
        await asyncio.Event().wait()

    quota, answers = StreamQuota(1), list[Prediction | ServiceError]()
    async with worker(redis_server.url, write_models(tmp_path, fold=fold)) as engine:
        served = engine.models.get(FOLD)
        models = SimpleNamespace(find=load_later, by_fingerprint=lambda *_: None, may_find=lambda *_: True)
        batcher = Batcher(
            FOLD, cast("ModelRegistry", models), lambda _: pytest.fail("no version is there"),
            placing=engine.placing, requests=engine.admission, timeout=1e9, max_wait=0.0,
        )  # fmt: skip
        row = QueuedStep(step("a", 1), answers.append, 0.0, "a", served, 1, bytes(16))
        row.reservation = Reservation(quota, "default")
        row.reservation.take()
        batcher.queue.reserve("a")
        batcher.wait_for_version(b"version2", [row])
        await batcher.stop()
        assert engine.admission.rows == 0

    assert [answer.code for answer in answers if isinstance(answer, ServiceError)] == ["draining"]
    quota.check("default")  # there is room
