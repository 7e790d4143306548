"""F37: a stream's key has an empty or truncated value or another type: an error, not a missing stream."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.copies.stream_copies import StreamCopies
from stepwell.addons.copies.values import ImportedState
from stepwell.addons.reset_all.reset_all import reset_all_streams
from stepwell.addons.rollouts.requests import RolloutRequest
from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.store.keys import idempotency_key_of, record_key
from stepwell.types import StreamKey
from tests.addons.rollouts.harness import rollouts_of
from tests.api.running import running_service
from tests.engine.harness import FOLD, CountingObserver, chunk, gather_results, step, submit_bulk, worker, ys
from tests.graphs import fold, fold_reference, write_models
from tests.servers import Server

A = StreamKey("default", FOLD, "a")
NAME = record_key(*A)
LIST = -1
"""Marks a value of another type."""

TOO_SHORT = [0, 1, 8]  # remaining bytes: too few to include the guard
NOT_A_RECORD = [*TOO_SHORT, 9, 40, 63, 64, 103, 104, LIST]

Operation = Callable[[Engine], Awaitable[Any]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path, fold=fold)


def damage(server: Server, left: int, name: str = NAME) -> bytes:
    """Truncate a value to `left` bytes or replace it by a list; return the damaged value."""
    with server.client() as client:
        value = client.get(name) or b""
        client.delete(name)
        if left == LIST:
            client.rpush(name, "somebody's list")
        else:
            client.set(name, value[:left])
    return dumped(server, name)


def dumped(server: Server, name: str = NAME) -> bytes:
    with server.client() as client:
        found = client.dump(name)
    assert isinstance(found, bytes)
    return found


async def in_columns(engine: Engine) -> object:
    """Step the stream in a bulk request, with enough other streams for a columnar batch."""
    rows: dict[str, tuple[list[int], int]] = {f"c{n}": ([1], 1) for n in range(20)}
    found = await submit_bulk(engine, rows | {"a": ([1], 1)})
    assert found is not None
    answer = found.pop("a")
    assert [one for one in found.values() if isinstance(one, ServiceError)] == []
    if isinstance(answer, ServiceError):
        raise answer
    return answer


def rollout(*, commit: bool) -> Operation:
    inputs = {"x": np.array([1], np.int64)}
    return lambda engine: rollouts_of(engine).run(RolloutRequest(A, 2, inputs, feedback={"x": "y"}, commit=commit))


def state_of(engine: Engine, after: bytes | None) -> Awaitable[Any]:
    given = ImportedState({"h": np.array([12], np.int64)}, 5)
    return StreamCopies(engine).put_state(A, engine.models.get(FOLD), given, after=after, idempotency_key=None)


def fork(source: str, to: str) -> Operation:
    keys = StreamKey("default", FOLD, source), StreamKey("default", FOLD, to)
    more: dict[str, Any] = {"snapshot": None, "version": None, "after": None, "idempotency_key": None}
    return lambda engine: StreamCopies(engine).fork(*keys, **more)


BEGINNING: dict[str, Operation] = {
    "first step": lambda engine: engine.steps.advance(step("a", 1, seq=1)),
    "step without a number": lambda engine: engine.steps.advance(step("a", 1)),
    "step with a key": lambda engine: engine.steps.advance(step("a", 1, idempotency_key="k")),
    "chunk": lambda engine: engine.steps.advance(chunk("a", [1, 2])),
    "columns": in_columns,
    "peek": lambda engine: engine.steps.peek(step("a", 1)),
    "rollout": rollout(commit=False),
    "committed rollout": rollout(commit=True),
    "fork to it": fork("b", "a"),
    "sequence_start": lambda engine: engine.steps.advance(step("a", 1, lifecycle="new")),
    "sequence_end": lambda engine: engine.steps.advance(step("a", 1, lifecycle="last")),
}
READING: dict[str, Operation] = {
    "status": lambda engine: engine.streams.status(A),
    "state": lambda engine: StreamCopies(engine).get_state(A, version=None),
    "fork": fork("a", "other"),
    "snapshots": lambda engine: StreamCopies(engine).list_snapshots(A),
    "snapshot": lambda engine: StreamCopies(engine).get_snapshot(A, "before"),
    "take a snapshot": lambda engine: StreamCopies(engine).create_snapshot(A, "s", after=None, idempotency_key=None),
    "reset after": lambda engine: engine.streams.reset(A, after=b"h" * 16),
    "reset to a snapshot after": lambda engine: engine.streams.reset(A, snapshot="before", after=b"h" * 16),
    "state after": lambda engine: state_of(engine, b"h" * 16),
}
GOING_ON: dict[str, Operation] = {
    "next step": lambda engine: engine.steps.advance(step("a", 1, seq=3)),
    "next step after": lambda engine: engine.steps.advance(step("a", 1, seq=3, after=b"h" * 16)),
    "retry": lambda engine: engine.steps.advance(step("a", 2, seq=2)),
}
REPLACING: dict[str, Operation] = {
    "reset": lambda engine: engine.streams.reset(A),
    "reset with a key": lambda engine: engine.streams.reset(A, idempotency_key="r"),
    "reset to a snapshot": lambda engine: engine.streams.reset(A, snapshot="before"),
    "given state": lambda engine: state_of(engine, None),
}


async def with_two_steps(engine: Engine) -> None:
    """Create the streams `a` and `b`; the first has a snapshot."""
    for x in (1, 2):
        await engine.steps.advance(step("a", x))
    await StreamCopies(engine).create_snapshot(A, "before", after=None, idempotency_key=None)
    await engine.steps.advance(step("b", 1))


async def refusals(engine: Engine, operations: dict[str, Operation]) -> dict[str, tuple[str, str] | object]:
    """Return the code and `applied` of each operation's error, or the result of an operation that succeeds."""
    found: dict[str, tuple[str, str] | object] = {}
    for name, operation in operations.items():
        [answer] = await gather_results(operation(engine))
        found[name] = (answer.code, answer.applied) if isinstance(answer, ServiceError) else answer
    return found


