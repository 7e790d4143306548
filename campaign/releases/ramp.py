"""`run`: ramps a version over many streams under load, aborts it at 50 %, then ramps it again and promotes it."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign.checker import MODEL, check
from campaign.client import RandomClient
from campaign.releases.log import FACTORS
from campaign.releases.operator import ReleaseOperator
from campaign.stream_run import StreamRun
from campaign.streams import StreamDriver
from campaign.system import running_system
from campaign.tally import Tally
from campaign.transports import Transports
from tests.graphs import fold_reference

SHARES = (0, 5, 50, 100)
_ROWS = 250  # streams of a bulk request
_ROUNDS = 2  # of all streams, after each change; the first may have been sent before it
_SIGMAS = 4.0


@dataclass
class RampResult:
    """What was found.

    Attributes:
        streams: Number of streams.
        steps: Timesteps, each checked.
        seconds: Duration of the load.
        shares: Streams that the candidate answered, by percentage, of the trial that was aborted and that promoted.
        moved_back: Streams that a larger share moved back.
        outside: Percentages whose number of streams is not within 4 sigma.
        wrong_after_abort: Streams whose answers after the abort are not those of version 1 over all inputs.
        wrong_after_promotion: Streams whose answers are not those of version 2 from where it joined.
    """

    streams: int
    steps: int = 0
    seconds: float = 0.0
    shares: list[dict[int, int]] = field(default_factory=list)
    moved_back: int = 0
    outside: list[int] = field(default_factory=list)
    wrong_after_abort: int = 0
    wrong_after_promotion: int = 0

    def is_good(self) -> bool:
        """Whether everything was as it has to be."""
        return not (self.moved_back or self.outside or self.wrong_after_abort or self.wrong_after_promotion)


class _Load:
    """Steps all streams again and again, each group of them in its own task."""

    def __init__(self, driver: StreamDriver, names: Sequence[str]) -> None:
        self.groups = [[StreamRun(name) for name in names[i : i + _ROWS]] for i in range(0, len(names), _ROWS)]
        self._driver = driver
        self._rounds = [0] * len(self.groups)
        self._changed = asyncio.Condition()
        self._over = False

    @property
    def runs(self) -> list[StreamRun]:
        return [run for group in self.groups for run in group]

    async def step(self, number: int) -> None:
        """Step a group until the load is over, or a step was rejected."""
        while not self._over and await self._driver.step_all(self.groups[number]):
            async with self._changed:
                self._rounds[number] += 1
                self._changed.notify_all()

    async def more(self, rounds: int = _ROUNDS) -> None:
        """Wait until every stream was stepped some more times."""
        goal = [done + rounds for done in self._rounds]
        async with self._changed:
            await self._changed.wait_for(lambda: all(a >= b for a, b in zip(self._rounds, goal, strict=True)))

    def stop(self) -> None:
        """Let the groups finish the round that they are in."""
        self._over = True


async def run(streams: int, seed: int, folder: Path, tally: Tally) -> RampResult:
    """Run both ramps.

    Args:
        streams: Number of streams.
        seed: Seed of all random choices.
        folder: For the models, the sockets and the logs; its path must be short enough for a unix socket.
        tally: Receives the violations and the counts.
    """
    result, rng = RampResult(streams), random.Random(seed)
    async with running_system(folder, releases=True) as system:
        transports = Transports(system.ports, MODEL)
        driver = StreamDriver(RandomClient(transports, rng, tally), rng, f"r{seed}")
        operator = ReleaseOperator(driver, rng, tally)
        try:
            await operator.start()
            load, started_at = _Load(driver, [f"r{seed}-{n}" for n in range(streams)]), time.perf_counter()
            stepping = [asyncio.create_task(load.step(number)) for number in range(len(load.groups))]
            await load.more()
            await _ramp(operator, load, result, SHARES[:-1])
            await operator.finish("abort")
            await operator.wait_until_every_worker_follows()
            await load.more()
            aborted_at = [run.step for run in load.runs]
            await load.more()
            await _ramp(operator, load, result, SHARES)
            await operator.finish("promote")
            await operator.wait_until_every_worker_follows()
            await load.more()
            load.stop()
            await asyncio.gather(*stepping)
            result.seconds = time.perf_counter() - started_at
        finally:
            await transports.close()
    for run_, step in zip(load.runs, aborted_at, strict=True):
        checked = check(run_.name, run_.operations, run_.step, log=driver.log)
        tally.add(checked.violations)
        result.steps += run_.step
        result.wrong_after_abort += not _is_of_version_1(run_, step)
        result.wrong_after_promotion += not _is_of_version_2(run_)
    tally.steps = result.steps
    return result


async def _ramp(operator: ReleaseOperator, load: _Load, result: RampResult, percents: Sequence[int]) -> None:
    """Raise the share from one percentage to the next, and note which streams the candidate answers."""
    shares: dict[int, set[str]] = {}
    await operator.begin("ramp", percents[0], existing=True)
    for percent in percents:
        if percent != percents[0]:
            await operator.set_percent(percent)
        # a step that was sent before the change may be answered after it
        await load.more(_ROUNDS + 1)
        shares[percent] = {run.name for run in load.runs if _answered_last_by(run) == 2}
        if not abs(len(shares[percent]) - result.streams * percent / 100) <= _margin(result.streams, percent):
            result.outside.append(percent)
    sets = list(shares.values())
    result.moved_back += sum(len(lower - higher) for lower, higher in itertools.pairwise(sets))
    result.shares.append({percent: len(share) for percent, share in shares.items()})


def _margin(streams: int, percent: float) -> float:
    share = percent / 100
    return _SIGMAS * math.sqrt(streams * share * (1 - share))


def _answered_last_by(run: StreamRun) -> int:
    return next((one.version for one in reversed(run.operations) if one.version is not None), 1)


def _is_of_version_1(run: StreamRun, step: int) -> bool:
    """Whether the answer at a step after the abort is that of version 1 over all inputs."""
    xs = [x for operation in run.operations[:step] for x in operation.xs]
    return list(run.operations[step - 1].ys) == fold_reference(xs, factor=FACTORS[1])[-1:]


def _is_of_version_2(run: StreamRun) -> bool:
    """Whether the answers since version 2 responded last are those of it, from the state of version 1 before."""
    joined = max(i for i, operation in enumerate(run.operations) if operation.version == 2)
    xs = [x for operation in run.operations for x in operation.xs]
    before = fold_reference(xs[:joined], factor=FACTORS[1])[-1]
    ys = [y for operation in run.operations[joined:] for y in operation.ys]
    return ys == fold_reference(xs[joined:], start=before, factor=FACTORS[2])


def document(result: RampResult, tally: Tally, seed: int) -> dict[str, Any]:
    """Return the result as a document; it contains nothing about the machine."""
    return {
        "campaign": "ramp",
        "seed": seed,
        "streams": result.streams,
        "steps": result.steps,
        "steps_per_s": round(result.steps / result.seconds),
        "answered_by_the_candidate": [{f"{percent} %": n for percent, n in shares.items()} for shares in result.shares],
        "moved_back": result.moved_back,
        "outside_4_sigma": result.outside,
        "wrong_after_abort": result.wrong_after_abort,
        "wrong_after_promotion": result.wrong_after_promotion,
        "violations": tally.by_kind(),
        "examples": tally.examples(),
    }
