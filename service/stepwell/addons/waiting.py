"""`until` and `happens`: wait for a task or an event, no longer than the process or some seconds."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any


async def until(task: asyncio.Task[Any], stopped: asyncio.Event, *, cancel: bool = True) -> bool:
    """Wait until a task ends (True) or the process is to end (False); raises what the task raised."""
    waiting = asyncio.create_task(stopped.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
            return True
        if cancel:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return False
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def happens(event: asyncio.Event, within_s: float) -> bool:
    """Wait for an event for so many seconds at most; returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()
