"""How Ctrl-C ends the program: with one line and exit code 130."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn


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
