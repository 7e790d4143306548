"""What it costs to start `stepwell serve`: CPU seconds of all its processes from the launch until it is ready."""

from __future__ import annotations

import http.client
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import processes_of
from benchmarks.servers import free_port, terminated
from benchmarks.trees import service_of

_TIMEOUT_S = 120.0
_POLL_S = 0.01


@dataclass(frozen=True, slots=True)
class Start:
    """One start.

    Attributes:
        cpu_s: CPU seconds of the service and of the processes that it ran, without the store.
        store_s: CPU seconds of the embedded store.
        wall_s: Seconds until /readyz returned 200.
    """

    cpu_s: float
    store_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Started:
    """The medians of one tree's starts: the first with a model, whose file is tried, and later ones."""

    tree: str
    first: Start
    again: Start


def measure(trees: Sequence[Path], models: Path, *, rounds: int) -> list[Started]:
    """Start the service of each tree in turn, twice on the same data, and return the medians.

    Args:
        trees: Checkouts of this project; they share this Python and its packages.
        models: A model folder.
        rounds: How often.
    """
    pairs: dict[Path, list[tuple[Start, Start]]] = {tree: [] for tree in trees}
    with tempfile.TemporaryDirectory(prefix="bench-") as compiled:
        for number in range(rounds + 1):
            for tree in trees:
                with tempfile.TemporaryDirectory(prefix="bench-") as folder:
                    first, again = (_start(tree, models, Path(folder), compiled) for _ in range(2))
                    if number:  # the first of all compiles the modules, as an installation does
                        pairs[tree].append((first, again))
    return [
        Started(str(tree), *(_median(kind) for kind in zip(*starts, strict=True))) for tree, starts in pairs.items()
    ]


def _start(tree: Path, models: Path, folder: Path, compiled: str) -> Start:
    port = free_port()
    command, env = service_of(tree)
    command += ["serve", "--models", str(models), "--port", str(port), "--data-dir", str(folder / "data")]
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    env["PYTHONPYCACHEPREFIX"] = compiled
    with (folder / "log").open("wb") as log:
        started_at = time.monotonic()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env, cwd=folder, start_new_session=True)
    with terminated(process):
        while not _is_ready(port):
            if process.poll() is not None or time.monotonic() - started_at > _TIMEOUT_S:
                raise SystemExit(f"{tree}: the service did not start:\n{(folder / 'log').read_text()[-2000:]}")
            with suppress(subprocess.TimeoutExpired):
                process.wait(_POLL_S)
        wall = time.monotonic() - started_at
        return Start(*processes_of(process.pid).cpu(), wall)


def _is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    with suppress(OSError, http.client.HTTPException):
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def _median(starts: Sequence[Start]) -> Start:
    return Start(
        statistics.median(start.cpu_s for start in starts),
        statistics.median(start.store_s for start in starts),
        statistics.median(start.wall_s for start in starts),
    )


def rows(trees: Sequence[Started]) -> list[Mapping[str, object]]:
    """Return a row per tree and kind of start, for tables and files."""
    return [
        {"tree": started.tree, "start": kind, "cpu_s": start.cpu_s, "store_s": start.store_s, "wall_s": start.wall_s}
        for started in trees
        for kind, start in (("first", started.first), ("again", started.again))
    ]
