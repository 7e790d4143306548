"""`run_forever`: repeats work until its task is cancelled; errors are logged, and the work is repeated."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Collection
from types import TracebackType
from typing import Any

_log = logging.getLogger(__name__)


async def run_forever(work: Callable[[], Awaitable[object]], *, every_s: float, name: str) -> None:
    """Repeat work until the task is cancelled; it runs for the first time at once.

    Args:
        work: Called repeatedly; an exception is logged.
        every_s: Seconds between the end of a run and the next run.
        name: Name of the work in log lines.
    """
    logged = _LoggedRuns(name)
    while True:
        with logged:
            await work()
        await asyncio.sleep(every_s)


def run_until(stopped: threading.Event, work: Callable[[], object], *, every_s: float, name: str) -> None:
    """Repeat work in this thread until the event is set; it runs for the first time after `every_s` seconds."""
    logged = _LoggedRuns(name)
    while not stopped.wait(every_s):
        with logged:
            work()


async def cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended; exceptions of tasks are ignored."""
    cancelled = list(tasks)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)


class _LoggedRuns:
    """Logs and suppresses the exceptions of a loop's runs; equal errors in a row are logged once."""

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
        current = "" if error is None else repr(error)
        if current and current != self._last:
            _log.error("%s failed and will be retried", self._name, exc_info=error)
        elif self._last and not current:
            _log.info("%s works again", self._name)
        self._last = current
        return True
