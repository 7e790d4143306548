"""The processes of a server: the CPU that they take, and the processors that they run on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of a server that runs.

    Attributes:
        service: Ids of all but the stores.
        stores: Ids of the stores.
    """

    service: tuple[int, ...]
    stores: tuple[int, ...]

    def cpu(self) -> tuple[float, float]:
        """Return the CPU seconds so far: of the service without its store, and of the store."""
        return sum(map(_cpu_seconds, self.service)), sum(map(_cpu_seconds, self.stores))

    def set_apart(self, load: int) -> None:
        """Give the service the last processor to itself, and the others to its store and to the process `load`.

        Nothing is done where there is one processor only.
        """
        *others, last = sorted(os.sched_getaffinity(0))
        if others:
            _place(self.service, [last])
            _place([*self.stores, load], others)


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


def _place(pids: Iterable[int], processors: Iterable[int]) -> None:
    """Let each thread of these processes run on these processors only."""
    for thread in [thread for pid in pids for thread in Path("/proc").glob(f"{pid}/task/*")]:
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.sched_setaffinity(int(thread.name), processors)


def _cpu_seconds(pid: int) -> float:
    """Return what a process has taken, and its children that have ended: a store rewrites its file in one."""
    try:
        _, fields = _stat(pid)
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / _TICK


def _stat(pid: int) -> tuple[str, list[str]]:
    """Return a process's name and the fields of its `/proc/PID/stat` from the third on (see `man proc`)."""
    before, after = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)
    return before.split("(", 1)[1], after.split()
