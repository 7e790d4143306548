"""The laws of `StateStore`, on every available server of the Redis protocol and on a Cluster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stepwell.errors import CorruptRecordError, OutcomeUnknownError, ServiceError, StoreUnavailableError
from stepwell.store import listing
from stepwell.store.commits import DELETE, NO_RECORD, Commit, Outcome
from stepwell.store.idempotency_entry import IdempotencyEntry
from stepwell.store.keys import end_entry_key, idempotency_key_of, record_key, snapshots_key
from stepwell.store.record import Kind, Record
from stepwell.store.state_store import CLOCK, StateStore
from tests.servers import Server
from tests.store.clusters import KINDS, Cluster, server_or_cluster

SOON = 5.0


@pytest.fixture(scope="module", params=KINDS)
def any_server(request: pytest.FixtureRequest) -> Iterator[Server | Cluster]:
    with server_or_cluster(request.param) as running:
        yield running


def now() -> float:
    return asyncio.get_running_loop().time()


def make_record(step: int, *, epoch: int = 1, op: str = "", state: bytes = b"s" * 8) -> Record:
    op_id = (op or f"op{step}").encode().ljust(16)
    return Record(epoch, step, 1, Kind.STEP, op_id, op_id, b"f" * 8, 0, 0, b"y", state)


def write(key: str, record: Record, expect: bytes = b"", entry: str | None = None) -> Commit:
    if entry is None:
        return Commit(key, expect, record.encode())
    answer = IdempotencyEntry(b"d" * 16, record.epoch, record.step, record.history_hash, 1, record.outputs)
    return Commit(key, expect, record.encode(), idempotency_key_of(key, entry), answer.encode())


class StoreHarness:
    """A store, the key of a new stream, and a deadline, for one test."""

    def __init__(self, store: StateStore, key: str) -> None:
        self.store, self.key = store, key

    async def commit(self, *commits: Commit) -> list[Outcome]:
        answers = await self.store.commit(commits, deadline=now() + SOON)
        return [answers[place].outcome for place in range(len(commits))]

    async def load(self, *names: str) -> list[bytes | None]:
        return await self.store.load(names or (self.key,), deadline=now() + SOON)


@pytest.fixture
async def harness(any_server: Server | Cluster, request: pytest.FixtureRequest) -> AsyncIterator[StoreHarness]:
    store = StateStore(any_server.url)
    yield StoreHarness(store, record_key("default", "m", request.node.name[:60]))
    await store.close()


async def test_a_commit_is_read_back(harness: StoreHarness) -> None:
    assert await harness.commit(write(harness.key, make_record(1))) == [Outcome.APPLIED]
    assert await harness.load() == [make_record(1).encode()]


async def test_of_two_commits_that_expect_the_same_guard_one_is_applied(harness: StoreHarness) -> None:
    await harness.commit(write(harness.key, make_record(1)))
    expect = make_record(1).guard

    results = await asyncio.gather(
        *(harness.commit(write(harness.key, make_record(2, op=f"writer{n}"), expect)) for n in range(20))
    )

    assert sorted(outcome for [outcome] in results) == [Outcome.CONFLICT] * 19 + [Outcome.APPLIED]


async def test_a_commit_sent_twice_is_applied_once(harness: StoreHarness) -> None:
    commit = write(harness.key, make_record(1))

    assert await harness.commit(commit) == [Outcome.APPLIED]
    again = (await harness.store.commit([commit], deadline=now() + SOON))[0]
    assert (again.outcome, again.stored) == (Outcome.DUPLICATE, make_record(1).encode())


async def test_a_reset_stream_rejects_commits_of_its_previous_history(harness: StoreHarness) -> None:
    await harness.commit(write(harness.key, make_record(1)))
    await harness.commit(write(harness.key, make_record(1, epoch=2), make_record(1).guard))

    assert await harness.commit(write(harness.key, make_record(2), make_record(1).guard)) == [Outcome.CONFLICT]


def delete(key: str, expect: bytes) -> Commit:
    return write(key, make_record(9), expect, entry="")._replace(record=DELETE, entry_key=end_entry_key(key))


async def test_a_stream_is_deleted_only_if_its_record_is_unchanged(harness: StoreHarness) -> None:
    """Its snapshots are deleted with it, and only then is the idempotency entry of the end written."""
    await harness.commit(write(harness.key, make_record(1)))
    await harness.store.execute(now() + SOON, "HSET", snapshots_key(harness.key), "s", "x")

    assert await harness.commit(delete(harness.key, b"g" * 56)) == [Outcome.CONFLICT]
    assert await harness.load(harness.key, end_entry_key(harness.key)) == [make_record(1).encode(), None]
    assert await harness.commit(delete(harness.key, make_record(1).guard)) == [Outcome.APPLIED]
    record, entry = await harness.load(harness.key, end_entry_key(harness.key))
    assert (record, entry is None) == (None, False)
    assert await harness.store.execute(now() + SOON, "EXISTS", snapshots_key(harness.key)) == 0


async def test_a_deleted_stream_is_not_deleted_again(harness: StoreHarness) -> None:
    """Neither does a late copy of the same commit delete the next stream of that name."""
    await harness.commit(write(harness.key, make_record(1)))
    await harness.commit(delete(harness.key, make_record(1).guard))

    assert await harness.commit(delete(harness.key, make_record(1).guard)) == [Outcome.CONFLICT]
    await harness.commit(write(harness.key, make_record(1, epoch=2)))
    assert await harness.commit(delete(harness.key, make_record(1).guard)) == [Outcome.CONFLICT]
    assert await harness.load() == [make_record(1, epoch=2).encode()]


async def test_a_stream_is_deleted_by_its_epoch_whatever_its_step(harness: StoreHarness) -> None:
    """The deletion of a stream that others step all the time needs one attempt, and returns what was deleted."""
    await harness.commit(write(harness.key, make_record(1)))
    by_epoch = delete(harness.key, make_record(1).guard[:8])
    await harness.commit(write(harness.key, make_record(2), make_record(1).guard))

    assert await harness.commit(delete(harness.key, make_record(1, epoch=2).guard[:8])) == [Outcome.CONFLICT]
    deleted = (await harness.store.commit([by_epoch], deadline=now() + SOON))[0]
    assert (deleted.outcome, deleted.stored) == (Outcome.APPLIED, make_record(2).encode())
    assert await harness.load() == [None]
    await harness.commit(write(harness.key, make_record(1, epoch=2)))
    assert await harness.commit(by_epoch) == [Outcome.CONFLICT]


async def test_a_used_idempotency_key_deletes_nothing(harness: StoreHarness) -> None:
    """A missing stream is deleted once by a key."""
    commit = write(harness.key, make_record(9), b"", entry="k")._replace(record=DELETE)

    assert await harness.commit(commit) == [Outcome.APPLIED]
    assert await harness.commit(commit) == [Outcome.KEY_REPLAY]
    await harness.commit(write(harness.key, make_record(1)))
    assert await harness.commit(commit._replace(expect=make_record(1).guard)) == [Outcome.KEY_REPLAY]
    assert await harness.load() == [make_record(1).encode()]


async def test_a_rejected_commit_does_not_affect_the_others_of_the_call(harness: StoreHarness) -> None:
    other = harness.key.replace("}", "x}")

    outcomes = await harness.commit(write(harness.key, make_record(2), b"g" * 56), write(other, make_record(1)))

    assert outcomes == [Outcome.CONFLICT, Outcome.APPLIED]
    assert await harness.load(harness.key, other) == [None, make_record(1).encode()]


async def test_a_conflict_returns_the_stored_record(harness: StoreHarness) -> None:
    await harness.commit(write(harness.key, make_record(5)))

    answer = (await harness.store.commit([write(harness.key, make_record(6), b"g" * 56)], deadline=now() + SOON))[0]

    assert answer.stored == make_record(5).encode()


async def test_a_missing_stream_differs_from_an_empty_one(harness: StoreHarness) -> None:
    answer = (await harness.store.commit([write(harness.key, make_record(6), b"g" * 56)], deadline=now() + SOON))[0]

    assert (answer.outcome, answer.stored) == (Outcome.CONFLICT, None)


async def test_an_idempotency_key_replays_after_later_steps(harness: StoreHarness) -> None:
    first = make_record(1)
    await harness.commit(write(harness.key, first, entry="k"))
    await harness.commit(write(harness.key, make_record(2), first.guard))

    answers = await harness.store.commit(
        [write(harness.key, make_record(3), make_record(2).guard, entry="k")], deadline=now() + SOON
    )
    answer = answers[0]

    assert answer.outcome is Outcome.KEY_REPLAY
    assert answer.stored is not None
    assert IdempotencyEntry.decode(answer.stored).step == 1
    assert await harness.load() == [make_record(2).encode()]


async def test_keys_and_records_of_one_batch_are_not_mixed_up(harness: StoreHarness) -> None:
    names = [harness.key.replace("}", f"{n}}}") for n in range(6)]
    await harness.commit(write(names[3], make_record(1), entry="k3"))

    outcomes = await harness.commit(
        *(write(name, make_record(1), entry=f"k{n}" if n % 3 == 0 else None) for n, name in enumerate(names))
    )

    assert outcomes == [Outcome.APPLIED] * 3 + [Outcome.KEY_REPLAY] + [Outcome.APPLIED] * 2
    assert None not in await harness.load(*(idempotency_key_of(names[n], f"k{n}") for n in (0, 3)))


def hold(server: Server | Cluster, key: str, value: bytes | None) -> bytes:
    """Put a value under a key, a list if it is None; return what the key then holds."""
    with server.client() as client:
        client.delete(key)
        if value is None:
            client.rpush(key, "somebody's list")
        else:
            client.set(key, value)
        return bytes(client.dump(key))


NO_RECORDS = (b"", b"x", b"12345678", None)


async def test_what_is_no_record_counts_as_no_missing_stream(
    harness: StoreHarness, any_server: Server | Cluster
) -> None:
    """Nor as one with any guard."""
    commit = write(harness.key, make_record(1))
    late = [commit, write(harness.key, make_record(2), make_record(1).guard), commit._replace(record=DELETE)]
    for value in NO_RECORDS:
        stored = hold(any_server, harness.key, value)

        assert [await harness.commit(one) for one in late] == [[Outcome.WRONG_TYPE]] * 3, value
        with any_server.client() as client:
            assert client.dump(harness.key) == stored


async def test_what_is_no_record_is_replaced_by_who_expects_that(
    harness: StoreHarness, any_server: Server | Cluster
) -> None:
    """And by nobody who comes later: neither a record nor a missing stream is taken for it."""
    missing = harness.key.replace("}", "x}")
    for value in NO_RECORDS:
        hold(any_server, harness.key, value)

        assert await harness.commit(write(harness.key, make_record(1), NO_RECORD)) == [Outcome.APPLIED], value
        assert await harness.commit(write(harness.key, make_record(2), NO_RECORD)) == [Outcome.CONFLICT]
        assert await harness.load() == [make_record(1).encode()]
    assert await harness.commit(write(missing, make_record(2), NO_RECORD)) == [Outcome.CONFLICT]


async def test_an_empty_entry_of_a_key_is_a_known_key(harness: StoreHarness, any_server: Server | Cluster) -> None:
    """What it answered cannot be read any more; that it was used is certain."""
    hold(any_server, idempotency_key_of(harness.key, "k"), b"")

    answers = await harness.store.commit([write(harness.key, make_record(1), entry="k")], deadline=now() + SOON)

    assert (answers[0].outcome, answers[0].stored) == (Outcome.KEY_REPLAY, b"")
    assert await harness.load() == [None]


async def test_a_value_of_another_type_is_an_error_where_it_is_read_exactly(
    harness: StoreHarness, any_server: Server | Cluster
) -> None:
    """Under a record's key; under an entry's it is none of ours and answers nothing."""
    entry, other = idempotency_key_of(harness.key, "k"), harness.key.replace("}", "x}")
    hold(any_server, harness.key, None)
    hold(any_server, entry, None)
    await harness.commit(write(other, make_record(1)))

    record, nothing, good = await harness.store.load_with_errors(
        [harness.key, entry, other], deadline=now() + SOON, exact=True
    )

    assert isinstance(record, CorruptRecordError)
    assert (nothing, good) == (None, make_record(1).encode())


async def test_an_entry_of_another_type_fails_its_own_commit_only(
    harness: StoreHarness, any_server: Server | Cluster
) -> None:
    """A script that fails halfway has applied the first half, but its caller would be told that nothing was applied."""
    other = harness.key.replace("}", "x}")
    with any_server.client() as client:
        client.rpush(idempotency_key_of(harness.key, "k"), "somebody's list")

    outcomes = await harness.commit(write(other, make_record(1)), write(harness.key, make_record(1), entry="k"))

    assert outcomes == [Outcome.APPLIED] * 2
    assert None not in await harness.load(other, harness.key, idempotency_key_of(harness.key, "k"))


async def test_a_flushed_script_is_loaded_again(harness: StoreHarness, any_server: Server | Cluster) -> None:
    with any_server.client() as client:
        client.script_flush()

    assert await harness.commit(write(harness.key, make_record(1))) == [Outcome.APPLIED]


async def test_an_idle_stream_outlives_its_ttl_and_then_expires(
    any_server: Server | Cluster, harness: StoreHarness
) -> None:
    store = StateStore(any_server.url, stream_ttl_s=0.4)
    await store.commit([write(harness.key, make_record(1))], deadline=now() + SOON)

    _, ttl = await store.load_with_ttl(harness.key, deadline=now() + SOON)
    assert 300 < ttl <= 500
    while await harness.load() != [None]:
        pass
    await store.close()


async def test_an_expiry_is_renewed_only_when_a_quarter_of_the_ttl_has_passed(
    any_server: Server | Cluster, harness: StoreHarness
) -> None:
    """Law 6, with a known time of the last refresh: shortly after it, within a quarter of the TTL, and at its edge."""
    store = StateStore(any_server.url, stream_ttl_s=100)
    first = await store.commit([write(harness.key, make_record(1))], deadline=now() + SOON)
    assert first.expiry_set_at is not None
    with any_server.client() as client:
        lives = []
        for step, ago in enumerate((0.0, 19.0, 20.0 + 0.1, 26.0), 2):
            client.pexpire(harness.key, int(125_000 - 1000 * ago))
            at = time.clock_gettime(CLOCK) - ago
            commit = write(harness.key, make_record(step), make_record(step - 1).guard)
            done = await store.commit([commit], deadline=now() + SOON, expiry_set_at=at)
            lives.append((done.expiry_set_at is None, client.pttl(harness.key)))
    await store.close()

    assert [kept for kept, _ in lives] == [True, True, False, False]
    assert all(100_000 <= left <= 125_000 for _, left in lives)


async def test_every_stream_is_listed_once_in_full_pages(harness: StoreHarness) -> None:
    names = {f"listed-{n}" for n in range(250)}
    await harness.commit(*(write(record_key("default", "pages", name), make_record(3)) for name in names))
    await harness.commit(write(record_key("default", "pages", "other"), make_record(3)))
    await harness.commit(write(record_key("tenant", "pages", "listed-x"), make_record(3), entry="k"))

    pages: list[list[str]] = []
    cursor: str | None = None
    while True:
        page, cursor = await listing.page(
            harness.store.transport, "default", "pages", "listed-", cursor, limit=40, deadline=now() + SOON
        )
        pages.append(page)
        if cursor is None:
            break

    assert sorted(name for page in pages for name in page) == sorted(names)
    assert {len(page) for page in pages[:-1]} == {40}


async def test_a_page_costs_in_proportion_to_its_streams(redis_server: Server) -> None:
    """20,000 names in one page: looked up among each other they would be 200 million comparisons."""
    store = StateStore(redis_server.url)
    with redis_server.client() as client:
        client.mset({record_key("default", "pages", f"s{n}"): "x" for n in range(20_000)})

    began = time.thread_time()
    page, _ = await listing.page(store.transport, "default", "pages", "", None, limit=20_000, deadline=now() + 60)
    seconds = time.thread_time() - began
    await store.close()

    assert len(page) == 20_000
    assert seconds < 1


async def test_a_foreign_cursor_is_refused(harness: StoreHarness) -> None:
    for cursor in ("nonsense", "W10", "WyJ4Il0", "Ww", "e30"):
        with pytest.raises(ServiceError) as refused:
            await listing.page(harness.store.transport, "default", "m", "", cursor, limit=10, deadline=now() + SOON)

        assert refused.value.code == "bad_request", cursor


async def test_an_unreachable_store_is_reported_at_the_deadline(redis_server: Server) -> None:
    store = StateStore(redis_server.url, timeout=0.2)
    redis_server.kill()

    with pytest.raises(StoreUnavailableError) as refused:
        await store.commit([write("{a}", make_record(1))], deadline=now() + 0.3)

    assert refused.value.applied == "no"
    await store.close()


async def test_a_store_that_does_not_reply_leaves_the_outcome_unknown(redis_server: Server) -> None:
    store = StateStore(redis_server.url, timeout=0.2)
    await store.ping(timeout=SOON)
    with redis_server.client() as client:
        client.execute_command("CLIENT", "PAUSE", 10_000, "ALL")

        with pytest.raises(OutcomeUnknownError) as unknown:
            await store.commit([write("{a}", make_record(1))], deadline=now() + 0.5)

    assert unknown.value.applied == "unknown"
    await store.close()


async def test_a_commit_waits_for_a_store_that_comes_back(short_path: Path) -> None:
    """The reply of the first attempt never arrived; the second attempt finds it applied, or applies it."""
    one = Server(short_path / "r", "--appendonly", "yes").start()
    store = StateStore(one.url, timeout=0.5)
    await store.ping(timeout=SOON)
    one.kill()
    waiting = asyncio.create_task(store.commit([write("{a}", make_record(1))], deadline=now() + 10))
    await asyncio.to_thread(one.start)

    answer = (await waiting)[0]

    assert answer.outcome is Outcome.APPLIED
    await store.close()
    one.kill()


async def test_a_commit_that_is_tried_again_ends_when_the_store_is_closed(redis_server: Server) -> None:
    store = StateStore(redis_server.url, timeout=0.5)
    redis_server.kill()
    waiting = asyncio.create_task(store.commit([write("{a}", make_record(1))], deadline=now() + 1000))
    await asyncio.sleep(0)
    await store.close()
    redis_server.start()

    with pytest.raises(StoreUnavailableError) as refused:
        await waiting

    assert refused.value.applied == "no"
    with redis_server.client() as client:
        assert client.exists("{a}") == 0
