"""`Supervisor`: starts several worker processes on one socket, replaces dead ones, and ends all together."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import time
from multiprocessing.connection import wait
from types import FrameType
from typing import TYPE_CHECKING

from stepwell.process import server
from stepwell.process.server import StartError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from stepwell.settings import Settings, SharedFolders

_log = logging.getLogger(__name__)

_EARLY_EXIT_S = 5.0  # a worker that ends sooner counts as failed at its start
_MAX_EARLY_EXITS = 3
_POLL_S = 0.5


class Supervisor:
    """Keeps `settings.workers` processes running; the kernel distributes connections among them."""

    def __init__(self, settings: Settings, sock: socket.socket, folders: SharedFolders, *, store: str) -> None:
        """Create a supervisor; `run` starts the workers.

        Args:
            settings: The settings of every worker.
            sock: The bound socket that the workers share.
            folders: The folders that they share.
            store: Description of the store, for the line that the first worker prints once it serves.
        """
        self._settings = settings
        self._sock = sock
        self._folders = folders
        self._store: str | None = store
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[SpawnProcess, float] = {}
        self._signals = 0
        self._early_exits = 0

    def run(self) -> int:
        """Serve until a signal arrives, and return the exit code.

        Raises:
            StartError: Workers repeatedly ended right after their start.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._record_exit)
        for _ in range(self._settings.workers):
            self._start()
        try:
            while not self._signals:
                wait([worker.sentinel for worker in self._workers], timeout=_POLL_S)
                self._replace_dead()
        finally:
            self._stop_workers()
        return 0

    def _record_exit(self, number: int, _frame: FrameType | None) -> None:
        if self._signals and number == signal.SIGINT:
            for worker in self._workers:
                worker.kill()
        self._signals += 1

    def _start(self) -> None:
        arguments = (self._settings, self._sock, self._folders, os.getpid(), self._store)
        worker = self._context.Process(target=_work, args=arguments)
        worker.start()
        self._store = None
        self._workers[worker] = time.monotonic()

    def _replace_dead(self) -> None:
        for worker, started_at in list(self._workers.items()):
            if worker.is_alive() or self._signals:
                continue
            del self._workers[worker]
            self._early_exits = self._early_exits + 1 if time.monotonic() - started_at < _EARLY_EXIT_S else 0
            if self._early_exits >= _MAX_EARLY_EXITS:
                raise StartError(
                    f"Workers ended {_MAX_EARLY_EXITS} times within {_EARLY_EXIT_S:g} s of their start (last exit code "
                    f"{worker.exitcode}).",
                    fix="See the log lines above for the reason.",
                )
            _log.warning("Worker %s ended with exit code %s; starting another", worker.pid, worker.exitcode)
            self._start()

    def _stop_workers(self) -> None:
        for worker in self._workers:
            worker.terminate()
        until = time.monotonic() + min(server.READINESS_GRACE_S, self._settings.drain_s)
        for worker in self._workers:
            worker.join(max(until - time.monotonic(), 0))
        server.stop_new_connections(self._sock)  # the workers wait for this before they close it
        self._sock.close()  # with the workers' own: a connection that is made now would never be accepted
        for worker in self._workers:
            worker.join(self._settings.drain_s + 10)
            if worker.is_alive():
                _log.warning("Worker %s did not end within drain_s + 10 s; killing it", worker.pid)
                worker.kill()
                worker.join()


def _work(settings: Settings, sock: socket.socket, folders: SharedFolders, parent: int, store: str | None) -> None:
    from stepwell import logs

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until uvicorn installs its handlers; the parent sends SIGTERM
    logs.configure(settings.log_format)
    raise SystemExit(server.run(settings, sock, folders, parent=parent, store=store))
