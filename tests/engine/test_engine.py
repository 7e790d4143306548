"""The engine on a real store: exactly once, by whichever worker, in whatever order things go wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell.addons.reset_all.reset_all import reset_all_streams
from stepwell.engine.engine import Engine
from stepwell.engine.options import EngineOptions
from stepwell.errors import ServiceError
from stepwell.store.keys import idempotency_key_of, record_key
from stepwell.store.record import decode
from stepwell.types import StreamKey, Timestep
from tests.engine.harness import FOLD, CountingObserver, chunk, expect_error, gather_results, step, worker, ys
from tests.graphs import Build, Built, count, fold, fold_reference, lstm, slow, write_model, write_models
from tests.servers import Server

NO_ID = b"?" * 16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


# ---------------------------------------------------------------- stepping


async def test_a_new_stream_begins_at_the_initial_state(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, write_models(tmp_path, count=lambda: count(start=7))) as engine:
        key = StreamKey("default", "count", "a")
        answer = await engine.steps.advance(Timestep(key, (np.zeros((1, 1), np.float32).tobytes(),)))

    assert ys(answer) == [8]


# ---------------------------------------------------------------- again and again


async def test_a_retry_gets_the_first_answer(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        first = await one.steps.advance(step("a", 5, seq=1))
        again = [await engine.steps.advance(step("a", 5, seq=1)) for engine in (one, two)]

    assert [(ys(a), a.step, a.state_id, a.replayed, a.created) for a in again] == [
        (ys(first), 1, first.state_id, True, False)
    ] * 2


async def test_parallel_duplicates_on_two_workers_move_once(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as one, worker(redis_server.url, folder) as two:
        answers = await asyncio.gather(*((one, two)[n % 2].steps.advance(step("a", 5, seq=1)) for n in range(50)))
        after = await two.steps.advance(step("a", 6, seq=2))

    assert {(tuple(ys(a)), a.step, a.state_id) for a in answers} == {((6,), 1, answers[0].state_id)}
    assert sum(not a.replayed for a in answers) == 1
    assert ys(after) == fold_reference([5, 6])[-1:]


async def test_a_retry_that_asks_for_more_than_was_kept_is_told_so(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(chunk("a", [1, 2], seq=1, keep="none"))
        more = await expect_error(engine, chunk("a", [1, 2], seq=1))
        same = await engine.steps.advance(chunk("a", [1, 2], seq=1, keep="none"))

    assert (more.code, more.applied) == ("seq_passed", "yes")
    assert (same.replayed, same.outputs, same.step) == (True, {}, 2)


async def test_an_answer_that_brings_a_new_model_into_use_leaves_the_batch_its_states(
    tmp_path: Path, redis_server: Server
) -> None:
    """Models share the cache's memory, so the first use of another may empty it while a batch is on its way."""
    folder, options = write_models(tmp_path, fold=fold, other=fold), EngineOptions(cache_bytes=12 * 400)
    async with worker(redis_server.url, folder, options=options) as engine:
        for n in range(9):
            await engine.steps.advance(step(f"s{n}", n, seq=1))
        began = asyncio.Event()

        def use_another(_: object) -> None:
            engine.steps.submit(step("x", 1, model="other"), lambda _: began.set())

        engine.steps.submit(step("s0", 0, seq=1), use_another)  # a replay, answered before its batch is run
        answers: list[Any] = [asyncio.get_running_loop().create_future() for _ in range(1, 9)]
        for n, answer in enumerate(answers, 1):
            engine.steps.submit(step(f"s{n}", 7, seq=2), answer.set_result)
        await began.wait()
        found = [await answer for answer in answers]

    assert [ys(answer) for answer in found] == [fold_reference([n, 7])[-1:] for n in range(1, 9)]


async def test_the_first_use_of_another_model_makes_nobody_read_from_the_store(
    tmp_path: Path, redis_server: Server
) -> None:
    folder, options = write_models(tmp_path, fold=fold, other=fold), EngineOptions(cache_bytes=24 * 400)
    counts = CountingObserver()
    async with worker(redis_server.url, folder, options=options, counts=counts) as engine:
        for seq in (1, 2):
            if seq == 2:
                await engine.steps.advance(step("x", 1, model="other", seq=1))
                counts.store_ops.clear()
            for n in range(15):
                await engine.steps.advance(step(f"s{n}", n, seq=seq))

    assert counts.store_ops == ["commit"] * 15


# ---------------------------------------------------------------- resetting, forgetting, looking


