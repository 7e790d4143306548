"""The processes of a server: their CPU time and processor affinity."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_PROCESS_CPU = 2
"""The clock of the CPU time of a process, in a clock identifier of Linux: CPUCLOCK_SCHED in `posix-timers.h`."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a running server.

    Attributes:
        service: Process ids of everything except the stores.
        stores: Process ids of the stores.
    """

    service: tuple[int, ...]
    stores: tuple[int, ...]

    def cpu(self) -> tuple[float, float]:
        """Return the CPU seconds so far: of the service without its store, and of the store."""
        return sum(map(_cpu_seconds, self.service)), sum(map(_cpu_seconds, self.stores))

    def isolate_service(self, load: int) -> None:
        """Reserve the last processor for the service; its store and the process `load` use the others.

        Does nothing on a machine with one processor.
        """
        *others, last = sorted(os.sched_getaffinity(0))
        if others:
            _set_affinity(self.service, [last])
            _set_affinity([*self.stores, load], others)


def processes_of(root: int) -> Processes:
    """Return a process and all its descendants."""
    children: dict[int, list[int]] = {}
    names: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                name, fields = _stat(int(entry.name))
                children.setdefault(int(fields[1]), []).append(int(entry.name))
                names[int(entry.name)] = name
    service: list[int] = []
    stores: list[int] = []
    todo = [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        is_store = names.get(pid, "").startswith(("redis-server", "valkey-server"))
        (stores if is_store else service).append(pid)
    return Processes(tuple(service), tuple(stores))


def _set_affinity(pids: Iterable[int], processors: Iterable[int]) -> None:
    """Restrict the threads of processes to some processors."""
    for thread in [thread for pid in pids for thread in Path("/proc").glob(f"{pid}/task/*")]:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(int(thread.name), processors)


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended: a store rewrites its file in one.

    Its own are exact, while `/proc` counts hundredths of a second, which a short measurement cannot be made of.
    """
    try:
        _, fields = _stat(pid)
        own = time.clock_gettime(~pid << 3 | _PROCESS_CPU)
    except OSError:
        return 0.0
    return own + sum(map(int, fields[13:15])) / _TICK


def _stat(pid: int) -> tuple[str, list[str]]:
    """Return the name of a process and the fields of `/proc/PID/stat` from the third on (see `man proc`)."""
    before, after = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    return before.split("(", 1)[1], after.split()
