"""Work that a signal may end at any moment: on an event loop, without leaving anything open, or without one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import types
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, NoReturn, TypeVar

import typer

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


@contextlib.contextmanager
def reported_interrupt() -> Iterator[None]:
    """Let Ctrl-C print one line and end the program with exit code 130, in the block and from then on.

    Python only prints a KeyboardInterrupt, and goes on, in callbacks of weak references, in destructors and in
    functions that are registered for the end. Frameworks have many of these, also after the block: so the hook stays.
    """
    otherwise = sys.unraisablehook

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            _end_interrupted()
        otherwise(ignored)

    sys.unraisablehook = hook
    try:
        yield
    except KeyboardInterrupt:
        _end_interrupted()


def _end_interrupted() -> NoReturn:
    """Report Ctrl-C and end the process at once: the end of the interpreter crashes where JAX still compiles."""
    show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        typer.echo(f"{show_cursor}stepwell: interrupted", err=True)
    os._exit(130)
