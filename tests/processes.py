"""The service as a separate process, which a test may kill."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import httpx2

from tests.programs import start

KEPT = {
    "STEPWELL_REDIS_SERVER",
    "STEPWELL_FAST_LANE",
}  # kept from the environment; tests set every other setting themselves
LAUNCH = [*start.LAUNCH, "serve"]


class ServiceProcess:
    """A `stepwell serve` process on its own port; a test may kill and start it repeatedly."""

    def __init__(
        self,
        models: Path,
        folder: Path,
        *flags: str,
        port: int | None = None,
        env: Mapping[str, str] | None = None,
        launch: Sequence[str] | None = None,
    ) -> None:
        """Create it; it is not started.

        Args:
            models: The folder of the models.
            folder: For its data and its log.
            flags: Of `stepwell serve`.
            port: None: a free one.
            env: Further environment variables.
            launch: Another command than `LAUNCH`, which is always run by a new interpreter.
        """
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / f"serve-{self.port}.log"
        self._launch = launch
        self._flags = ["--models", str(models), "--port", str(self.port), "--data-dir", str(folder / "data"), *flags]
        self._env = env or {}
        self._process: start.Program | None = None

    @property
    def process(self) -> start.Program:
        assert self._process is not None
        return self._process

    def launch(self) -> None:
        """Start the process without waiting until it is ready."""
        env = {k: v for k, v in os.environ.items() if not k.startswith("STEPWELL_") or k in KEPT}
        env["STEPWELL_MODEL_PROBE_S"] = (
            "0"  # the models of the tests are trusted; tests/addons/vetting/test_vetting.py tests the probe
        )
        env |= self._env
        with self.log.open("ab") as out:
            self._process = start.start_program(["serve", *self._flags], env=env, out=out, launch=self._launch)

    def start(self) -> Self:
        """Start the process and wait until it is ready."""
        self.launch()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        # Loading certificates, which no test needs, would take longer than the requests.
        with httpx2.Client(base_url=self.url, trust_env=False, verify=False, timeout=30) as http:
            while True:
                if self.process.poll() is not None:
                    raise RuntimeError(f"ended with {self.process.returncode}:\n{self.log.read_text()[-3000:]}")
                with contextlib.suppress(httpx2.TransportError):
                    if http.get("/readyz").status_code == 200:
                        return
                time.sleep(0.02)  # noqa: TID251 - another process gives no event, and it needs the processor to start

    def kill(self) -> None:
        """Kill the process, as a crash would."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """Stop the process, as an operator would, and return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def service_process(models: Path, folder: Path, *flags: str, port: int | None = None) -> Iterator[ServiceProcess]:
    """Run a service until the block ends."""
    one = ServiceProcess(models, folder, *flags, port=port).start()
    try:
        yield one
    finally:
        one.stop()


def is_running(pid: int) -> bool:
    """Return whether a process runs; a zombie does not count."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    return False


def free_port() -> int:
    """Return a free TCP port of loopback."""
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
