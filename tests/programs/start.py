"""`start_program`: a `stepwell` command as a process of its own, forked from one that has imported Stepwell.

Importing takes most of the processor time of a start, and the tests start several hundred. A forked program has its own
process, environment, streams and signals, and its exit code is that of the process. Where a test is about the start
itself, `real_starts` makes a new interpreter for each program.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar, NoReturn

LAUNCH = [sys.executable, "-P", "-m", "stepwell"]
_MODULES = (
    "stepwell.commands.cli",
    "stepwell.app",
    "stepwell.commands.serve",
    "stepwell.addons.connect.command",
    "stepwell.addons.alert.command",
    "stepwell.addons.backfill.command",
)
"""Imported before the first fork, with all that they import."""
_MOST_WARM = 6
_MAY_DIFFER = ("STEPWELL_", "PYTEST_", "no_proxy")
"""Read when a program runs; other variables may be read by a library as it is imported."""


class CannotForkError(Exception):
    """The process that programs are forked from has ended, for example because a library starts threads here."""


class ForkedProgram:
    """A process that was forked from `WarmProcess`, with the methods of `subprocess.Popen` that the tests use.

    Attributes:
        pid: Its process id.
        returncode: Its exit code, or the negative number of the signal that ended it; None: it had not ended when
            `poll` or `wait` was last called.
    """

    def __init__(self, pid: int, status: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._status = status
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code if the process has ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: It has not ended within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        ending = select.poll()  # `select` takes no file above the 1,024th
        ending.register(self._status, select.POLLIN)
        while self.returncode is None:
            is_there = bool(ending.poll(None if deadline is None else 1000 * max(0.0, deadline - time.monotonic())))
            with self._lock:  # several threads may wait
                if is_there and self.returncode is None:
                    self.returncode = int(os.read(self._status, 16) or self._unknown())
            if not is_there:
                raise subprocess.TimeoutExpired(f"forked program {self.pid}", timeout or 0)
        return self.returncode

    def _unknown(self) -> NoReturn:
        raise RuntimeError(f"how {self.pid} ended is not known: the process that it was forked from ended before")

    def __del__(self) -> None:
        os.close(self._status)

    def send_signal(self, number: int) -> None:
        """Send a signal, if the process has not ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class WarmProcess:
    """The process that is forked; it ends with this one."""

    def __init__(self, program: str, modules: Sequence[str]) -> None:
        """Start it.

        Args:
            program: The module that forked processes run, as by `python -m`.
            modules: What it imports before.
        """
        self.env = dict(os.environ)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        command = [sys.executable, "-P", str(Path(__file__).with_name("warm.py"))]
        command += [str(theirs.fileno()), program, *modules]
        with theirs:
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd="/")

    def can_fork(self, words: Sequence[str], env: Mapping[str, str]) -> bool:
        """Whether a program would be as one of a new interpreter: no library has read something else meanwhile."""
        return not self.env_differs(env) and "--workers" not in words and "STEPWELL_WORKERS" not in env

    def env_differs(self, env: Mapping[str, str]) -> bool:
        """Whether an environment has other variables that a library may read as it is imported."""
        return _without_settings(env) != _without_settings(self.env)

    def fork(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        streams: Sequence[IO[bytes]],
        folder: Path | None = None,
        path: Sequence[Path] = (),
    ) -> ForkedProgram:
        """Start the program in a forked process.

        Args:
            words: Its arguments.
            env: All of its environment.
            streams: Its standard input, output and error.
            folder: Where it runs; None: in the current folder.
            path: Folders from which it imports first.

        Raises:
            CannotForkError: The process has ended.
        """
        request = {"words": words, "env": dict(env), "folder": str(folder or Path.cwd()), "path": list(map(str, path))}
        files = [stream.fileno() for stream in streams]
        status, theirs = os.pipe()
        answer = b""
        with self._lock, contextlib.suppress(ConnectionError):
            socket.send_fds(self._socket, [json.dumps(request).encode()], [*files, theirs])
            answer = self._socket.recv(16)
        os.close(theirs)
        if not answer:
            os.close(status)
            raise CannotForkError("the process that programs are forked from has ended; it has printed why")
        return ForkedProgram(int(answer), status)

    def close(self) -> None:
        """End the process; what was forked from it goes on."""
        self._socket.close()
        self._process.wait(60)


Program = subprocess.Popen[bytes] | ForkedProgram


class _Starts:
    """How programs are started.

    Attributes:
        fork: Whether they are forked.
        warm: The processes that they are forked from, each with another environment: a library that a test imports may
            change the environment of the tests.
    """

    fork = False
    warm: ClassVar[list[WarmProcess]] = []


def start_program(
    words: Sequence[str], *, env: Mapping[str, str], out: IO[bytes], launch: Sequence[str] | None = None
) -> Program:
    """Start `stepwell WORDS` in the current folder, with nothing to read and its output in `out`.

    Args:
        words: The command and its arguments.
        env: All of its environment.
        out: For its output and its errors.
        launch: What runs instead of `stepwell` and the command, if it is another program; it is not forked.
    """
    if launch is None and _Starts.fork:
        if len(_Starts.warm) < _MOST_WARM and all(one.env_differs(os.environ) for one in _Starts.warm):
            _Starts.warm.append(WarmProcess("stepwell", _MODULES))
        warm = next((one for one in _Starts.warm if one.can_fork(words, env)), None)
        if warm is not None:
            # Where it cannot be done, tests/programs/test_start.py fails, and no other test.
            with contextlib.suppress(CannotForkError), Path(os.devnull).open("rb") as nothing:
                return warm.fork(words, env=env, streams=(nothing, out, out))
    command = [*LAUNCH, *words] if launch is None else [*launch, *words[1:]]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env)


def can_fork_here() -> bool:
    """Whether this system has file descriptors of processes, which `warm.py` waits for: Linux, but not each sandbox."""
    if sys.platform != "linux":
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


def is_forking() -> bool:
    """Whether programs are forked here."""
    return _Starts.fork


@contextlib.contextmanager
def forked_starts() -> Iterator[None]:
    """Let programs be forked until the block ends, where that is possible and no coverage is measured."""
    _Starts.fork = can_fork_here() and not any(name.startswith("COV") for name in os.environ)
    try:
        yield
    finally:
        _Starts.fork = False
        while _Starts.warm:
            _Starts.warm.pop().close()


@contextlib.contextmanager
def real_starts() -> Iterator[None]:
    """Start each program with an interpreter of its own until the block ends: the test is about the start."""
    before, _Starts.fork = _Starts.fork, False
    try:
        yield
    finally:
        _Starts.fork = before


def _without_settings(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if not name.startswith(_MAY_DIFFER)}
