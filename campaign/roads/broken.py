"""`run_broken`: broken messages among the good ones, and a service that is away for half a minute."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np

from campaign.faults import is_over
from campaign.roads.arrivals import Arrivals
from campaign.roads.kill_run import OnProgress, RoadPlan, RoadResult, check_states, collect, publish_messages
from campaign.roads.load import Load
from campaign.roads.processes import RoadConnector, connectors
from campaign.roads.replicas import Replicas, replicas
from campaign.roads.road import OpenRoad, Road, Sent, read_dead_letters

_LARGE_BYTES: Final = 10 << 20
_MANY_LARGE: Final = 5
_MEMORY_EVERY_S: Final = 0.5
_GREW_BYTES: Final = 48 << 20
_END_S: Final = 120.0


def _encoded(**fields: Any) -> bytes:
    return msgspec.json.encode(fields)


_BROKEN: Final[dict[str, tuple[str, Callable[[str, int], bytes]]]] = {
    "bad JSON": ("bad_json", lambda stream, tag: b'{"tag": %d, "stream": "%s", "x": [1' % (tag, stream.encode())),
    "missing field": ("bad_input", lambda stream, tag: _encoded(tag=tag, stream=stream, n=1)),
    "wrong shape": ("bad_input", lambda stream, tag: _encoded(tag=tag, stream=stream, n=1, x=[1, 2])),
    "NaN": ("bad_json", lambda stream, tag: b'{"tag": %d, "stream": "%s", "x": [NaN]}' % (tag, stream.encode())),
    "10 MB": ("too_large", lambda stream, tag: _encoded(tag=tag, stream=stream, n=1, x=[1], more="x" * _LARGE_BYTES)),
}
"""By kind, the code that its dead letter has, and the message for a stream and a number."""


class BrokenMessages:
    """The broken messages of a run.

    Attributes:
        codes: By number, the code that the dead letter has to have.
    """

    def __init__(self, rng: np.random.Generator, load: Load, share: float, *, large: bool) -> None:
        """Draw which messages are followed by a broken one.

        Args:
            rng: Draws all random choices.
            load: The good messages.
            share: Of all messages, those that are broken.
            large: Whether the broker accepts messages of 10 MB.
        """
        self._good = load
        n = round(len(load) * share / (1 - share))
        self._after = np.sort(rng.integers(0, len(load), n)).tolist()
        usual = [kind for kind in _BROKEN if kind != "10 MB"]
        self._kinds = rng.choice(usual, n).tolist()
        if large:
            for i in rng.choice(n, min(n, _MANY_LARGE), replace=False).tolist():
                self._kinds[i] = "10 MB"
        self.codes = {tag: _BROKEN[kind][0] for tag, kind in enumerate(self._kinds)}

    def counts(self) -> dict[str, int]:
        """Return the number of messages by kind."""
        return dict(sorted(Counter(self._kinds).items()))

    def messages(self) -> Iterator[Sent]:
        """Yield good and broken messages."""
        tag = 0
        for i, good in enumerate(self._good.messages()):
            yield good
            while tag < len(self._after) and self._after[tag] == i:
                yield Sent(good.stream, _BROKEN[self._kinds[tag]][1](good.stream, tag))
                tag += 1


async def run_broken(folder: Path, open_road: OpenRoad, plan: RoadPlan, on_progress: OnProgress) -> RoadResult:
    """Publish good and broken messages, end the service for a while, and compare what arrives in both places.

    Args:
        folder: For the broker, the store and the logs; its path must be short enough for a unix socket.
        open_road: The road.
        plan: The parameters.
        on_progress: Called regularly.
    """
    rng = np.random.default_rng(plan.seed)
    load = Load(rng, f"d{plan.seed}-", plan.streams, plan.steps)
    async with (
        open_road(folder) as road,
        replicas(folder) as system,
        connectors(folder, road, system) as [connector],
    ):
        broken = BrokenMessages(rng, load, plan.broken_share, large=road.accepts_large)
        await connector.wait_until_reading()
        arrivals = Arrivals(load.names, load.expected(system.model), may_double=False)
        memory, over = _Memory(connector), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish_messages(road, broken.messages()))
            tasks.create_task(_end_service(system, memory, plan, over, lambda: arrivals.n_new > len(load) // 4))
            tasks.create_task(memory.sample(over))
            await collect(road, arrivals, len(load), on_progress, lambda: connector.log[-3000:])
            over.set()
        letters = await _all_letters(road, len(broken.codes))
        problems = [*arrivals.problems, *arrivals.missing(), *wrong_letters(letters, broken.codes), *memory.problems()]
        problems += await check_states(system, load.names, load.xs)
        figures = {
            "messages": len(load) + len(broken.codes),
            "broken": broken.counts(),
            "dead_letters": len(letters),
            "service_away_s": plan.service_away_s,
            "memory_mib": memory.figures(),
        }
        return RoadResult(road.name, figures, problems)


def wrong_letters(letters: Sequence[dict[str, Any]], codes: dict[int, str]) -> list[str]:
    """Return what is wrong in the dead letters: each broken message has to have one, with its code and a reason."""
    found: dict[int, str] = {}
    problems = []
    for letter in letters:
        tag = int(letter["message"].split(",")[0].split(":")[1])
        if tag in found:
            problems.append(f"broken message {tag} has two dead letters")
        found[tag] = letter["code"]
        if not letter["reason"]:
            problems.append(f"the dead letter of broken message {tag} has no reason")
    problems += [
        f"broken message {tag} has the code {found.get(tag)}; expected {code}"
        for tag, code in codes.items()
        if found.get(tag) != code
    ]
    return problems[:20]


class _Memory:
    """The resident memory of a connector before, while and after the service is away."""

    def __init__(self, connector: RoadConnector) -> None:
        self._phase = "before"
        self._connector = connector
        self._most: dict[str, int] = {}

    async def sample(self, over: asyncio.Event) -> None:
        """Sample until the end of the run."""
        while not await is_over(over, _MEMORY_EVERY_S):
            self._take_sample()

    def begin(self, phase: str) -> None:
        """Begin the next phase; the last one has a sample, however short it was."""
        self._take_sample()
        self._phase = phase

    def _take_sample(self) -> None:
        self._most[self._phase] = max(self._most.get(self._phase, 0), self._connector.memory_bytes())

    def figures(self) -> dict[str, int]:
        """Return the most of each phase, in MiB."""
        return {phase: most >> 20 for phase, most in self._most.items()}

    def problems(self) -> list[str]:
        """Return whether the memory grew while the service was away."""
        grew = self._most.get("away", 0) - self._most.get("before", 0)
        return (
            [f"the connector's memory grew by {grew >> 20} MiB while the service was away"]
            if grew > _GREW_BYTES
            else []
        )


async def _end_service(
    system: Replicas, memory: _Memory, plan: RoadPlan, over: asyncio.Event, has_a_part: Callable[[], bool]
) -> None:
    while not has_a_part():
        if await is_over(over, 0.1):
            return
    memory.begin("away")
    await system.kill(system.services, away_s=plan.service_away_s)
    memory.begin("after")


async def _all_letters(road: Road, n: int) -> list[dict[str, Any]]:
    """Return the dead letters once all have arrived, or after two minutes."""
    letters: list[dict[str, Any]] = []
    ends, quiet = time.monotonic() + _END_S, 0
    while (len(letters) < n or quiet < 2) and time.monotonic() < ends:
        found = read_dead_letters(await road.read("dead"))
        quiet = 0 if found else quiet + 1
        letters += found
    return letters
