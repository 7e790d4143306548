"""`ReloadCoordinator`: reloads the models in all worker processes of one `serve`, through files in a private folder."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stepwell.background import run_forever

if TYPE_CHECKING:
    from stepwell.models.changes import ReloadReport

_POLL_S = 0.1
_RELOAD_TIMEOUT_S = 60.0

Reload = Callable[[], Awaitable["ReloadReport"]]


class ReloadCoordinator:
    """Reloads the models in every worker of a `serve`, or in this process where it is the only one."""

    def __init__(self, reload: Reload, folder: Path | None) -> None:
        """Register this worker. Create it before the first load of the models, so that a reload waits for this worker.

        Args:
            reload: Reloads the models of this process.
            folder: The folder that the workers share; None: this is the only worker.
        """
        self._reload = reload
        self._folder = folder
        self._generation_seen = 0
        self._reload_lock = asyncio.Lock()
        if folder is not None:
            self._generation_seen = self._read_generation()
            self._publish_seen()

    async def reload_everywhere(self) -> ReloadReport:
        """Reload here and in all other workers; return the report of this worker once all have reloaded.

        A worker that has not reloaded within 60 s is reported as a failure.
        """
        if self._folder is None:
            return await self._reload()
        async with self._reload_lock:  # before `watch` follows this request, or its report would have what was loaded
            generation = await asyncio.to_thread(self._next_generation)
            report = await self._reload_to(generation)
        deadline = asyncio.get_running_loop().time() + _RELOAD_TIMEOUT_S
        while late := await asyncio.to_thread(self._late_workers, generation):
            if asyncio.get_running_loop().time() > deadline:
                report.failed.extend(f"worker {pid}: has not reloaded within {_RELOAD_TIMEOUT_S:g} s" for pid in late)
                break
            await asyncio.sleep(_POLL_S)
        return report

    async def watch(self) -> None:
        """Reload whenever another worker requests it; runs until cancelled."""
        if self._folder is not None:
            await run_forever(
                self._reload_if_requested, every_s=_POLL_S, name="Checking for reload requests of other workers"
            )

    async def _reload_if_requested(self) -> None:
        generation = await asyncio.to_thread(self._read_generation)
        if generation > self._generation_seen:
            async with self._reload_lock:
                if generation > self._generation_seen:
                    await self._reload_to(generation)

    async def _reload_to(self, generation: int) -> ReloadReport:
        report = await self._reload()
        self._generation_seen = generation
        await asyncio.to_thread(self._publish_seen)
        return report

    # ---------------------------------------------------------------- file access, outside the event loop

    def _read_generation(self) -> int:
        assert self._folder is not None
        return _read(self._folder / "generation")

    def _publish_seen(self) -> None:
        assert self._folder is not None
        _write(self._folder / f"worker-{os.getpid()}", self._generation_seen)

    def _late_workers(self, generation: int) -> list[int]:
        """Return the process ids of workers that have not reached a generation; files of dead workers are removed."""
        assert self._folder is not None
        late = []
        for file in self._folder.glob("worker-*"):
            pid = int(file.name.partition("-")[2])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                file.unlink(missing_ok=True)
            else:
                if _read(file) < generation:
                    late.append(pid)
        return late

    def _next_generation(self) -> int:
        assert self._folder is not None
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            generation = self._read_generation() + 1
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
