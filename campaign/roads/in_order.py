"""`run_order`: shuffled, late and repeated messages through `--order`, while connector and replicas are killed."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from campaign.faults import is_over
from campaign.roads.kill_run import OnProgress, RoadPlan, RoadResult, kill_replicas, publish_messages
from campaign.roads.load import fold_of
from campaign.roads.processes import RoadConnector, connectors
from campaign.roads.replicas import replicas
from campaign.roads.road import OpenRoad, Prediction, Sent, decode_prediction, read_dead_letters

_WAIT_S: Final = 5
_PER_S: Final = 100  # messages of each second of event time
_LATE_S: Final = 20.0
_SHARE: Final = 0.01  # of messages that are late, and of those that are there twice
_END_S: Final = 60.0
_SHOWN: Final = 20
_US: Final = 1_000_000


async def run_order(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress) -> RoadResult:
    """Publish messages out of order, kill meanwhile, and compare with the fold of those that were not late.

    Args:
        folder: For the broker, the store and the logs; its path must be short enough for a unix socket.
        open_road: The road.
        plan: The parameters.
        on_progress: Called regularly.
    """
    messages = shuffled(plan)
    flags = ("--time", "t", "--order", f"{_WAIT_S}s", "--idle", "3s")
    async with (
        open_road(folder) as road,
        replicas(folder) as system,
        connectors(folder, road, system, flags=flags) as [connector],
    ):
        if road.needs_reader_first:
            await connector.wait_until_reading()
        found, letters = list[Prediction](), dict[int, str]()
        started, over, last_at = time.monotonic(), asyncio.Event(), time.monotonic()
        seen: set[int] = set()
        async with asyncio.TaskGroup() as tasks:
            sent = (Sent(one["stream"], msgspec.json.encode(one)) for one in messages)
            publishing = tasks.create_task(publish_messages(road, sent))
            tasks.create_task(_kill(connector, plan, over))
            tasks.create_task(kill_replicas(system, plan, over))
            n = len({one["x"] for one in messages})
            while (len(seen | letters.keys()) < n or not publishing.done()) and time.monotonic() - last_at < _END_S:
                new = [decode_prediction(body) for body in await road.read("out")]
                dead = read_dead_letters(await road.read("dead"))
                found += new
                seen |= {one.source.at // (_US // _PER_S) for one in new}
                letters |= {msgspec.json.decode(one["message"])["x"]: one["code"] for one in dead}
                last_at = time.monotonic() if new or dead else last_at
                on_progress(len(seen), n)
            over.set()
        problems = compare(messages, found, letters, system.model, may_double=road.may_double)
        if problems:
            problems.append(connector.log[-2000:])
        figures = {
            "messages": len(messages),
            "seconds": round(time.monotonic() - started, 1),
            "connector_kills": connector.kills,
            "replica_kills": system.kills,
            "applied": len(seen),
            "late": len(letters),
        }
        return RoadResult(road.name, figures, problems)


def shuffled(plan: RoadPlan) -> list[dict[str, Any]]:
    """Return messages with unique times, shuffled within the wait; some come later than that, and some twice."""
    rng = np.random.default_rng(plan.seed)
    n = plan.streams * plan.steps
    delays = np.where(rng.random(n) < _SHARE, _LATE_S, rng.random(n) * _WAIT_S)
    order = np.argsort(np.arange(n) / _PER_S + delays, kind="stable").tolist()
    streams = rng.integers(0, plan.streams, n).tolist()
    twice = rng.random(n) < _SHARE
    found = []
    for i in order:
        one = {"stream": f"o{plan.seed}-{streams[i]}", "x": i, "t": i / _PER_S}
        found += [one, one] if twice[i] else [one]
    return found


def compare(
    messages: list[dict[str, Any]], found: list[Prediction], letters: dict[int, str], model: Path, *, may_double: bool
) -> list[str]:
    """Return what must not be: a prediction that is not of the fold, a message that is lost, or is applied and late."""
    problems = [f"message {x} is a dead letter with {code}" for x, code in letters.items() if code != "late"]
    by_stream: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for one in found:
        own = by_stream[one.stream]
        place = (one.source.at // (_US // _PER_S), one.y)
        if own and place[0] <= own[-1][0]:
            if not may_double or place not in own:
                problems.append(f"{one.stream}: {place} after {own[-1]}")
            continue
        own.append(place)
    counts: defaultdict[int, int] = defaultdict(int)
    of_stream: defaultdict[str, set[int]] = defaultdict(set)
    for message in messages:
        counts[message["x"]] += 1
        of_stream[message["stream"]].add(message["x"])
    for stream, xs in of_stream.items():
        own = by_stream[stream]
        applied = [x for x, _ in own]
        expected = fold_of(model, np.array([applied], np.int64))[0].tolist() if applied else []
        if [y for _, y in own] != expected:
            problems.append(f"{stream}: the predictions are not the fold of its messages that were not late")
        problems += [f"{stream}: message {x} is neither applied nor late" for x in xs - set(applied) - letters.keys()]
        both = (x for x in applied if x in letters and counts[x] == 1)
        problems += [f"{stream}: message {x} is applied and a dead letter" for x in both]
    return list(itertools.islice(problems, _SHOWN))


async def _kill(connector: RoadConnector, plan: RoadPlan, over: asyncio.Event) -> None:
    ends = time.monotonic() + plan.faults_s
    while time.monotonic() < ends and not await is_over(over, plan.kill_every_s):
        connector.kill()
        connector.start()
