"""`run`: streams that come and go for a long time; what a worker and the store hold must not grow with it."""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from campaign.client import Client
from campaign.doors import Doors
from campaign.stage import MODEL, Stage, stage
from campaign.streams import Player
from campaign.tally import Tally

IDLE_S = 10  # that a stream lives; so there are always as many as were stepped in the last seconds
_FLAGS = ("--stream-ttl-s", str(IDLE_S), "--idempotency-ttl-s", str(IDLE_S))
_SAMPLES = 60
_MAY_GROW = 1.05
_MAY_GROW_BYTES = 16 * 2**20
_MAY_GROW_FILES = 8


class Sample(NamedTuple):
    """What is held at one moment.

    Attributes:
        second: Since the beginning.
        memory: Bytes that the workers have in use.
        files: Files and sockets that they have open.
        keys: In the store.
        store_memory: Bytes that the store's values take.
    """

    second: float
    memory: int
    files: int
    keys: int
    store_memory: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it.

    Attributes:
        seconds: How long.
        seed: Of every choice.
        streams: Played at once.
    """

    seconds: float
    seed: int
    streams: int = 32


async def run(
    plan: Plan, folder: Path, tally: Tally, samples: list[Sample], on_progress: Callable[[float], None] = lambda _: None
) -> None:
    """Play it; what was held is in `samples`, the last one from after the end, when every stream has expired."""
    rng, loop = random.Random(plan.seed), asyncio.get_running_loop()
    async with stage(folder, flags=_FLAGS) as made:
        doors, began = Doors(made.ports, MODEL), loop.time()
        player = Player(Client(doors, rng, tally), rng, f"s{plan.seed}")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(plan.streams):
                tasks.create_task(player.play())
            while (second := loop.time() - began) < plan.seconds:
                on_progress(second)
                samples.append(await asyncio.to_thread(look, made, second))
                player.ended.clear()
                await asyncio.sleep(plan.seconds / _SAMPLES)
            player.stop()
        await doors.close()
        await _until_expired(made)
        samples.append(await asyncio.to_thread(look, made, loop.time() - began))


def look(made: Stage, second: float) -> Sample:
    """Return what is held now."""
    pids = [worker.process.pid for worker in made.workers]
    with made.store.client() as client:
        keys, memory = client.dbsize(), client.info("memory")["used_memory_dataset"]
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    return Sample(second, pages * resource.getpagesize(), files, int(keys), int(memory))


def growth(samples: Sequence[Sample]) -> list[str]:
    """Say what grew, from when a third of the time was over to the end."""
    first, last, end = samples[len(samples) // 3], samples[-2], samples[-1]
    found = []
    if last.memory > _MAY_GROW * first.memory + _MAY_GROW_BYTES:
        found.append(f"the workers' memory grew from {first.memory / 2**20:.0f} to {last.memory / 2**20:.0f} MiB")
    if last.files > first.files + _MAY_GROW_FILES:
        found.append(f"the workers' open files grew from {first.files} to {last.files}")
    if end.keys:
        found.append(f"{end.keys} keys are left in the store after every stream has expired; expected none")
    return found


async def _until_expired(made: Stage) -> None:
    """Wait as long as streams may live."""
    deadline = asyncio.get_running_loop().time() + 2 * IDLE_S
    with made.store.client() as client:
        while client.dbsize() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.2)
