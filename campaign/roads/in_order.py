"""`run_order`, `run_ticks`: messages out of order through `--order` and `--every`, with kills and a jumping clock."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from campaign.roads.kill_run import OnProgress, RoadPlan, RoadResult, publish_messages
from campaign.roads.load import fold_of
from campaign.roads.processes import RoadConnector, connectors
from campaign.roads.replicas import Replicas, replicas
from campaign.roads.road import OpenRoad, Prediction, Road, decode_prediction, read_dead_letters
from campaign.roads.timed_load import EVERY_S, GAP, SECOND, WAIT_S, Series, TimedLoad

_AHEAD: Final = 50_000
"""Messages at most that are published and have not arrived, where publishing has a limit of time."""

_PUBLISHED_AT_ONCE: Final = 5000
_QUIET_S: Final = 120.0
"""Seconds without a prediction or a dead letter after which a run is over."""

_LETTERS_S: Final = 5.0  # for dead letters behind the last prediction
_HOUR_US: Final = 3600 * SECOND
_JUMPS_S: Final = (-1800.0, 86_400.0)
_EARLIER: Final = "the oldest go on"
"""What a connector logs when more messages wait than `--order-messages` allows."""

_POLL_S: Final = 0.1
_SHOWN: Final = 20
_JUMPING: Final = (sys.executable, "-P", str(Path(__file__).with_name("jumping_clock.py")))


@dataclass
class Arrived:
    """What has arrived so far.

    Attributes:
        may_double: Whether a prediction may be there again after a kill.
        places: By stream, position and prediction of each timestep, in the order of the broker.
        letters: The code of each dead letter, by the number of its message.
        n: Timesteps that have arrived, each counted once.
        doubles: Predictions that were there before.
        problems: What must not be.
    """

    may_double: bool
    places: defaultdict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    letters: dict[int, str] = field(default_factory=dict)
    n: int = 0
    doubles: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, found: Prediction) -> None:
        """Note one message."""
        own, place = self.places[found.stream], (found.source.at, found.y)
        if own and place[0] <= own[-1][0]:
            self.doubles += 1
            if not self.may_double or place not in own:
                self.problems.append(f"{found.stream}: {place} after {own[-1]}")
            return
        own.append(place)
        self.n += 1


@dataclass(frozen=True, slots=True)
class _Rules:
    """The flags by which a connector makes timesteps of messages, and which timesteps must result.

    Attributes:
        flags: Its flags.
        per_s: Messages of a stream in each second of its time.
        late: Returns which messages are late.
        series: Returns the timesteps, given which messages are late.
    """

    flags: tuple[str, ...]
    per_s: float
    late: Callable[[TimedLoad, Callable[[str], int]], list[bool]]
    series: Callable[[TimedLoad, npt.NDArray[np.bool_]], Series]


_ORDER: Final = _Rules(("--order", f"{WAIT_S}s"), 1.0, TimedLoad.late_by_order, TimedLoad.timesteps)
_TICKS: Final = _Rules(
    ("--order", f"{WAIT_S}s", "--every", f"{EVERY_S}s", "--gap", str(GAP)),
    2.0 / EVERY_S,
    TimedLoad.late_by_ticks,
    TimedLoad.ticks,
)


class _Wanted:
    """What must arrive.

    Attributes:
        load: The messages.
        late: Which of them are late.
        series: The timesteps.
        n: Their number.
    """

    def __init__(self, load: TimedLoad, rules: _Rules, partition_of: Callable[[str], int]) -> None:
        self._rules = rules
        self._set(load, np.array(rules.late(load, partition_of)))

    def end_at(self, n: int) -> None:
        """Leave out the messages from the n-th on, but the last ones of the streams."""
        kept = np.r_[:n, len(self.late) - self.load.n_last : len(self.late)]
        self._set(self.load.at(kept), self.late[kept])

    def add_late(self, xs: Iterable[int]) -> None:
        """Count more messages as late, by their numbers."""
        self._set(self.load, self.late | np.isin(self.load.xs, list(xs)))

    def _set(self, load: TimedLoad, late: npt.NDArray[np.bool_]) -> None:
        self.load, self.late, self.series = load, late, self._rules.series(load, late)
        self.n = sum(map(len, self.series.values()))


async def run_order(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress) -> RoadResult:
    """Publish messages out of order, kill meanwhile, and compare with the fold of those that were not late.

    Args:
        folder: For the broker, the store and the logs; its path must be short enough for a unix socket.
        open_road: The road.
        plan: The parameters.
        on_progress: Called regularly.
    """
    return await _run(folder, open_road, plan, on_progress, _ORDER)


async def run_ticks(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress) -> RoadResult:
    """Do the same by the ticks of a clock, and compare with the fold of what pandas resamples; arguments as before."""
    return await _run(folder, open_road, plan, on_progress, _TICKS)


async def _run(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress, rules: _Rules) -> RoadResult:
    ends_at = int(time.time()) * SECOND - _HOUR_US
    load = TimedLoad.draw(plan.seed, plan.streams, plan.steps, per_s=rules.per_s, ends_at=ends_at)
    clock = folder / "jump"
    clock.write_text("0")
    flags = ("--time", "t", "--time-unit", "us", "--idle", "10m", *rules.flags)
    launch = (*_JUMPING, str(clock), "connect")
    async with (
        open_road(folder) as road,
        replicas(folder) as system,
        connectors(folder, road, system, flags=flags, launch=launch) as [connector],
    ):
        if road.needs_reader_first:
            await connector.wait_until_reading()
        wanted = _Wanted(load, rules, road.partition_of)
        n, arrived = wanted.n, Arrived(road.may_double)
        started = time.monotonic()

        def progress() -> float:
            return max(arrived.n / n, (time.monotonic() - started) / plan.publish_s)

        async with asyncio.TaskGroup() as tasks:
            publishing = tasks.create_task(_publish(road, wanted, arrived, plan.publish_s))
            disturbing = tasks.create_task(_disturb(connector, system, plan, clock, progress))
            await _collect(road, arrived, wanted, publishing, on_progress)
            disturbing.cancel()
        seconds = time.monotonic() - started
        goes_early = _EARLIER in connector.log
        if goes_early:  # by the connector's own word, more are late than by the rules alone
            wanted.add_late(arrived.letters)
        load, late = wanted.load, wanted.late
        silent = without_letter(load, late, arrived.letters)
        problems = arrived.problems + compare(load, late, wanted.series, arrived, system.model)
        problems += [f"message {x} is late and has no dead letter" for x in silent]
        if problems:
            problems.append(connector.log[-2000:])
        figures = {
            "messages": len(load.xs),
            "timesteps": arrived.n,
            "seconds": round(seconds, 1),
            "connector_kills": connector.kills,
            "replica_kills": system.kills,
            "late": int(late.sum()),
            "dead_letters": len(arrived.letters),
            "doubles": arrived.doubles,
            "waited_less": goes_early,
        }
        return RoadResult(road.name, figures, list(itertools.islice(problems, _SHOWN)))


async def _publish(road: Road, wanted: _Wanted, arrived: Arrived, seconds: float) -> None:
    """Publish all messages; or for some seconds, no faster than they arrive, and then the last ones of the streams."""
    if math.isinf(seconds):
        await publish_messages(road, wanted.load.messages())
        return
    ends, load, done = time.monotonic() + seconds, wanted.load, 0
    rest, n = load.messages(), len(load.xs) - load.n_last
    while done < n and time.monotonic() < ends:
        if done - arrived.n - len(arrived.letters) > _AHEAD:
            await asyncio.sleep(_POLL_S)
            continue
        part = list(itertools.islice(rest, min(_PUBLISHED_AT_ONCE, n - done)))
        await road.publish(part)
        done += len(part)
    wanted.end_at(done)
    await publish_messages(road, itertools.islice(wanted.load.messages(), done, None))


async def _collect(
    road: Road, arrived: Arrived, wanted: _Wanted, publishing: asyncio.Task[None], on_progress: OnProgress
) -> None:
    """Read until all has arrived, and then until no dead letter has for a moment; or until nothing has for long."""
    last_at = time.monotonic()
    while time.monotonic() - last_at < (_LETTERS_S if arrived.n >= wanted.n and publishing.done() else _QUIET_S):
        out, dead = await road.read("out"), read_dead_letters(await road.read("dead"))
        for body in out:
            arrived.add(decode_prediction(body))
        for letter in dead:
            arrived.letters[msgspec.json.decode(letter["message"])["x"]] = letter["code"]
        last_at = time.monotonic() if out or dead else last_at
        on_progress(arrived.n, wanted.n)


async def _disturb(
    connector: RoadConnector, system: Replicas, plan: RoadPlan, clock: Path, progress: Callable[[], float]
) -> None:
    """Kill the connector and a replica when so much has arrived; between that, the connector's clock jumps."""
    rng = random.Random(plan.seed)
    for number in range(2 * plan.kills):
        while progress() < (number + 1) / (2 * plan.kills + 2):  # noqa: ASYNC110 - what arrives gives no event
            await asyncio.sleep(_POLL_S)
        await asyncio.to_thread(clock.write_text, str(rng.uniform(*_JUMPS_S)))
        if number % 2:
            connector.kill()
            connector.start()
            await system.kill_one()


