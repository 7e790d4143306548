"""`run_restore`: the time from the start of a killed connector to its first right prediction, by number of streams."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from campaign.roads.arrivals import Arrivals
from campaign.roads.kill_run import OnProgress, RoadPlan, RoadResult, collect, publish_all
from campaign.roads.load import Load, fold_of
from campaign.roads.processes import RoadConnector, connectors
from campaign.roads.replicas import replicas
from campaign.roads.road import OpenRoad, Road, decode_prediction

_STREAMS: Final = (1_000, 10_000, 100_000)
_KILLS: Final = 3


async def run_restore(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress) -> RoadResult:
    """Give many streams a state, kill the connector, and measure until the first right prediction after its start.

    Args:
        folder: For the broker, the store and the logs; its path must be short enough for a unix socket.
        open_road: The road.
        plan: The parameters; `streams` is the largest number of streams that is measured.
        on_progress: Called regularly.
    """
    rng = np.random.default_rng(plan.seed)
    figures: dict[str, Any] = {}
    problems: list[str] = []
    async with (
        open_road(folder) as road,
        replicas(folder, n=1) as system,
        connectors(folder, road, system) as [connector],
    ):
        if road.needs_reader_first:
            await connector.wait_until_reading()
        for n in [n for n in _STREAMS if n < plan.streams] + [plan.streams]:
            load = Load(rng, f"r{n}-", n, 1)
            xs, expected = load.xs, fold_of(system.model, load.xs)
            arrivals = Arrivals(load.names, expected, may_double=road.may_double)
            await publish_all(road, load)
            await collect(road, arrivals, n, on_progress, lambda: connector.log[-3000:])
            problems += arrivals.problems
            seconds = []
            for _ in range(_KILLS):
                more = Load(rng, f"r{n}-", n, 1)
                xs = np.concatenate([xs, more.xs], axis=1)
                expected = fold_of(system.model, xs)[:, -1:]
                arrivals = Arrivals(load.names, expected, may_double=road.may_double, steps_before=xs.shape[1] - 1)
                seconds.append(await _seconds_to_first(road, connector, more, arrivals))
                await collect(road, arrivals, n, on_progress, lambda: connector.log[-3000:])
                problems += arrivals.problems
            figures[f"{n} streams, s"] = [round(one, 2) for one in seconds]
            figures[f"{n} streams, median s"] = round(statistics.median(seconds), 2)
    return RoadResult(road.name, figures, problems)


async def _seconds_to_first(road: Road, connector: RoadConnector, load: Load, arrivals: Arrivals) -> float:
    """Kill the connector, publish, start it, and return the seconds until the first prediction."""
    connector.kill()
    await publish_all(road, load)
    started = time.monotonic()
    connector.start()
    while not (found := await road.read("out")):
        connector.check()
    seconds = time.monotonic() - started
    for body in found:
        arrivals.add(decode_prediction(body))
    return seconds
