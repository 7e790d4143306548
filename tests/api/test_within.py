"""A time limit: it adds no task switch to work that is done at once, and ends work that takes too long."""

from __future__ import annotations

import asyncio

import pytest

from service.api.within import within


async def immediate() -> str:
    return "done"


async def after(event: asyncio.Event) -> str:
    await event.wait()
    await asyncio.sleep(0)
    return "done"


async def test_work_that_is_done_at_once_returns_its_result() -> None:
    assert await within(0, immediate()) == "done"


async def test_work_that_waits_returns_its_result() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, event.set)

    assert await within(30, after(event)) == "done"


async def test_a_future_can_be_awaited() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "done")

    assert await within(30, future) == "done"


async def test_work_that_takes_too_long_times_out() -> None:
    with pytest.raises(TimeoutError):
        await within(0.01, after(asyncio.Event()))


async def test_an_error_of_the_work_is_raised() -> None:
    async def fail(event: asyncio.Event) -> None:
        await event.wait()
        raise ValueError

    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)

    with pytest.raises(ValueError):  # noqa: PT011 - it has no message
        await within(30, fail(event))


async def test_a_cancellation_reaches_the_work() -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.create_task(within(30, work()))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled.is_set()
