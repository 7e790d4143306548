"""The log of refused timesteps, while clients send nothing but them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from service.engine.watch.refusals import RefusalLog
from service.errors import ServiceError
from service.store.keys import refusals_key
from service.store.state_store import StateStore
from tests.servers import Server

MOST = 2000  # streams of a model that are kept until they are written
REFUSED = ServiceError("non_finite", "x is NaN.", fix="Send numbers.")


@contextlib.asynccontextmanager
async def log_on(server: Server) -> AsyncIterator[RefusalLog]:
    store = StateStore(server.url)
    try:
        yield RefusalLog(store, {"*": 10})
    finally:
        await store.close()


def written(server: Server) -> list[list[str]]:
    """Return the streams of each write."""
    with server.client() as client:
        entries = client.xrange(refusals_key("default", "m"))
    return [[one[0] for one in msgspec.msgpack.decode(fields[b"r"])] for _, fields in entries]


async def test_timesteps_that_are_refused_during_a_write_wait_for_the_next_one(redis_server: Server) -> None:
    async with log_on(redis_server) as log:
        log.add("default", "m", "first", REFUSED)
        writing = asyncio.create_task(log.flush())
        async with asyncio.timeout(20):
            while not writing.done():
                await asyncio.sleep(0)
                log.add("default", "m", "later", REFUSED)
        assert written(redis_server) == [["first"]]
        await log.flush()

    assert written(redis_server) == [["first"], ["later"]]


async def test_a_store_that_refuses_writes_costs_no_memory_without_limit(redis_server: Server) -> None:
    async with log_on(redis_server) as log:
        with redis_server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-xadd")
            for part in range(3):
                log.add("default", "m", f"{part}-before", REFUSED)
                writing = asyncio.create_task(log.flush())
                await asyncio.sleep(0)  # what it writes is taken out
                for n in range(MOST // 2):
                    log.add("default", "m", f"{part}-{n}", REFUSED)
                with pytest.raises(ServiceError):
                    await writing
            client.execute_command("ACL", "SETUSER", "default", "+@all")
        await log.flush()

    [streams] = written(redis_server)
    assert len(streams) == MOST
