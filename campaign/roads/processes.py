"""Connectors of a road as processes, which are killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from campaign.roads.replicas import MODEL, Replicas
from campaign.roads.road import Road
from tests.addons.connect.connectors import ConnectorProcess

_POLL_S = 0.05
_START_S = 120.0


class RoadConnector:
    """A connector with `--json`.

    Attributes:
        kills: How often it was killed.
        away_s: Seconds for which it was away once, between a kill and its start.
    """

    def __init__(
        self,
        folder: Path,
        road: Road,
        system: Replicas,
        *,
        alone: bool,
        flags: Sequence[str] = (),
        launch: Sequence[str] | None = None,
    ) -> None:
        """Create it; it is not started.

        Args:
            folder: For its log.
            road: What it reads and writes.
            system: The service.
            alone: It is the only one of its group.
            flags: More of its words.
            launch: What runs instead of `stepwell connect`.
        """
        self.kills = 0
        self.away_s = 0.0
        self._process = ConnectorProcess(
            folder, *road.flags(alone=alone), "--model", MODEL, "--url", system.url, "--json", *flags
        )
        self._process.launch = launch

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.process.pid

    @property
    def log(self) -> str:
        """What it has printed, since it was started first."""
        return self._process.text()

    def start(self) -> None:
        """Start it, without waiting."""
        self._process.start()

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self._process.kill()
        self.kills += 1

    async def stop(self) -> None:
        """Let it hand over what is open, and end it."""
        await asyncio.to_thread(self._process.stop)

    async def wait_until_reading(self) -> None:
        """Wait for its first report: it has connected to the broker then.

        Raises:
            RuntimeError: It has ended, or there was no report for two minutes.
        """
        async with asyncio.timeout(_START_S):
            while not self.counts():
                self.check()
                await asyncio.sleep(_POLL_S)

    def counts(self) -> dict[str, Any]:
        """Return its newest counts; empty before the first report after a start, and once it was stopped."""
        for line in reversed(self.log.splitlines()):
            with contextlib.suppress(json.JSONDecodeError):
                document: dict[str, Any] = json.loads(line)
                return {} if document.get("ended") else document
        return {}

    def check(self) -> None:
        """Check that it runs.

        Raises:
            RuntimeError: It has ended by itself.
        """
        if (code := self._process.process.poll()) is not None:
            raise RuntimeError(f"a connector ended with {code}:\n{self.log[-3000:]}")

    def memory_bytes(self) -> int:
        """Return its resident memory."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) << 10
        return 0


@contextlib.asynccontextmanager
async def connectors(
    folder: Path,
    road: Road,
    system: Replicas,
    n: int = 1,
    *,
    flags: Sequence[str] = (),
    launch: Sequence[str] | None = None,
) -> AsyncIterator[Sequence[RoadConnector]]:
    """Run connectors of one group until the block ends; `flags` and `launch` as in `RoadConnector`."""
    found = [RoadConnector(folder, road, system, alone=n == 1, flags=flags, launch=launch) for _ in range(n)]
    try:
        for one in found:
            one.start()
        yield found
    finally:
        for one in found:
            await one.stop()
