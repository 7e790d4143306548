"""Work on an event loop that a signal may end at any moment, without leaving anything open."""

from __future__ import annotations

import asyncio
import signal
import types
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

ENDING = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: a closed terminal also stops the program

_T = TypeVar("_T")


def run_interruptible(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run work on an event loop; Ctrl-C, SIGTERM and SIGHUP cancel it.

    The signals are handled from before the event loop is made until it is closed: an exception that a handler raises
    meanwhile would leave the loop open, and one inside a task would be logged as one that was never retrieved.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM or SIGHUP arrived; the exit code is 1.
    """
    received: list[int] = []
    cancel: Callable[[], object] | None = None

    def end(number: int, _frame: types.FrameType | None) -> None:
        received.append(number)
        if cancel is not None:
            cancel()

    async def run() -> _T:
        nonlocal cancel
        task = asyncio.current_task()
        assert task is not None
        cancel = partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel)
        if received:
            cancel()
        try:
            return await work()
        finally:
            cancel = None

    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    try:
        for number, handler in previous.items():
            if handler is not signal.SIG_IGN:  # as a shell has it for SIGINT of what it starts with `&`
                signal.signal(number, end)
        return asyncio.run(run())
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        if received:
            raise KeyboardInterrupt if received[0] == signal.SIGINT else SystemExit(1)
