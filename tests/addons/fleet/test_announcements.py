"""All workers on a store reload: the one that announces it waits for those that are alive, until a time limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from stepwell.addons.fleet import announcements as fleet_reloads
from stepwell.addons.fleet.announcements import Announcement, FleetReloads
from stepwell.errors import ServiceError
from stepwell.store.state_store import StateStore
from tests.servers import Server


class Worker:
    """A worker whose reloads last as long as a test sets."""

    def __init__(self, server: Server) -> None:
        self.followed: list[tuple[str, ...]] = []
        self.is_quick = asyncio.Event()
        self.is_quick.set()
        self.begun = asyncio.Event()
        self.store = StateStore(server.url)
        self.reloads = FleetReloads(self.store, self._follow)

    async def _follow(self, announcement: Announcement) -> tuple[str, ...]:
        self.begun.set()
        await self.is_quick.wait()
        self.followed.append(announcement.loaded)
        return announcement.loaded


@contextlib.asynccontextmanager
async def worker(server: Server, *, follows: bool = True) -> AsyncIterator[Worker]:
    """A worker that has loaded its models, and follows, or does not."""
    one = Worker(server)
    await one.reloads.start()
    run = asyncio.create_task(one.reloads.run()) if follows else None
    try:
        yield one
    finally:
        if run is not None:
            run.cancel()
            await asyncio.gather(run, return_exceptions=True)
        await one.reloads.close()
        await one.store.close()


async def test_a_reload_is_done_once_every_worker_has_done_it(redis_server: Server) -> None:
    async with worker(redis_server) as here, worker(redis_server) as other:
        done = await here.reloads.wait_for_workers(await here.reloads.announce(["pump/2"]))

        assert (done, other.followed) == ((0, ("pump/2",)), [("pump/2",)])


async def test_a_reload_that_another_one_replaced_before_it_was_read_is_done_too(redis_server: Server) -> None:
    async with worker(redis_server, follows=False) as here, worker(redis_server, follows=False) as other:
        await other.reloads.announce(["pump/2"])
        await here.reloads.announce(["valve/1"])
        await here.reloads.look()

        assert here.followed == [("valve/1",)]


async def test_a_worker_that_reloads_for_long_is_waited_for(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_reloads, "_ALIVE_S", 0.2)
    async with worker(redis_server) as here, worker(redis_server) as other:
        other.is_quick.clear()
        waiting = asyncio.create_task(here.reloads.wait_for_workers(await here.reloads.announce([])))
        await other.begun.wait()
        done, _ = await asyncio.wait([waiting], timeout=0.6)
        other.is_quick.set()

        assert not done
        assert (await waiting).late == 0


async def test_a_worker_that_does_not_end_its_reload_is_reported(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_reloads, "LONGEST_RELOAD_S", 0.5)
    async with worker(redis_server) as here, worker(redis_server) as other:
        other.is_quick.clear()
        announced = await here.reloads.announce([])
        await other.begun.wait()

        assert (await here.reloads.wait_for_workers(announced)).late == 1


async def test_a_worker_that_was_killed_is_not_waited_for(
    redis_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_reloads, "_ALIVE_S", 0.2)
    async with worker(redis_server, follows=False), worker(redis_server) as here:
        assert (await here.reloads.wait_for_workers(await here.reloads.announce([]))).late == 0


async def test_a_worker_that_starts_does_what_was_announced_while_it_loaded(redis_server: Server) -> None:
    async with worker(redis_server, follows=False) as starting, worker(redis_server) as here:
        await here.reloads.announce(["pump/2"])
        await starting.reloads.look()

        assert starting.followed == [("pump/2",)]


async def test_a_reload_that_could_not_be_announced_is_announced_later(redis_server: Server) -> None:
    async with worker(redis_server, follows=False) as here, worker(redis_server, follows=False) as other:
        with redis_server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-set")
            with pytest.raises(ServiceError):
                await here.reloads.announce(["pump/2"])
            client.execute_command("ACL", "SETUSER", "default", "+set")
        await here.reloads.look()
        await other.reloads.look()

        assert other.followed == [("pump/2",)]
