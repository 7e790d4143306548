"""Waiting ends with what is waited for, or with the time."""

from __future__ import annotations

import asyncio

from stepwell.addons.waiting import happens


async def test_a_wait_for_an_event_ends_with_the_event_or_the_time() -> None:
    event = asyncio.Event()

    assert not await happens(event, 0.01)
    asyncio.get_running_loop().call_soon(event.set)
    assert await happens(event, 30)
