"""A followed value: it is read when a change is announced, and also without a message."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from stepwell.addons.between_workers.followed_value import FollowedValue
from stepwell.addons.between_workers.pubsub import StorePubSub
from stepwell.store.state_store import StateStore
from tests.servers import Server

TOPIC = "swl:followed"


@asynccontextmanager
async def following(server: Server, read: Callable[[], Awaitable[object]]) -> AsyncIterator[FollowedValue]:
    store = StateStore(server.url)
    value = FollowedValue(StorePubSub(store.transport), TOPIC, read, "Following")
    await value.subscribe()
    running = asyncio.create_task(value.run())
    try:
        yield value
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await value.close()
        await store.close()


async def test_an_announcement_of_another_worker_is_followed_at_once(redis_server: Server) -> None:
    reads: list[float] = []
    loop, has_read = asyncio.get_running_loop(), asyncio.Event()

    async def read() -> None:
        reads.append(loop.time())
        has_read.set()

    async with following(redis_server, read), following(redis_server, asyncio.Event().wait) as other:
        await has_read.wait()  # so that the next one is a second away
        has_read.clear()
        announced_at = loop.time()
        await other.announce("new")
        await asyncio.wait_for(has_read.wait(), 30)

    assert reads[-1] - announced_at < 0.9


async def test_a_value_is_read_again_after_an_error_and_without_a_message(redis_server: Server) -> None:
    n_reads, done = 0, asyncio.Event()

    async def read() -> None:
        nonlocal n_reads
        n_reads += 1
        if n_reads == 1:
            raise ValueError("no value")
        done.set()

    async with following(redis_server, read):
        await asyncio.wait_for(done.wait(), 30)

    assert n_reads == 2