@asynccontextmanager
async def damaged(folder: Path, server: Server, left: int) -> AsyncIterator[tuple[Engine, bytes]]:
    """An engine that has the streams of a new store in its cache, of which `a` is damaged; and what is stored then."""
    with server.client() as client:
        client.flushall()
    async with worker(server.url, folder) as engine:
        await with_two_steps(engine)
        yield engine, damage(server, left)


async def test_no_operation_treats_an_unreadable_stream_as_missing(folder: Path, redis_server: Server) -> None:
    for left in NOT_A_RECORD:
        operations = BEGINNING | READING | ({} if left == LIST else GOING_ON)
        async with damaged(folder, redis_server, left) as (_, stored), worker(redis_server.url, folder) as engine:
            found = await refusals(engine, operations)

        assert found == dict.fromkeys(operations, ("state_corrupt", "no")), left
        assert dumped(redis_server) == stored


async def test_a_worker_with_the_stream_in_its_cache_does_not_treat_it_as_missing(
    folder: Path, redis_server: Server
) -> None:
    names = ("step without a number", "step with a key", "chunk")
    operations = {"next step": GOING_ON["next step"]} | {name: BEGINNING[name] for name in names}
    for left in (*TOO_SHORT, 9, 40, 63, LIST):
        async with damaged(folder, redis_server, left) as (engine, stored):
            found = await refusals(engine, operations)

        assert found == dict.fromkeys(operations, ("state_corrupt", "no")), left
        assert dumped(redis_server) == stored


@pytest.mark.parametrize("how", REPLACING)
async def test_an_operation_that_replaces_the_state_repairs_the_stream(
    folder: Path, redis_server: Server, how: str
) -> None:
    begin = {"given state": [], "reset to a snapshot": [1, 2]}.get(how, [])
    start = 12 if how == "given state" else 0
    for left in NOT_A_RECORD:
        async with damaged(folder, redis_server, left) as (engine, _):
            position = await REPLACING[how](engine)
            after = await engine.steps.advance(step("a", 7, seq=position.step + 1))

        assert ys(after) == fold_reference([*begin, 7], start=start)[-1:], left


async def test_concurrent_resets_do_not_undo_later_steps(folder: Path, redis_server: Server) -> None:
    """A reset that comes second resets the stream from its current position."""
    for left in NOT_A_RECORD:
        async with damaged(folder, redis_server, left) as (one, _), worker(redis_server.url, folder) as two:
            resets = await asyncio.gather(*(engine.streams.reset(A) for engine in (one, two) * 5))
            status = await one.streams.status(A)

        assert len({reset.state_id for reset in resets}) == 10, left
        assert (status.step, status.state_id in {reset.state_id for reset in resets}) == (0, True)