async def test_a_bare_reset_creates_a_missing_stream(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.streams.reset(StreamKey("default", FOLD, "new"))
        status = await engine.streams.status(StreamKey("default", FOLD, "new"))

    assert (status.step, status.version) == (0, 1)


async def test_a_late_copy_of_a_reset_wipes_nothing(folder: Path, redis_server: Server) -> None:
    key = StreamKey("default", FOLD, "a")
    async with worker(redis_server.url, folder) as engine:
        before = await engine.steps.advance(step("a", 5))
        first = await engine.streams.reset(key, after=before.state_id)
        again = await engine.streams.reset(key, after=before.state_id)
        keyed = await engine.streams.reset(key, idempotency_key="r")
        await engine.steps.advance(step("a", 6))
        with pytest.raises(ServiceError) as late:
            await engine.streams.reset(key, after=before.state_id)
        keyed_again = await engine.streams.reset(key, idempotency_key="r")
        status = await engine.streams.status(key)

    assert (again.state_id, again.replayed) == (first.state_id, True)
    assert late.value.code == "state_changed"
    assert (keyed_again.state_id, keyed_again.replayed) == (keyed.state_id, True)
    assert status.step == 1


async def test_reset_with_a_history_needs_the_stream(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        with pytest.raises(ServiceError) as refused:
            await engine.streams.reset(StreamKey("default", FOLD, "none"), after=NO_ID)

    assert refused.value.code == "stream_not_found"


async def test_all_streams_of_one_tenant_and_model_are_reset(tmp_path: Path, redis_server: Server) -> None:
    folder = write_models(tmp_path, fold=fold, other=fold)
    async with worker(redis_server.url, folder) as engine:
        for tenant, model in (("default", "fold"), ("t2", "fold"), ("default", "other")):
            for n in range(30):
                await engine.steps.advance(Timestep(StreamKey(tenant, model, f"s{n}"), (np.array([[1]]).tobytes(),)))
        done = await reset_all_streams(engine.streams, "default", "fold")
        steps = [
            {s for _, s in (await engine.streams.list(tenant, model, limit=100)).streams}
            for tenant, model in (("default", "fold"), ("t2", "fold"), ("default", "other"))
        ]

    assert done == 30
    assert steps == [{0}, {1}, {1}]


def forbid(server: Server, *rules: str) -> None:
    """Take rights from the account that everybody uses, on open connections, too."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", *rules)


async def reset_all_but(server: Server, engine: Engine, rules: Sequence[str]) -> tuple[ServiceError, list[int | None]]:
    """Reset ten streams of which some may not be written; return the refusal and where all stand then."""
    for n in range(10):
        await engine.steps.advance(step(f"s{n}", n))
    forbid(server, *rules)
    with pytest.raises(ServiceError) as refused:
        await reset_all_streams(engine.streams, "default", FOLD)
    forbid(server, "allkeys")
    return refused.value, [count for _, count in sorted((await engine.streams.list("default", FOLD)).streams)]


async def test_a_reset_of_all_that_fails_half_way_is_not_said_to_be_undone(folder: Path, redis_server: Server) -> None:
    """What was begun has ended by then: nothing more is reset behind the answer."""
    async with worker(redis_server.url, folder) as engine:
        refused, steps = await reset_all_but(redis_server, engine, ["resetkeys", "~*/s[0-2]}"])

    assert (refused.code, refused.applied, refused.retry) == ("outcome_unknown", "unknown", "same")
    assert refused.problem.startswith("3 streams were reset before others failed: The store")
    assert steps == [0] * 3 + [1] * 7


async def test_a_reset_of_all_that_resets_none_says_so(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        refused, steps = await reset_all_but(redis_server, engine, ["resetkeys"])

    assert (refused.code, refused.applied) == ("store_unavailable", "no")
    assert steps == [1] * 10


async def test_a_reset_of_all_that_no_longer_finds_the_rest_is_not_said_to_be_undone(
    folder: Path, redis_server: Server
) -> None:
    """A page of names has 500; the next one is refused as soon as the first streams are reset."""
    async with worker(redis_server.url, folder) as engine:
        await asyncio.gather(*(engine.steps.advance(step(f"s{n}", n)) for n in range(600)))
        reset = asyncio.create_task(reset_all_streams(engine.streams, "default", FOLD))
        names = [record_key("default", FOLD, f"s{n}") for n in range(600)]
        with redis_server.client() as client:
            while all(decode(raw).step for raw in client.mget(names)):  # noqa: ASYNC110 - looked at between its steps
                await asyncio.sleep(0)
        forbid(redis_server, "-scan")
        with pytest.raises(ServiceError) as refused:
            await reset

    assert (refused.value.code, refused.value.applied) == ("outcome_unknown", "unknown")
    assert refused.value.problem.startswith("500 streams were reset before others failed: The store")


async def test_a_reset_of_all_that_no_replica_confirms_is_said_to_be_done(folder: Path, redis_server: Server) -> None:
    async with (
        worker(redis_server.url, folder) as engine,
        worker(redis_server.url, folder, durability="replica") as durable,
    ):
        for n in range(3):
            await engine.steps.advance(step(f"s{n}", n))
        with pytest.raises(ServiceError) as refused:
            await reset_all_streams(durable.streams, "default", FOLD)

        assert (refused.value.code, refused.value.applied) == ("not_durable", "yes")
        assert {steps for _, steps in (await engine.streams.list("default", FOLD)).streams} == {0}


async def test_an_unknown_model_is_refused_by_every_door(folder: Path, redis_server: Server) -> None:
    key = StreamKey("default", "nope", "a")
    async with worker(redis_server.url, folder) as engine:
        errors = await gather_results(
            engine.steps.advance(step("a", 1, model="nope")),
            engine.streams.reset(key),
            engine.streams.delete(key),
            engine.streams.status(key),
            engine.streams.list("default", "nope"),
            reset_all_streams(engine.streams, "default", "nope"),
        )

    assert [e.code for e in errors] == ["model_not_found"] * 6


# ---------------------------------------------------------------- bad rows fail alone


async def test_an_input_that_the_model_cannot_run_on_fails_alone(tmp_path: Path, redis_server: Server) -> None:
    from tests.graphs import graph_from_text, manifest_of

    def vocabulary() -> tuple[bytes, object]:
        graph = graph_from_text(
            """
            vocabulary (int64[B,1] x, float[B,1] s) => (float[B,1] y, float[B,1] s_next) {
                word = Gather (table, x)
                flat = ReduceSum <keepdims = 0> (word, axis)
                s_next = Add (s, flat)
                y = Identity (s_next)
            }""",
            {"table": np.arange(4, dtype=np.float32)[:, None], "axis": np.array([1])},
        )
        tensor = {"dtype": "float32", "shape": [1]}
        return graph, manifest_of(
            name="vocabulary",
            inputs=[{"name": "x", "dtype": "int64", "shape": [1]}],
            states=[{"in": "s", "out": "s_next", **tensor}],
            outputs=[{"name": "y", **tensor}],
        )

    folder = write_models(tmp_path, vocabulary=vocabulary)  # type: ignore[arg-type]
    async with worker(redis_server.url, folder) as engine:
        words = {"a": 1, "b": 99, "c": 3}
        found = dict(
            zip(
                words,
                await gather_results(*(engine.steps.advance(step(s, x, model="vocabulary")) for s, x in words.items())),
                strict=True,
            )
        )

    assert found["b"].code == "bad_input"
    assert "99" in found["b"].problem
    assert [float(found[s].outputs["y"][0, 0]) for s in "ac"] == [1.0, 3.0]


async def test_a_damaged_record_stops_its_own_stream_only(folder: Path, redis_server: Server) -> None:
    """One whose bit has flipped; what is cut or of another type: tests/faults/test_unreadable.py."""
    name = record_key("default", FOLD, "a")
    async with worker(redis_server.url, folder) as engine, worker(redis_server.url, folder) as other:
        for stream in "ab":
            await engine.steps.advance(step(stream, 5))
        with redis_server.client() as client:
            raw = bytearray(client.get(name))
            raw[-1] ^= 1
            client.set(name, bytes(raw))
            stored = client.dump(name)
        bad, good = await gather_results(other.steps.advance(step("a", 6)), other.steps.advance(step("b", 6)))
        with redis_server.client() as client:
            assert client.dump(name) == stored, "left as it is"
        position = await other.streams.reset(StreamKey("default", FOLD, "a"))
        after = await other.steps.advance(step("a", 7))

    assert (bad.code, bad.applied) == ("state_corrupt", "no")
    assert good.step == 2
    assert position.step == 0
    assert ys(after) == fold_reference([7])


async def test_a_run_that_never_ends_is_ended(tmp_path: Path, redis_server: Server) -> None:
    options = EngineOptions(run_timeout_s=0.3)
    async with worker(redis_server.url, write_models(tmp_path, slow=slow), options=options) as engine:
        await engine.steps.advance(step("a", 1, model="slow"))
        hung = await expect_error(engine, step("a", 10**12, model="slow"))
        after = await engine.steps.advance(step("a", 2, model="slow"))

    assert (hung.code, hung.applied) == ("model_timeout", "no")
    assert (ys(after), after.step) == ([3], 2)


async def test_a_full_queue_refuses_at_once(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder, options=EngineOptions(queue_limit=10)) as engine:
        found = await gather_results(*(engine.steps.advance(step("a", x)) for x in range(30)))

    refused = [f for f in found if isinstance(f, ServiceError)]
    assert {e.code for e in refused} == {"overloaded"}
    assert [y for f in found if not isinstance(f, ServiceError) for y in ys(f)] == fold_reference(range(10))


# ---------------------------------------------------------------- versions


async def test_a_stream_stays_with_the_version_that_began_it(tmp_path: Path, redis_server: Server) -> None:
    from tests.graphs import write_model

    write_model(tmp_path, "fold", fold, version=1)
    async with worker(redis_server.url, tmp_path) as engine:
        await engine.steps.advance(step("old", 5))
        write_model(tmp_path, "fold", lambda: fold(factor=3), version=2)
        report = await engine.models.reload()
        old = await engine.steps.advance(step("old", 6, seq=2))
        new = await engine.steps.advance(step("new", 6))
        explicit = await expect_error(engine, step("old", 7, version=2))
        versions = [(await engine.streams.status(StreamKey("default", "fold", s))).version for s in ("old", "new")]

    assert report.loaded == ["fold/2"]
    assert ys(old) == fold_reference([5, 6])[-1:]
    assert ys(new) == [7]
    assert (explicit.code, explicit.step) == ("model_changed", 2)
    assert versions == [1, 2]


def fold_twice() -> Built:
    """The fold with its value answered twice."""
    graph, manifest = fold()
    model = onnx.load_model_from_string(graph)
    model.graph.node.append(onnx.helper.make_node("Identity", ["y"], ["z"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.INT64, ["B", 1]))
    [y] = manifest.outputs
    both = manifest.model_copy(update={"outputs": [y, y.model_copy(update={"name": "z"})]})
    return bytes(model.SerializeToString()), both


@pytest.mark.parametrize(("before", "after"), [(fold, fold_twice), (fold_twice, fold)], ids=["wider", "narrower"])
async def test_a_retry_gets_its_first_answer_also_where_a_new_version_answers_otherwise(
    tmp_path: Path, redis_server: Server, before: Build, after: Build
) -> None:
    write_model(tmp_path, "fold", before, version=1)
    requests = [step("a", 5, seq=1), step("b", 5, idempotency_key="k"), step("c", 5, seq=1, version=1)]
    async with worker(redis_server.url, tmp_path) as engine:
        firsts = [await engine.steps.advance(request) for request in requests]
        await engine.steps.advance(step("b", 6))
        write_model(tmp_path, "fold", after, version=2)
        await engine.models.reload()
        agains = [await engine.steps.advance(request) for request in requests]

    assert [again.replayed for again in agains] == [True] * 3
    for first, again in zip(firsts, agains, strict=True):
        assert (ys(again), again.outputs.keys(), again.step) == (ys(first), first.outputs.keys(), 1)


async def test_a_retry_whose_version_is_gone_is_told_that_it_was_applied(tmp_path: Path, redis_server: Server) -> None:
    """Its predictions cannot be read, and are not guessed; where none are asked for it is answered."""
    path = write_model(tmp_path, "fold", fold_twice)
    keyed = step("b", 5, idempotency_key="k")
    primed = chunk("c", [5], seq=1, keep="none")
    async with worker(redis_server.url, tmp_path) as engine:
        for request in (step("a", 5, seq=1), keyed, primed):
            await engine.steps.advance(request)
    path.unlink()
    write_model(tmp_path, "fold", fold)
    async with worker(redis_server.url, tmp_path) as engine:
        refused = [await expect_error(engine, request) for request in (step("a", 5, seq=1), keyed)]
        again = await engine.steps.advance(primed)

    assert [(error.code, error.applied, error.step, error.expected) for error in refused] == [
        ("seq_passed", "yes", 1, 2)
    ] * 2
    assert (again.replayed, again.step) == (True, 1)


async def test_a_damaged_entry_of_a_key_stops_its_own_request_only(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(step("a", 5, idempotency_key="k"))
        name = idempotency_key_of(record_key("default", FOLD, "a"), "k")
        with redis_server.client() as client:
            raw = bytearray(client.get(name))
            raw[-1] ^= 1
            client.set(name, bytes(raw))
        bad, good, same_stream = await gather_results(
            engine.steps.advance(step("a", 5, idempotency_key="k")),
            engine.steps.advance(step("b", 5, idempotency_key="k")),
            engine.steps.advance(step("a", 6, idempotency_key="k2")),
        )

    assert (bad.code, bad.applied) == ("state_corrupt", "unknown")
    assert good.step == 1
    assert same_stream.step == 2


async def test_a_version_that_takes_other_inputs_is_not_fed_with_the_new_ones(
    tmp_path: Path, redis_server: Server
) -> None:
    from tests.graphs import total, write_model

    write_model(tmp_path, "fold", fold, version=1)
    async with worker(redis_server.url, tmp_path) as engine:
        await engine.steps.advance(step("old", 5))
        write_model(tmp_path, "fold", total, version=2)
        await engine.models.reload()
        key = StreamKey("default", "fold", "old")
        refused = await expect_error(engine, Timestep(key, (np.ones((1, 2), np.float32).tobytes(),)))

    assert (refused.code, refused.step) == ("model_changed", 1)


async def test_a_replaced_file_goes_on_serving_the_streams_it_began(tmp_path: Path, redis_server: Server) -> None:
    write_models(tmp_path, fold=fold)
    async with worker(redis_server.url, tmp_path) as engine:
        await engine.steps.advance(step("old", 5))
        write_models(tmp_path, fold=lambda: fold(factor=3))
        await engine.models.reload()
        old = await engine.steps.advance(step("old", 6, seq=2))
    async with worker(redis_server.url, tmp_path) as restarted:
        lost = await expect_error(restarted, step("old", 7, seq=3))

    assert ys(old) == fold_reference([5, 6])[-1:]
    assert lost.code == "model_changed"


# ---------------------------------------------------------------- ending


async def test_draining_finishes_what_was_taken_and_refuses_the_rest(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        taken = [asyncio.create_task(engine.steps.advance(step(f"s{n}", n))) for n in range(40)]
        await asyncio.sleep(0)
        await engine.drain(5)
        late = await expect_error(engine, step("late", 1))
        answers = await asyncio.gather(*taken)

    assert [answer.step for answer in answers] == [1] * 40
    assert late.code == "draining"


async def test_a_step_goes_on_when_its_caller_is_gone(folder: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, folder) as engine:
        caller = asyncio.create_task(engine.steps.advance(step("a", 5, seq=1)))
        await asyncio.sleep(0)
        caller.cancel()
        await engine.drain(5)
        engine.admission.draining = False
        again = await engine.steps.advance(step("a", 5, seq=1))

    assert again.replayed
    assert ys(again) == fold_reference([5])


async def test_a_stream_lives_its_time_after_each_step_whoever_made_it(folder: Path, redis_server: Server) -> None:
    """Two workers in turn, with a time to live of which a quarter passes many times during the test."""
    options, ttl_s = EngineOptions(request_timeout_s=0.1), 1.0
    async with (
        worker(redis_server.url, folder, options=options, stream_ttl_s=ttl_s) as one,
        worker(redis_server.url, folder, options=options, stream_ttl_s=ttl_s) as two,
    ):
        lives = []
        with redis_server.client() as client:
            for n in range(60):
                await (one if n // 10 % 2 else two).steps.advance(step("a", n, seq=n + 1))
                lives.append((client.pttl(record_key("default", FOLD, "a"))) / 1000)
                await asyncio.sleep(0.02)

    assert min(lives) > ttl_s - 0.1  # reading it takes a moment
    assert max(lives) <= ttl_s * 1.25
    assert sum(life < ttl_s * 1.24 for life in lives) > 10  # left alone most of the time


async def test_a_packed_record_is_no_larger_than_header_output_and_state(tmp_path: Path, redis_server: Server) -> None:
    async with worker(redis_server.url, write_models(tmp_path, lstm=lambda: lstm(8, 64))) as engine:
        await engine.steps.advance(
            Timestep(StreamKey("default", "lstm", "a"), (np.zeros((1, 8), np.float32).tobytes(),))
        )
        model = engine.models.get("lstm").step_model
        with redis_server.client() as client:
            raw = client.get(record_key("default", "lstm", "a"))

    assert len(raw) == 104 + sum(o.row_bytes for o in model.manifest.answered) + model.state_bytes
    assert decode(raw).step == 1
