"""`run`: many streams on two workers and one store, while all of it breaks; and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from campaign.client import Client
from campaign.doors import Doors
from campaign.faults import trouble
from campaign.stage import MODEL, stage
from campaign.streams import Player
from campaign.tally import Tally

_TELL_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it.

    Attributes:
        seconds: How long faults come.
        seed: Of every choice; what the machine makes of them is its own affair.
        streams: Played at once; a request in columns counts for one.
        fault_every_s: Seconds between two faults, on average.
        stop_when_broken: End with the first broken promise.
    """

    seconds: float
    seed: int
    streams: int = 32
    fault_every_s: float = 2.0
    stop_when_broken: bool = False


async def run(
    plan: Plan,
    folder: Path,
    tally: Tally,
    *,
    env: Mapping[str, str] | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Play it; what comes of it is in the tally, also when this is cancelled.

    Args:
        plan: How much.
        folder: For everything that it needs; its path has to be short.
        tally: Counts.
        env: Of the workers, besides this process's own.
        on_progress: Told the seconds that are over, now and then.
    """
    rng = random.Random(plan.seed)
    async with stage(folder, env=env) as made:
        doors = Doors(made.ports, MODEL)
        player = Player(Client(doors, rng, tally), rng, f"s{plan.seed}")
        over = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(plan.streams):
                    tasks.create_task(player.play())
                tasks.create_task(trouble(made, random.Random(plan.seed), tally, plan.fault_every_s, over))
                await _wait(plan, tally, on_progress)
                over.set()
                player.stop()
            await player.look_again()
        finally:
            await doors.close()


async def _wait(plan: Plan, tally: Tally, on_progress: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (seconds := loop.time() - began) < plan.seconds and not (plan.stop_when_broken and tally.broken.is_set()):
        on_progress(seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(tally.broken.wait(), _TELL_EVERY_S)
            await asyncio.sleep(0 if plan.stop_when_broken else _TELL_EVERY_S)
