"""A process that has imported what a program needs, and is forked for each run of the program.

`start.py` runs this file; it uses nothing of the tests, and has one thread. A forked program has the arguments,
environment, folder and standard streams of its request, and ends as any other program does.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from pathlib import Path
from typing import Any


class Forks:
    """The processes that were forked and have not ended."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._watched = selectors.DefaultSelector()
        self._watched.register(sock, selectors.EVENT_READ)

    def wait_for_requests(self) -> dict[str, Any] | None:
        """Fork a process for each request until the other side closes.

        Returns:
            In a forked process: its request. In this one, at its end: None.
        """
        while True:
            for key, _ in self._watched.select():
                if key.data is not None:
                    self._watched.unregister(key.fd)
                    report_end(key.fd, *key.data)
                    continue
                data, files, _, _ = socket.recv_fds(self._sock, 1 << 20, 4)
                if not data:
                    return None
                *streams, status = files
                pid = os.fork()
                if pid == 0:
                    os.close(status)
                    self._close()
                    for number, stream in enumerate(streams):
                        os.dup2(stream, number)
                        os.close(stream)
                    return dict(json.loads(data))
                for stream in streams:
                    os.close(stream)
                self._watched.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, status))
                self._sock.send(str(pid).encode())

    def _close(self) -> None:
        """Close the files of all, in a forked process."""
        for key in self._watched.get_map().values():
            if key.data is not None:
                os.close(key.fd)
                os.close(key.data[1])
        self._watched.close()
        self._sock.close()


def report_end(ended: int, pid: int, status: int) -> None:
    """Write the exit code of a process that has ended, and then let its id go.

    Args:
        ended: The file descriptor of the process.
        pid: Its id.
        status: A pipe for the code; a negative number is a signal.
    """
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert found is not None
    code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
    with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
        os.write(status, str(code).encode())
    os.close(status)
    os.close(ended)
    os.waitpid(pid, 0)


def main(sock: socket.socket, program: str, *modules: str) -> None:
    """Import modules, and wait for requests; in a forked process, run the program.

    Raises:
        RuntimeError: A module has started a thread.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, whose end closes the socket
    # As `stepwell` sets the first two; each of them prevents a thread, which a fork would lose, or a slow import.
    others = {"PYDANTIC_DISABLE_PLUGINS": "__all__", "ORT_DISABLE_TELEMETRY": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.environ.update(others)
    for module in modules:
        importlib.import_module(module)
    n_threads = len(list(Path("/proc/self/task").iterdir()))
    if n_threads > 1:
        raise RuntimeError(f"expected one thread, found {n_threads}: one of {modules} starts others")
    gc.freeze()
    request = Forks(sock).wait_for_requests()
    if request is None:
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:0] = request["path"]
    sys.argv[:] = [program, *request["words"]]
    runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), *sys.argv[2:])