def compare(
    load: TimedLoad,
    late: npt.NDArray[np.bool_],
    expected: Series,
    arrived: Arrived,
    model: Path,
) -> list[str]:
    """Return what must not be: predictions that are not the fold, or a message that is late by one side alone.

    Args:
        load: The messages.
        late: Which of them are late.
        expected: The timesteps of each stream.
        arrived: What has arrived.
        model: The step graph.
    """
    letters = arrived.letters
    problems = [f"message {x} is a dead letter with {code}" for x, code in letters.items() if code != "late"]
    for stream, series in expected.items():
        inputs = [x for _, x in series]
        ys = fold_of(model, np.array([inputs], np.int64))[0].tolist() if inputs else []
        found = arrived.places.get(stream, [])
        wanted = [(at, y) for (at, _), y in zip(series, ys, strict=True)]
        if found != wanted:
            i = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), len(found))
            problems.append(
                f"{stream}: {len(found)} timesteps, {len(wanted)} expected; the first that differs is the {i}th: "
                f"{found[i : i + 1]}, expected {wanted[i : i + 1]}"
            )
    problems += [
        f"message {x} is a dead letter and not late" for x in sorted(letters.keys() - {*load.xs[late].tolist()})
    ]
    return problems


def without_letter(load: TimedLoad, late: npt.NDArray[np.bool_], letters: Mapping[int, str]) -> list[int]:
    """Return the late messages that have no dead letter; of those that are there twice, one may count as the other."""
    times = Counter(load.xs.tolist())
    return sorted({x for x in load.xs[late].tolist() if times[x] == 1} - letters.keys())
