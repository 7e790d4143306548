"""How Ctrl-C and SIGTERM end a command: at once, with one line; or after the work on an event loop.

Modules that take long to import are imported by the functions that need them: this one is the first of the program.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    import asyncio

ENDING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that end a command beside Ctrl-C; SIGHUP: a closed terminal."""

_T = TypeVar("_T")


@contextmanager
def loading() -> Iterator[None]:
    """Let Ctrl-C end the process at once while the block imports modules.

    A KeyboardInterrupt would not always arrive: an extension module that is being initialized makes an ImportError of
    it, and some modules go on.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: end_interrupted())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


@contextmanager
def reported_interrupt() -> Iterator[None]:
    """Let Ctrl-C print one line and end the program with exit code 130, in the block and from then on.

    Python only prints a KeyboardInterrupt, and goes on, in callbacks of weak references, in destructors and in
    functions that are registered for the end. Frameworks have many of these, also after the block: so the hook stays.
    """
    otherwise = sys.unraisablehook

    def hook(ignored: sys.UnraisableHookArgs) -> None:
        if issubclass(ignored.exc_type, KeyboardInterrupt):
            end_interrupted()
        otherwise(ignored)

    sys.unraisablehook = hook
    try:
        yield
    except BaseException as exc:
        if _is_interrupt(exc):
            end_interrupted()
        raise


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether an error is a KeyboardInterrupt, or was raised because of one, as where a module is imported."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # two errors can be the causes of each other
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def end_interrupted() -> NoReturn:
    """Report Ctrl-C and end the process at once: the end of the interpreter crashes where JAX still compiles."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides it
        sys.stderr.write(f"{show_cursor}stepwell: interrupted\n")
    os._exit(130)


def run_interruptible(work: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run work on an event loop; Ctrl-C, SIGTERM and SIGHUP cancel it.

    The signals are handled from before the event loop is made until it is closed: an exception that a handler raises
    meanwhile would leave the loop open, and one inside a task would be logged as one that was never retrieved.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
        SystemExit: SIGTERM or SIGHUP arrived; the exit code is 1.
    """
    import asyncio

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


def exit_at(numbers: Iterable[int], code: int) -> None:
    """Let signals end the program with an exit code, by a SystemExit in the main thread, from now on."""

    def end(_number: int, _frame: types.FrameType | None) -> NoReturn:
        raise SystemExit(code)

    for number in numbers:
        signal.signal(number, end)


@contextmanager
def deferred(numbers: Iterable[int]) -> Iterator[None]:
    """Handle signals after the block: an exception that a handler raises during a native module's import is lost."""
    received: list[int] = []
    previous = {number: signal.signal(number, lambda number, _: received.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    for number in received[:1]:
        signal.raise_signal(number)


def stop_event() -> asyncio.Event:
    """Return an event that SIGTERM and Ctrl-C set, for work that ends in its own order."""
    import asyncio

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for one in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(one, stopped.set)
    return stopped


def run_on_loop(work: Coroutine[Any, Any, _T]) -> _T:
    """Run work on a fast event loop to its end and return its result."""
    import asyncio

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)
