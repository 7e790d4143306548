"""A lease: one holder at a time, work that does not outlive it, and no lease of another that is deleted or renewed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from stepwell.addons.between_workers.lease import Lease
from stepwell.addons.between_workers.store_lease import StoreLease
from stepwell.store.state_store import StateStore
from tests.servers import Server

KEY = "swl:lease"


@pytest.fixture
async def store(redis_server: Server) -> AsyncIterator[StateStore]:
    one = StateStore(redis_server.url)
    yield one
    await one.close()


def holder(server: Server) -> str | None:
    with server.client() as client:
        found = client.get(KEY)
    return found.decode() if isinstance(found, bytes) else None


class Work:
    """Work that runs until it is ended."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.end = asyncio.Event()
        self.was_cancelled = False

    async def __call__(self) -> str:
        self.begun.set()
        try:
            await self.end.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return "done"


async def test_work_that_takes_longer_than_the_lease_is_not_done_by_another(store: StateStore) -> None:
    work, other = Work(), Work()
    running = asyncio.create_task(Lease(StoreLease(store, KEY), "a", lease_s=0.3).run(work))
    await work.begun.wait()
    ends_at = time.monotonic() + 1.0
    while time.monotonic() < ends_at:
        assert await Lease(StoreLease(store, KEY), "b", lease_s=0.3).run(other) is None
    work.end.set()

    assert await running == "done"
    assert not other.begun.is_set()


async def test_a_lease_is_released_after_the_work(redis_server: Server, store: StateStore) -> None:
    work = Work()
    work.end.set()

    assert await Lease(StoreLease(store, KEY), "a", lease_s=60).run(work) == "done"
    assert holder(redis_server) is None


async def test_a_lease_is_kept_for_a_while_after_work_that_has_succeeded(
    redis_server: Server, store: StateStore
) -> None:
    work = Work()
    work.end.set()
    await Lease(StoreLease(store, KEY), "a", lease_s=60).run(work, rest_s=20)

    with redis_server.client() as client:
        assert (holder(redis_server), 0 < client.pttl(KEY) <= 20_000) == ("a", True)


async def test_a_lease_is_released_after_work_that_has_failed(redis_server: Server, store: StateStore) -> None:
    async def fail() -> None:
        raise ValueError("failed")

    with pytest.raises(ValueError, match="failed"):
        await Lease(StoreLease(store, KEY), "a", lease_s=60).run(fail, rest_s=20)
    assert holder(redis_server) is None


async def test_work_is_cancelled_when_another_process_has_the_lease_whose_lease_stays(
    redis_server: Server, store: StateStore
) -> None:
    """As after a restart of the store without its data."""
    work = Work()
    running = asyncio.create_task(Lease(StoreLease(store, KEY), "a", lease_s=0.6).run(work))
    await work.begun.wait()
    with redis_server.client() as client:
        client.set(KEY, "b", px=60_000)
        async with asyncio.timeout(30):
            assert await running is None

        assert (work.was_cancelled, holder(redis_server)) == (True, "b")
        assert client.pttl(KEY) > 50_000


async def test_work_is_cancelled_when_the_lease_cannot_be_renewed(redis_server: Server, store: StateStore) -> None:
    work = Work()
    lease = Lease(StoreLease(store, KEY), "a", lease_s=0.6)
    running = asyncio.create_task(lease.run(work))
    await work.begun.wait()
    redis_server.stop()
    async with asyncio.timeout(10):
        assert await running is None

    assert (work.was_cancelled, lease.is_held) == (True, False)
