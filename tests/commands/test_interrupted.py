"""Work ends at a signal, whenever it arrives."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import types
import warnings
from typing import Any

import pytest

from stepwell.commands.interrupted import run_interruptible


class AtLine:
    """A trace function that sends a signal to this process before it executes its `n`-th line.

    Attributes:
        left: How many lines are to be executed before the signal.
    """

    def __init__(self, n: int, number: signal.Signals) -> None:
        self.left = n
        self._number = number

    def __call__(self, _frame: types.FrameType, event: str, _: Any) -> AtLine:
        if event == "line":
            self.left -= 1
            if self.left == 0:
                signal.raise_signal(self._number)
        return self


async def short_work() -> None:
    await asyncio.sleep(0)


def test_ctrl_c_at_any_line_leaves_no_loop_open_and_no_coroutine_unstarted() -> None:
    """Also while the event loop is made, begins to run, and is closed."""
    before, n_ended, at_line = sys.gettrace(), 0, AtLine(0, signal.SIGINT)
    gc.collect()  # what other tests have left, which would warn below
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")  # those of unclosed resources are not shown by default
        while at_line.left <= 0:
            at_line = AtLine(n_ended + 1, signal.SIGINT)
            sys.settrace(at_line)
            try:
                run_interruptible(short_work)
            except KeyboardInterrupt:
                n_ended += 1
            finally:
                sys.settrace(before)
        gc.collect()

    assert n_ended > 100
    assert [str(warning.message) for warning in warned] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_work_with_exit_code_1(number: signal.Signals) -> None:
    async def work() -> None:
        signal.raise_signal(number)
        await asyncio.sleep(60)

    previous = signal.signal(number, signal.SIG_DFL)  # nohup, for one, starts what it runs with SIGHUP ignored
    try:
        with pytest.raises(SystemExit) as ended:
            run_interruptible(work)
    finally:
        signal.signal(number, previous)

    assert ended.value.code == 1


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """As a shell has it for what it starts in the background."""

    async def work() -> str:
        signal.raise_signal(signal.SIGINT)
        await asyncio.sleep(0)
        return "done"

    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert run_interruptible(work) == "done"
    finally:
        signal.signal(signal.SIGINT, previous)


@pytest.mark.parametrize(
    "work",
    [
        "with reported_interrupt(): interrupt()",
        "atexit.register(os.abort)\nwith reported_interrupt(): interrupt()",
        "with reported_interrupt(): weakref.finalize(part := Part(), interrupt); del part",
        "with reported_interrupt(): pass\natexit.register(interrupt)",
    ],
    ids=[
        "in the block",
        "where the interpreter crashes at its end",
        "in a callback of a weak reference",
        "at the end of the program",
    ],
)
def test_ctrl_c_is_reported_in_a_line(work: str) -> None:
    """Where Python would print a traceback and go on, the program ends, after what was printed before."""
    code = (
        "import atexit, os, signal, weakref\nfrom stepwell.commands.interrupted import reported_interrupt\n"
        "class Part: pass\ndef interrupt(): signal.raise_signal(signal.SIGINT)\nprint('before')\n"
        f"{work}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert (done.returncode, done.stdout, done.stderr) == (130, "before\n", "stepwell: interrupted\n")


def test_errors_that_are_the_causes_of_each_other_are_no_interrupt() -> None:
    code = (
        "from stepwell.commands.interrupted import reported_interrupt\n"
        "first, second = ValueError('first'), TypeError('second')\n"
        "first.__cause__, second.__cause__ = second, first\n"
        "with reported_interrupt(): raise first\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert (done.returncode, done.stderr.splitlines()[-1]) == (1, "ValueError: first")
