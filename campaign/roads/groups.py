"""`run_group`: two connectors of one group, and a rebalance again and again while messages come."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from campaign.faults import is_over
from campaign.roads.arrivals import Arrivals
from campaign.roads.kill_run import OnProgress, RoadPlan, RoadResult, check_states, collect, publish_all
from campaign.roads.load import Load
from campaign.roads.processes import RoadConnector, connectors
from campaign.roads.replicas import replicas
from campaign.roads.road import OpenRoad

_PERIODS = 6
"""Rebalances for which messages are published."""


class ArrivalTimes:
    """When new predictions have arrived.

    Attributes:
        rebalances: When each rebalance began.
    """

    def __init__(self) -> None:
        self.rebalances: list[float] = []
        self._arrived: list[float] = []
        self._n = 0

    def note(self, n: int) -> None:
        """Note the number of predictions by now."""
        if n > self._n:
            self._n = n
            self._arrived.append(time.monotonic())

    def pauses(self) -> list[float]:
        """Return for each rebalance the longest time without a new prediction, until the next one began."""
        found = []
        for began, ends in zip(self.rebalances, [*self.rebalances[1:], float("inf")], strict=True):
            before = max((at for at in self._arrived if at <= began), default=began)
            times = [max(before, began), *(at for at in self._arrived if began < at <= ends)]
            if len(times) > 1:
                found.append(max(b - a for a, b in itertools.pairwise(times)))
        return found


async def run_group(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress) -> RoadResult:
    """Publish at an even pace, force rebalances, and compare what arrives.

    Args:
        folder: For the broker, the store and the logs; its path must be short enough for a unix socket.
        open_road: The road.
        plan: The parameters.
        on_progress: Called regularly.
    """
    load = Load(np.random.default_rng(plan.seed), f"g{plan.seed}-", plan.streams, plan.steps)
    async with (
        open_road(folder) as road,
        replicas(folder) as system,
        connectors(folder, road, system, 2) as members,
    ):
        await asyncio.gather(*(one.wait_until_reading() for one in members))
        arrivals = Arrivals(load.names, load.expected(system.model), may_double=False)
        times, over = ArrivalTimes(), asyncio.Event()

        def note(done: int, of: int) -> None:
            times.note(done)
            on_progress(done, of)

        started = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            pace = len(load) / (_PERIODS * plan.rebalance_every_s)
            tasks.create_task(publish_all(road, load, per_s=pace))
            tasks.create_task(_rebalance(members, times, plan, over, share=road.shares_work))
            await collect(road, arrivals, len(load), note, lambda: "\n".join(one.log[-2000:] for one in members))
            over.set()
        pauses = times.pauses()
        figures = {
            "streams": plan.streams,
            "messages": len(load),
            "seconds": round(time.monotonic() - started, 1),
            "rebalances": len(times.rebalances),
            "longest_pause_s": [round(one, 2) for one in pauses],
            "median_pause_s": round(float(np.median(pauses)), 2) if pauses else None,
            "doubles": arrivals.doubles,
        }
        problems = [*arrivals.problems, *arrivals.missing(), *await check_states(system, load.names, load.xs)]
        return RoadResult(road.name, figures, problems)


async def _rebalance(
    members: Sequence[RoadConnector], times: ArrivalTimes, plan: RoadPlan, over: asyncio.Event, *, share: bool
) -> None:
    """End and start members again.

    Where the members share the work, one of them leaves and comes back in turn. Where one reads and the other stands
    by, the one that reads ends, and stands by when it is started again.
    """
    is_away = False
    while not await is_over(over, plan.rebalance_every_s):
        times.rebalances.append(time.monotonic())
        if is_away:
            members[-1].start()
            is_away = False
        elif share:
            await members[-1].stop()
            is_away = True
        else:
            reading = max(members, key=lambda one: int(one.counts().get("messages", 0)))
            await reading.stop()
            reading.start()
