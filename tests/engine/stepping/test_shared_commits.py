"""Commits of several batches that are sent to the store in one command."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest

from stepwell.engine.stepping.columns.shared_commits import SharedCommits
from stepwell.errors import OutcomeUnknownError, ServiceError
from stepwell.store.commits import ColumnarCommits, Commit, CommitResults, Outcome
from stepwell.store.keys import record_key
from stepwell.store.record import GUARD_AT, Kind, Record
from stepwell.store.state_store import StateStore
from tests.servers import Server


class Batch:
    """Streams at step 1 in the store, and the columns that commit their step 2."""

    def __init__(self, n: int, *, state_bytes: int) -> None:
        self.names = [record_key("t", "m", secrets.token_hex(8)) for _ in range(n)]
        self.first, self.second = (record(step, bytes(state_bytes)) for step in (1, 2))

    async def create(self, store: StateStore) -> None:
        await store.commit([Commit(name, b"", self.first) for name in self.names], deadline=soon())

    def commits(self, names: Sequence[str] = ()) -> ColumnarCommits:
        columns = ColumnarCommits(names or self.names, len(self.second))
        columns.guards[:] = np.frombuffer(self.first[GUARD_AT], np.uint8)
        columns.records[:] = np.frombuffer(self.second, np.uint8)
        return columns


def record(step: int, state: bytes) -> bytes:
    op_id = bytes([step]) * 16
    return Record(1, step, 1, Kind.STEP, op_id, op_id, b"f" * 8, 0, 0, b"y", state).encode()


def soon() -> float:
    return asyncio.get_running_loop().time() + 30


def n_commands(server: Server) -> int:
    """Return how many scripts the store has run."""
    with server.client() as client:
        return int(client.info("commandstats").get("cmdstat_evalsha", {}).get("calls", 0))


@pytest.fixture
async def store(redis_server: Server) -> AsyncIterator[StateStore]:
    one = StateStore(redis_server.url)
    yield one
    await one.close()


@pytest.fixture
async def batches(store: StateStore) -> list[Batch]:
    """Batches whose records have different lengths."""
    found = [Batch(3, state_bytes=8), Batch(5, state_bytes=40), Batch(2, state_bytes=8)]
    for batch in found:
        await batch.create(store)
    return found


def shared(store: StateStore) -> SharedCommits:
    commits = SharedCommits(store)
    commits.is_on = True
    return commits


async def commit_all(commits: SharedCommits, parts: Sequence[ColumnarCommits]) -> list[CommitResults]:
    sent = [commits.commit(part, deadline=soon(), expiry_set_at=0.0) for part in parts]
    return await asyncio.gather(*sent)


async def stored(store: StateStore, batch: Batch) -> list[bytes | ServiceError | None]:
    return await store.load_with_errors(batch.names, deadline=soon())


async def test_batches_that_commit_at_once_are_one_command(
    redis_server: Server, store: StateStore, batches: list[Batch]
) -> None:
    before = n_commands(redis_server)
    results = await commit_all(shared(store), [batch.commits() for batch in batches])

    assert n_commands(redis_server) == before + 1
    assert [result.not_applied for result in results] == [{}, {}, {}]
    assert [await stored(store, batch) for batch in batches] == [[b.second] * len(b.names) for b in batches]


async def test_each_batch_gets_its_own_conflicts(store: StateStore, batches: list[Batch]) -> None:
    changed = [batches[1].names[4], batches[2].names[0]]
    guard = batches[0].first[GUARD_AT]
    other = record(7, b"other")
    await store.commit([Commit(name, guard, other) for name in changed], deadline=soon())
    results = await commit_all(shared(store), [batch.commits() for batch in batches])

    found = [{i: (one.outcome, one.stored) for i, one in result.not_applied.items()} for result in results]
    assert found == [{}, {4: (Outcome.CONFLICT, other)}, {0: (Outcome.CONFLICT, other)}]


async def test_a_stream_that_is_in_two_batches_is_committed_once(store: StateStore, batches: list[Batch]) -> None:
    first = batches[0]
    results = await commit_all(shared(store), [first.commits(), first.commits(first.names[1:])])

    outcomes = [[result[i].outcome for i in range(n)] for result, n in zip(results, (3, 2), strict=True)]
    assert outcomes[0][0] == Outcome.APPLIED
    for both in zip(outcomes[0][1:], outcomes[1], strict=True):
        assert {*both} == {Outcome.APPLIED, Outcome.DUPLICATE}


async def test_off_each_batch_is_a_command(redis_server: Server, store: StateStore, batches: list[Batch]) -> None:
    before = n_commands(redis_server)
    await commit_all(SharedCommits(store), [batch.commits() for batch in batches])

    assert n_commands(redis_server) == before + 3


async def test_an_error_of_the_store_is_that_of_every_batch(store: StateStore, batches: list[Batch]) -> None:
    store.commit_error = ServiceError("not_durable", "No replica.", fix="Wait.")
    commits = shared(store)
    results = await asyncio.gather(
        *(commits.commit(batch.commits(), deadline=soon(), expiry_set_at=0.0) for batch in batches),
        return_exceptions=True,
    )

    assert results == [store.commit_error] * 3


async def test_the_outcome_is_unknown_if_the_batch_that_sends_is_cancelled(
    store: StateStore, batches: list[Batch]
) -> None:
    commits = shared(store)
    first, second = (
        asyncio.ensure_future(commits.commit(batch.commits(), deadline=soon(), expiry_set_at=0.0))
        for batch in batches[:2]
    )
    asyncio.get_running_loop().call_soon(first.cancel)
    with pytest.raises(OutcomeUnknownError):
        await second
    [after] = await commit_all(commits, [batches[2].commits()])

    assert first.cancelled()
    assert after.not_applied == {}
