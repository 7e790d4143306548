"""`Lease`, on an entry in memory; `tests/addons/between_workers/test_store_lease.py` has the one in the store."""

from __future__ import annotations

import asyncio

import pytest

from stepwell.addons.between_workers.lease import Lease


class MemoryEntry:
    """The entry of a lease, which a test may give to another process.

    Attributes:
        holder: Who has it; empty: nobody.
        lease_ms: Of the last call.
        is_away: Calls fail.
    """

    errors: tuple[type[Exception], ...] = (OSError,)

    def __init__(self) -> None:
        self.holder = ""
        self.lease_ms = 0
        self.is_away = False

    async def put(self, holder: str, lease_ms: int, *, only_renew: bool, timeout_s: float) -> str:
        if self.is_away:
            raise OSError("away")
        if self.holder == holder or (not self.holder and not only_renew):
            self.holder, self.lease_ms = holder if lease_ms else "", lease_ms
        return self.holder


async def test_a_lease_that_has_expired_is_not_renewed_though_nobody_has_it() -> None:
    """Another process may have had it, and have changed what the work relies on."""
    entry = MemoryEntry()
    lease = Lease(entry, "a", lease_s=60)
    assert await lease.acquire()
    entry.holder = ""

    assert not await lease.renew()
    assert (lease.is_held, entry.holder) == (False, "")


@pytest.mark.parametrize("is_checked", [True, False])
async def test_work_whose_writes_are_checked_outlives_a_store_that_is_away(is_checked: bool) -> None:
    entry, begun, done = MemoryEntry(), asyncio.Event(), asyncio.Event()

    async def work() -> bool:
        begun.set()
        await done.wait()
        return True

    running = asyncio.create_task(Lease(entry, "a", lease_s=0.1, is_checked=is_checked).run(work))
    await begun.wait()
    entry.is_away = True
    await asyncio.sleep(0.4)
    entry.is_away = False
    done.set()

    assert await running is (True if is_checked else None)


async def test_work_whose_writes_are_checked_ends_when_another_process_has_the_lease() -> None:
    entry, begun = MemoryEntry(), asyncio.Event()

    async def work() -> bool:
        begun.set()
        return await asyncio.Event().wait()

    lease = Lease(entry, "a", lease_s=0.1, is_checked=True)
    running = asyncio.create_task(lease.run(work))
    await begun.wait()
    entry.holder = "b"

    assert await asyncio.wait_for(running, 30) is None
    assert (lease.holder, entry.holder) == ("b", "b")


async def test_a_lease_gets_longer_where_renewals_come_late_up_to_its_longest() -> None:
    entry, now = MemoryEntry(), 0.0
    lease = Lease(entry, "a", lease_s=1.0, longest_s=10.0, clock=lambda: now)
    lengths = []
    for pause in (0.25, 0.25, 2.0, 0.25, 100.0):
        await lease.acquire()
        lengths.append(entry.lease_ms)
        now += pause
    await lease.acquire()

    assert [*lengths, entry.lease_ms] == [1000, 1000, 1000, 6000, 6000, 10_000]
