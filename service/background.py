"""`run_forever`: repeats work until its task is cancelled; an error is logged, and the work is tried again."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType
from typing import Any

_log = logging.getLogger(__name__)


async def run_forever(work: Callable[[], Awaitable[object]], *, every_s: float, name: str) -> None:
    """Repeat work, the first time at once, until this is cancelled.

    Args:
        work: One round.
        every_s: Seconds between the end of a round and the next one.
        name: What the log calls it.
    """
    rounds = _LoggedRounds(name)
    while True:
        with rounds:
            await work()
        await asyncio.sleep(every_s)


def run_until(stopped: threading.Event, work: Callable[[], object], *, every_s: float, name: str) -> None:
    """Do the same in a thread, the first time after `every_s`, until the event is set."""
    rounds = _LoggedRounds(name)
    while not stopped.wait(every_s):
        with rounds:
            work()


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended; a task that had failed raises nothing here."""
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


class _LoggedRounds:
    """Keeps an error from ending a loop. The same error in a row is logged once, and that it has passed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._last = ""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False  # the task is cancelled, or the process ends
        found = "" if error is None else repr(error)
        if found and found != self._last:
            _log.error("%s failed, and is tried again", self._name, exc_info=error)
        elif self._last and not found:
            _log.info("%s works again", self._name)
        self._last = found
        return True
