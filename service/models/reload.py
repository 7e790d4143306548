"""`ReloadCoordinator`: what the processes of one `serve` tell each other through a private folder: "look at the models again"."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from service.background import run_forever

if TYPE_CHECKING:
    from service.models.registry import ReloadReport

CONTROL_ENV = "STEPWELL_CONTROL_DIR"
ADMITTED_ENV = "STEPWELL_ADMITTED_DIR"
"""Names the folder where the processes of one `serve` remember which model files they may load."""

_POLL_S = 0.1
_RELOAD_TIMEOUT_S = 60.0

Reload = Callable[[], Awaitable["ReloadReport"]]


class ReloadCoordinator:
    """Reloads the models in every worker of a `serve`, or in this process where it is the only one."""

    def __init__(self, reload: Reload, folder: Path | None) -> None:
        """Join; before the models are read for the first time, so that a reload meanwhile waits for this process.

        Args:
            reload: Reloads this process' models.
            folder: The folder that the workers share; None: there are no others.
        """
        self._reload = reload
        self._folder = folder
        self._seen = 0
        self._reload_lock = asyncio.Lock()
        if folder is not None:
            self._seen = self._generation()
            self._publish_seen()

    async def reload_everywhere(self) -> ReloadReport:
        """Reload here and in every other worker; returns what changed here when all have it.

        A worker that does not answer in time is among the failures.
        """
        if self._folder is None:
            return await self._reload()
        wanted = await asyncio.to_thread(self._next_generation)
        report = await self._catch_up(wanted)
        deadline = asyncio.get_running_loop().time() + _RELOAD_TIMEOUT_S
        while late := await asyncio.to_thread(self._behind, wanted):
            if asyncio.get_running_loop().time() > deadline:
                report.failed.extend(f"worker {pid}: has not reloaded within {_RELOAD_TIMEOUT_S:g} s" for pid in late)
                break
            await asyncio.sleep(_POLL_S)
        return report

    async def watch(self) -> None:
        """Reload whenever another worker asks for it; runs until it is cancelled."""
        if self._folder is not None:
            await run_forever(self._reload_if_asked, every_s=_POLL_S, name="Following the other workers' reloads")

    async def _reload_if_asked(self) -> None:
        wanted = await asyncio.to_thread(self._generation)
        if wanted > self._seen:
            await self._catch_up(wanted)

    async def _catch_up(self, wanted: int) -> ReloadReport:
        async with self._reload_lock:
            report = await self._reload()
            self._seen = max(self._seen, wanted)
            await asyncio.to_thread(self._publish_seen)
            return report

    # ---------------------------------------------------------------- files, read and written outside the event loop

    def _generation(self) -> int:
        assert self._folder is not None
        return _read(self._folder / "generation")

    def _publish_seen(self) -> None:
        assert self._folder is not None
        _write(self._folder / f"worker-{os.getpid()}", self._seen)

    def _behind(self, wanted: int) -> list[int]:
        """Return the other workers that have not reloaded as often as is wanted; dead ones are forgotten."""
        assert self._folder is not None
        behind = []
        for file in self._folder.glob("worker-*"):
            pid = int(file.name.partition("-")[2])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                file.unlink(missing_ok=True)
            else:
                if _read(file) < wanted:
                    behind.append(pid)
        return behind

    def _next_generation(self) -> int:
        assert self._folder is not None
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            generation = self._generation() + 1
            _write(self._folder / "generation", generation)
        return generation


def _read(file: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int(file.read_text())
    return 0


def _write(file: Path, number: int) -> None:
    partial = file.with_name(f".{file.name}-{os.getpid()}")
    partial.write_text(str(number))
    partial.replace(file)
