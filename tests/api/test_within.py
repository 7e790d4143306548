"""A time limit costs nothing where there is nothing to wait for, and holds where there is."""

from __future__ import annotations

import asyncio

import pytest

from service.api.within import within


async def at_once() -> str:
    return "done"


async def after(event: asyncio.Event) -> str:
    await event.wait()
    await asyncio.sleep(0)
    return "done"


async def test_what_is_there_is_returned() -> None:
    assert await within(0, at_once()) == "done"


async def test_what_has_to_wait_is_waited_for() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, event.set)

    assert await within(30, after(event)) == "done"


async def test_a_future_may_be_waited_for() -> None:
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, "done")

    assert await within(30, future) == "done"


async def test_what_takes_longer_is_given_up() -> None:
    with pytest.raises(TimeoutError):
        await within(0.01, after(asyncio.Event()))


async def test_an_error_of_the_work_is_its_own() -> None:
    async def fail(event: asyncio.Event) -> None:
        await event.wait()
        raise ValueError

    event = asyncio.Event()
    asyncio.get_running_loop().call_soon(event.set)

    with pytest.raises(ValueError):  # noqa: PT011 - it has no words
        await within(30, fail(event))


async def test_the_work_hears_of_a_cancellation() -> None:
    heard = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            heard.set()

    task = asyncio.create_task(within(30, work()))
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert heard.is_set()