async def test_an_unreadable_stream_can_be_deleted(folder: Path, redis_server: Server) -> None:
    for left in NOT_A_RECORD:
        async with damaged(folder, redis_server, left) as (engine, _):
            await engine.streams.delete(A)
            again = await engine.steps.advance(step("a", 7, seq=1))

        assert (ys(again), again.created) == (fold_reference([7]), True), left


async def test_an_unreadable_stream_is_listed_without_a_step(folder: Path, redis_server: Server) -> None:
    for left in (*TOO_SHORT, 20, LIST):
        async with damaged(folder, redis_server, left) as (engine, _):
            page = await engine.streams.list("default", FOLD)
            reset = await reset_all_streams(engine.streams, "default", FOLD)

        assert dict(page.streams) == {"a": None, "b": 1}, left
        assert reset == 2


async def test_an_empty_or_truncated_idempotency_entry_is_not_treated_as_missing(
    folder: Path, redis_server: Server
) -> None:
    """Whether the request was applied is unknown, so it must not be applied again."""
    keyed = step("a", 3, idempotency_key="k")
    entry = idempotency_key_of(NAME, "k")
    async with worker(redis_server.url, folder) as engine:
        await engine.steps.advance(keyed)
        for left in (40, 8, 1, 0):
            stored = damage(redis_server, left, entry)
            found = await refusals(engine, {"step": lambda engine: engine.steps.advance(keyed)})
            status = await engine.streams.status(A)

            assert found == {"step": ("state_corrupt", "unknown")}, left
            assert (status.step, dumped(redis_server, entry)) == (1, stored)


def test_an_unreadable_stream_is_a_500_for_itself_only(tmp_path: Path, redis_server: Server) -> None:
    with running_service(redis_server.url, write_models(tmp_path, fold)) as one:
        for stream in "ab":
            one.http.post(one.path("fold", stream, "step"), json={"inputs": [1]})
        damage(redis_server, 0)
        answers = [
            one.http.post(one.path("fold", "a", "step"), json={"inputs": [1], "seq": 1}),
            one.http.post(one.path("fold", "a", "peek"), json={"inputs": [1]}),
            one.http.get(one.path("fold", "a")),
            one.http.get(one.path("fold", "a", "state")),
        ]
        bulk = one.http.post("/v1/models/fold/step", json={"streams": ["a", "b"], "inputs": {"x": [[1], [1]]}}).json()
        listed = one.http.get("/v1/models/fold/streams").json()["streams"]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(500, "state_corrupt")] * 4
    assert (bulk["step"], bulk["errors"]["0"]["code"]) == ([None, 2], "state_corrupt")
    assert sorted(listed, key=lambda row: row["stream"]) == [{"stream": "a", "step": None}, {"stream": "b", "step": 2}]


async def test_a_step_that_needs_an_existing_stream_reports_a_value_of_another_type_as_corrupt(
    folder: Path, redis_server: Server
) -> None:
    """It is no missing stream: a client that gets 404 would send its whole history again."""
    damage(redis_server, LIST)
    needs: list[dict[str, Any]] = [{"seq": 5}, {"after": bytes(16)}, {"create": "never"}]
    async with worker(redis_server.url, folder) as engine:
        for more, length in itertools.product(needs, (1, 2)):
            wrong, missing = await gather_results(
                engine.steps.advance(chunk("a", [1] * length, **more)),
                engine.steps.advance(chunk("missing", [1] * length, **more)),
            )

            assert isinstance(wrong, ServiceError)
            assert isinstance(missing, ServiceError)
            assert (wrong.code, missing.code) == ("state_corrupt", "stream_not_found"), (more, length)
            assert (wrong.applied, missing.applied) == ("no", "no")


async def test_a_missing_stream_is_read_once_more_only_if_its_step_is_rejected(
    folder: Path, redis_server: Server
) -> None:
    counts = CountingObserver()
    async with worker(redis_server.url, folder, counts=counts) as engine:
        await engine.steps.advance(chunk("new", [1, 2]))
        created = list(counts.store_ops)
        with pytest.raises(ServiceError, match="does not exist"):
            await engine.steps.advance(chunk("missing", [1, 2], seq=7))

    assert created == ["load", "commit"]
    assert counts.store_ops == ["load", "commit", "load", "load"]
