"""`within`: a time limit that costs nothing where there is nothing to wait for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return what an awaitable returns.

    `asyncio.timeout` costs 3 us, and most of what is waited for here (a body that came with its head) is there already:
    so the work is begun, and only where it has to wait gets a limit.

    Raises:
        TimeoutError: It took longer.
    """
    steps = work.__await__()
    try:
        waits_for = next(steps)
    except StopIteration as at_once:
        result: T = at_once.value
        return result
    async with asyncio.timeout(seconds):
        return await _Begun(steps, waits_for)


class _Begun(Generic[T]):
    """Work that was begun and waits for something; to await it is to go on with it."""

    def __init__(self, steps: Generator[Any, Any, T], waits_for: Any) -> None:
        self._steps = steps
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for = self._waits_for
        while True:
            try:
                try:
                    sent = yield waits_for
                except BaseException as exc:  # noqa: BLE001 - a cancellation, which is the work's to hear of
                    waits_for = self._steps.throw(exc)
                else:
                    waits_for = self._steps.send(sent)
            except StopIteration as end:
                result: T = end.value
                return result
