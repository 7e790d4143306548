"""`run_backfill`: recorded data into many streams with a kill in the middle, then live messages from a broker."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from campaign.roads.arrivals import Arrivals
from campaign.roads.kill_run import OnProgress, RoadPlan, RoadResult, check_states, collect, publish_all
from campaign.roads.load import Load, fold_of
from campaign.roads.processes import connectors
from campaign.roads.replicas import MODEL, Replicas, replicas
from campaign.roads.road import OpenRoad
from tests.programs.start import LAUNCH

_FILES: Final = 10
_LIVE_STEPS: Final = 3
_LEFT = re.compile(rb"sending.*?([\d,]+) timesteps\s+(?:(\d+):(\d\d):(\d\d)|-:--:--)")
_CODES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")  # of the terminal
_SHARES: Final = (0.1, 0.25, 0.5, 0.75)
"""Shares of the work at which the time left is compared with the time that it took."""


class Shown(NamedTuple):
    """What the progress bar showed.

    Attributes:
        at: When, in seconds of the monotonic clock.
        timesteps: The timesteps that were done.
        left_s: The time left in seconds; None: not known yet.
    """

    at: float
    timesteps: int
    left_s: int | None


class BackfillProcess:
    """`stepwell backfill` on a terminal of its own, whose progress bar is read; `with` kills it if it still runs.

    Attributes:
        shown: What the progress bar showed.
    """

    def __init__(self, folder: Path, data: Path, system: Replicas) -> None:
        """Start it.

        Args:
            folder: For its report.
            data: The files.
            system: The service.
        """
        self.shown: list[Shown] = []
        self._log = folder / "backfill.log"
        command = [*LAUNCH, "backfill", str(data), "--model", MODEL, "--url", system.url, "--json"]
        terminal, other = pty.openpty()
        with self._log.open("wb") as out:
            env = {k: v for k, v in os.environ.items() if not k.startswith("STEPWELL_")} | {"COLUMNS": "160"}
            self._process = subprocess.Popen(command, stdin=other, stdout=out, stderr=other, env=env)
        os.close(other)
        self._terminal = terminal
        self._reading = asyncio.create_task(asyncio.to_thread(self._read))

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    async def end(self) -> int:
        """Wait for its end, and return the exit code."""
        code = await asyncio.to_thread(self._process.wait)
        await self._reading
        return code

    def _read(self) -> None:
        """Read the terminal to its end."""
        text = b""
        while True:
            try:
                data = os.read(self._terminal, 1 << 16)
            except OSError:  # the process has ended
                os.close(self._terminal)
                return
            text = (text + data)[-4096:]
            for found in list(_LEFT.finditer(_CODES.sub(b"", text)))[-1:]:
                count, hours, minutes, seconds = found.groups()
                left = None if hours is None else int(hours) * 3600 + int(minutes) * 60 + int(seconds)
                self.shown.append(Shown(time.monotonic(), int(count.replace(b",", b"")), left))


async def run_backfill(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress) -> RoadResult:
    """Backfill `plan.streams` of `plan.steps`, kill the command and a replica in the middle, and go on live.

    Args:
        folder: For the files, the broker, the store and the logs; its path must be short enough for a unix socket.
        open_road: Where live messages come from.
        plan: The parameters.
        on_progress: Called regularly.
    """
    rng = np.random.default_rng(plan.seed)
    history = Load(rng, f"b{plan.seed}-", plan.streams, plan.steps)
    live = Load(rng, f"b{plan.seed}-", plan.streams, _LIVE_STEPS)
    data = folder / "history"
    _write(data, history)
    async with open_road(folder) as road, replicas(folder) as system:
        started = time.monotonic()
        with BackfillProcess(folder, data, system) as first:
            killed_at = await _kill_in_the_middle(first, system, len(history), on_progress)
        second_at = time.monotonic()
        with BackfillProcess(folder, data, system) as second:
            while second.is_running:
                on_progress(second.shown[-1].timesteps if second.shown else 0, len(history))
                await asyncio.sleep(0.5)
            code, ended = await second.end(), time.monotonic()
        xs = np.concatenate([history.xs, live.xs], axis=1)
        expected = fold_of(system.model, xs)[:, plan.steps :]
        arrivals = Arrivals(live.names, expected, may_double=road.may_double, steps_before=plan.steps)
        async with connectors(folder, road, system) as [connector]:
            if road.needs_reader_first:
                await connector.wait_until_reading()
            await publish_all(road, live)
            await collect(road, arrivals, len(live), on_progress, lambda: connector.log[-3000:])
        problems = [f"the second run ended with {code}"] if code else []
        problems += [*arrivals.problems, *arrivals.missing(), *await check_states(system, live.names, xs)]
        figures: dict[str, Any] = {
            "streams": plan.streams,
            "rows": len(history),
            "killed_at_row": killed_at,
            "first_run_s": round(second_at - started, 1),
            "second_run_s": round(ended - second_at, 1),
            "live_messages": len(live),
            "time_left": time_left(second.shown, len(history), ended),
        }
        return RoadResult(road.name, figures, problems)


def time_left(shown: list[Shown], n: int, ended: float) -> list[dict[str, float]]:
    """Return what the progress bar predicted at some shares of the work, and what it was."""
    found = []
    for share in _SHARES:
        one = next((one for one in shown if one.timesteps >= share * n and one.left_s is not None), None)
        if one is not None and one.left_s is not None:
            found.append({"done": share, "shown_s": one.left_s, "was_s": round(ended - one.at, 1)})
    return found


async def _kill_in_the_middle(process: BackfillProcess, system: Replicas, n: int, on_progress: OnProgress) -> int:
    """Kill the command and a replica, and return the number of timesteps that it had shown by then.

    It is killed as soon as it shows an eighth: the bar moves a few times a second, and meanwhile it sends much more.
    """
    while not process.shown or process.shown[-1].timesteps < n // 8:
        if not process.is_running:
            raise RuntimeError(f"the first run ended with {await process.end()} before it was killed")
        on_progress(process.shown[-1].timesteps if process.shown else 0, n)
        await asyncio.sleep(0.05)
    process.kill()
    await process.end()
    await system.kill_one()
    return process.shown[-1].timesteps


def _write(folder: Path, history: Load) -> None:
    """Write files in which each stream goes on from one to the next."""
    folder.mkdir()
    parts: list[npt.NDArray[np.int64]] = np.array_split(history.xs, min(_FILES, history.xs.shape[1]), axis=1)
    for n, part in enumerate(parts):
        arrays: dict[str, Any] = {"x:x": part[..., np.newaxis], "streams": np.array(history.names)}
        np.savez(folder / f"{n:02}.npz", **arrays)
