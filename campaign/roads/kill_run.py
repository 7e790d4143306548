"""`run_kills`: messages of many streams, while the connector and the replicas are killed again and again."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt

from campaign.faults import is_over
from campaign.roads.arrivals import Arrivals, compare_next_step
from campaign.roads.load import Load, fold_of
from campaign.roads.processes import RoadConnector, connectors
from campaign.roads.replicas import MODEL, Replicas, replicas
from campaign.roads.road import OpenRoad, Road, Sent, decode_prediction

IDEMPOTENCY_TTL_S = 2
_AWAY_S = 2.5 * IDEMPOTENCY_TTL_S
_END_S = 900.0
_POLL_S = 0.05
_EARLY = 0.2  # of the kills
_QUIET_READS = 2
_PUBLISHED_AT_ONCE = 5000
_STEPPED_AT_ONCE = 1000
_SHOWN = 20
_NEXT_X = 7


@dataclass(frozen=True, slots=True)
class RoadPlan:
    """Parameters of all runs of one road.

    Attributes:
        streams: The number of streams.
        steps: Messages of each.
        seed: Seed of all random choices; the timing is not reproducible.
        kill_every_s: Seconds between two kills of the connector.
        replica_every_s: Seconds between two kills of a replica.
        rebalance_every_s: Seconds between two rebalances.
        broken_share: Of all messages, those that are broken.
        service_away_s: Seconds for which all replicas are away among broken messages.
        faults_s: Seconds after which nothing is killed any more, so that a slow machine comes to an end.
        kills: With messages out of order, how often the connector and a replica are killed.
        publish_s: With messages out of order, seconds after which no more are published.
    """

    streams: int = 200
    steps: int = 2000
    seed: int = 0
    kill_every_s: float = 3.0
    replica_every_s: float = 5.0
    rebalance_every_s: float = 10.0
    broken_share: float = 0.05
    service_away_s: float = 30.0
    faults_s: float = 120.0
    kills: int = 6
    publish_s: float = math.inf


@dataclass
class RoadResult:
    """What was found on one road.

    Attributes:
        road: The road's name.
        figures: What was counted and measured.
        problems: What must not be.
    """

    road: str
    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """Return the result as plain values."""
        return {"road": self.road, **self.figures, "problems": self.problems}


OnProgress = Callable[[int, int], None]
"""Called with the number of predictions that have arrived, and of all."""


async def run_kills(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress) -> RoadResult:
    """Publish everything, kill meanwhile, and compare what arrives.

    Args:
        folder: For the broker, the store and the logs; its path must be short enough for a unix socket.
        open_road: The road.
        plan: The parameters.
        on_progress: Called regularly.
    """
    load = Load(np.random.default_rng(plan.seed), f"k{plan.seed}-", plan.streams, plan.steps)
    flags = ("--idempotency-ttl-s", str(IDEMPOTENCY_TTL_S))
    async with (
        open_road(folder) as road,
        replicas(folder, flags=flags) as system,
        connectors(folder, road, system) as [connector],
    ):
        if road.needs_reader_first:
            await connector.wait_until_reading()
        arrivals = Arrivals(load.names, load.expected(system.model), may_double=road.may_double)
        started = time.monotonic()
        over = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish_all(road, load))
            tasks.create_task(_kill_connector(connector, plan, over, arrivals, len(load)))
            tasks.create_task(kill_replicas(system, plan, over))
            await collect(road, arrivals, len(load), on_progress, lambda: connector.log[-3000:])
            over.set()
        seconds = time.monotonic() - started
        problems = [*arrivals.problems, *arrivals.missing(), *await check_states(system, load.names, load.xs)]
        figures = {
            "messages": len(load),
            "seconds": round(seconds, 1),
            "connector_kills": connector.kills,
            "replica_kills": system.kills,
            "away_s": connector.away_s,
            "idempotency_ttl_s": IDEMPOTENCY_TTL_S,
            "doubles": arrivals.doubles,
        }
        return RoadResult(road.name, figures, problems)


async def publish_all(road: Road, load: Load, *, per_s: float = math.inf) -> None:
    """Publish all messages of a load; arguments as of `publish_messages`."""
    await publish_messages(road, load.messages(), per_s=per_s)


async def publish_messages(road: Road, messages: Iterable[Sent], *, per_s: float = math.inf) -> None:
    """Publish messages as fast as the broker confirms them, or at an even pace.

    Args:
        road: Where to.
        messages: In order.
        per_s: Messages for each second.
    """
    started, done, rest = time.monotonic(), 0, iter(messages)
    size = max(1, min(_PUBLISHED_AT_ONCE, int(per_s / 10) if math.isfinite(per_s) else _PUBLISHED_AT_ONCE))
    while part := list(itertools.islice(rest, size)):
        await road.publish(part)
        done += len(part)
        await asyncio.sleep(max(0.0, started + done / per_s - time.monotonic()))


async def collect(road: Road, arrivals: Arrivals, n: int, on_progress: OnProgress, tail: Callable[[], str]) -> None:
    """Read the outgoing place until everything has arrived and then nothing for a moment, or nothing for a long time.

    Args:
        road: What is read.
        arrivals: Compares what arrives.
        n: The number of predictions.
        on_progress: Called regularly.
        tail: Returns the end of the connector's log, for the problem that nothing arrives.
    """
    quiet, last_at = 0, time.monotonic()
    while not arrivals.is_complete or quiet < _QUIET_READS:
        found = await road.read("out")
        for body in found:
            arrivals.add(decode_prediction(body))
        quiet = 0 if found else quiet + 1
        last_at = time.monotonic() if found else last_at
        on_progress(arrivals.n_new, n)
        if time.monotonic() - last_at > _END_S:
            arrivals.problems.append(
                f"{arrivals.n_new} of {n} predictions have arrived; the connector's log:\n{tail()}"
            )
            return


async def check_states(system: Replicas, names: Sequence[str], xs: npt.NDArray[np.int64]) -> list[str]:
    """Step each stream once more, and return what differs from the fold of all its inputs."""
    n = len(names)
    expected = fold_of(system.model, np.concatenate([xs, np.full((n, 1), _NEXT_X)], axis=1))[:, -1]
    problems: list[str] = []
    async with httpx2.AsyncClient(base_url=system.url, timeout=60) as http:
        for start in range(0, n, _STEPPED_AT_ONCE):
            part = names[start : start + _STEPPED_AT_ONCE]
            body = {"streams": part, "inputs": {"x": [[_NEXT_X]] * len(part)}}
            response = await http.post(f"/v1/models/{MODEL}/step", json=body)
            response.raise_for_status()
            problems += compare_next_step(response.json(), part, expected[start : start + len(part)])
    return problems[:_SHOWN]


async def _kill_connector(
    connector: RoadConnector, plan: RoadPlan, over: asyncio.Event, arrivals: Arrivals, n: int
) -> None:
    """Kill the connector regularly; once it is away for longer than the service keeps idempotency keys.

    Most kills come some seconds after a prediction has arrived: a broker may need longer than `kill_every_s` to give
    the messages to a restarted connector. The others come that long after its start, whatever it does then.
    """
    rng = random.Random(plan.seed)
    began = time.monotonic()
    while time.monotonic() < began + plan.faults_s:
        before = arrivals.n_new
        is_early = rng.random() < _EARLY
        while not is_early and arrivals.n_new == before and not over.is_set():
            await is_over(over, _POLL_S)
        if await is_over(over, plan.kill_every_s):
            return
        connector.kill()
        is_late = arrivals.n_new > n // 3 or time.monotonic() > began + plan.faults_s / 2
        if is_late and not connector.away_s:
            connector.away_s = _AWAY_S
            await asyncio.sleep(_AWAY_S)
        connector.start()


async def kill_replicas(system: Replicas, plan: RoadPlan, over: asyncio.Event) -> None:
    """Kill one replica after the other."""
    ends = time.monotonic() + plan.faults_s
    while not await is_over(over, plan.replica_every_s) and time.monotonic() < ends:
        await system.kill_one()
