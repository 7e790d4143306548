"""The log of refused timesteps, while clients send nothing but them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest

from stepwell.addons.watch.refusals import RefusalLog, RefusalReader, refusals_key
from stepwell.errors import ServiceError
from stepwell.store.state_store import StateStore
from tests.faults.proxy import Proxy
from tests.servers import Server

MOST = 2000  # streams of a model that are kept until they are written
REFUSED = ServiceError("non_finite", "x is NaN.", fix="Send numbers.")


@contextlib.asynccontextmanager
async def log_on(server: Server | Proxy) -> AsyncIterator[RefusalLog]:
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
        log.refused("default", "m", "first", REFUSED)
        writing = asyncio.create_task(log.flush())
        async with asyncio.timeout(20):
            while not writing.done():
                await asyncio.sleep(0)
                log.refused("default", "m", "later", REFUSED)
        assert written(redis_server) == [["first"]]
        await log.flush()

    assert written(redis_server) == [["first"], ["later"]]


async def test_a_store_that_refuses_writes_costs_no_memory_without_limit(redis_server: Server) -> None:
    async with log_on(redis_server) as log:
        with redis_server.client() as client:
            client.execute_command("ACL", "SETUSER", "default", "-xadd")
            for part in range(3):
                log.refused("default", "m", f"{part}-before", REFUSED)
                writing = asyncio.create_task(log.flush())
                await asyncio.sleep(0)  # what it writes is taken out
                for n in range(MOST // 2):
                    log.refused("default", "m", f"{part}-{n}", REFUSED)
                with pytest.raises(ServiceError):
                    await writing
            client.execute_command("ACL", "SETUSER", "default", "+@all")
        await log.flush()

    assert [len(streams) for streams in written(redis_server)] == [1, MOST]


async def test_a_write_whose_reply_was_lost_is_there_once(redis_server: Server) -> None:
    with Proxy(redis_server.socket) as proxy:
        async with log_on(proxy) as log:
            log.refused("default", "m", "first", REFUSED)
            proxy.lose_reply(to=b"swl:refused", times=2)
            await log.flush()
            log.refused("default", "m", "later", REFUSED)
            await log.flush()

    assert written(redis_server) == [["first"], ["later"]]


async def test_a_write_that_was_interrupted_is_repeated_as_it_is(redis_server: Server) -> None:
    async with log_on(redis_server) as log:
        log.refused("default", "m", "first", REFUSED)
        writing = asyncio.create_task(log.flush())
        async with asyncio.timeout(20):
            while not writing.done():
                if written(redis_server):
                    writing.cancel()
                await asyncio.sleep(0)
        log.refused("default", "m", "later", REFUSED)
        await log.flush()

    assert written(redis_server) == [["first"], ["later"]]


async def test_the_refusals_of_one_stream_are_all_counted_in_a_write_of_limited_size(redis_server: Server) -> None:
    async with log_on(redis_server) as log:
        for _ in range(10_000):
            log.refused("default", "m", "s", REFUSED)
        await log.flush()

    with redis_server.client() as client:
        [(_, fields)] = client.xrange(refusals_key("default", "m"))
    [(stream, code, times)] = msgspec.msgpack.decode(fields[b"r"])
    assert (stream, code, sum(n for _, n in times)) == ("s", "non_finite", 10_000)
    assert len(times) <= 32


async def test_the_log_of_a_replica_that_writes_no_times_is_not_read(redis_server: Server) -> None:
    """During a rolling upgrade both are there, and neither could decode the other's entries."""
    with redis_server.client() as client:
        client.xadd("swl:refused:{default/m}:log", {"r": msgspec.msgpack.encode([["s", 1, "non_finite", 0.0]])})
    store = StateStore(redis_server.url)
    log, reader = RefusalLog(store, {"*": 10}), RefusalReader(store, "default", "m")
    try:
        reader.position = "0-0"  # before the upgrade
        log.refused("default", "m", "s", REFUSED)
        await log.flush()
        found = await reader.read()
    finally:
        await store.close()

    assert [(one.stream, one.n) for one in found] == [("s", 1)]
