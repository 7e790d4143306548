"""`run`: creates and abandons streams for a long time; memory, open files and keys must not grow."""

from __future__ import annotations

import asyncio
import random
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import redis

from campaign.checker import MODEL
from campaign.client import RandomClient
from campaign.streams import StreamDriver
from campaign.system import System, running_system
from campaign.tally import Tally
from campaign.transports import Transports
from stepwell.store.keys import PREFIX

IDLE_S = 10  # TTL of a stream: only streams stepped recently exist
_FLAGS = ("--stream-ttl-s", str(IDLE_S), "--idempotency-ttl-s", str(IDLE_S))
_SAMPLES = 60
_MAY_GROW = 1.05
_MAY_GROW_BYTES = 16 * 2**20
_MAY_GROW_FILES = 8


class Sample(NamedTuple):
    """Resource usage at one moment.

    Attributes:
        second: Seconds since the start.
        memory: Resident memory of the workers, bytes.
        files: Open files and sockets of the workers.
        keys: Keys of streams in the store.
        store_memory: Memory of the store's values, bytes.
    """

    second: float
    memory: int
    files: int
    keys: int
    store_memory: int


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """Parameters of a soak campaign.

    Attributes:
        seconds: Duration.
        seed: Seed of all random choices.
        streams: Concurrent streams.
    """

    seconds: float
    seed: int
    streams: int = 32


async def run(
    plan: SoakPlan,
    folder: Path,
    tally: Tally,
    samples: list[Sample],
    on_progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Run a soak campaign, appending to `samples`; the last sample is taken after every stream has expired."""
    rng, loop = random.Random(plan.seed), asyncio.get_running_loop()
    async with running_system(folder, flags=_FLAGS) as system:
        transports, started_at = Transports(system.ports, MODEL), loop.time()
        driver = StreamDriver(RandomClient(transports, rng, tally), rng, f"s{plan.seed}")
        async with asyncio.TaskGroup() as tasks:
            for _ in range(plan.streams):
                tasks.create_task(driver.run_patterns())
            while (second := loop.time() - started_at) < plan.seconds:
                on_progress(second)
                samples.append(await asyncio.to_thread(take_sample, system, second))
                driver.ended.clear()
                await asyncio.sleep(plan.seconds / _SAMPLES)
            driver.stop()
        await transports.close()
        await _until_expired(system)
        samples.append(await asyncio.to_thread(take_sample, system, loop.time() - started_at))


def take_sample(system: System, second: float) -> Sample:
    """Return the current resource usage."""
    pids = [worker.process.pid for worker in system.workers]
    with system.store.client() as client:
        keys, memory = _count_stream_keys(client), client.info("memory")["used_memory_dataset"]
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    files = sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids)
    return Sample(second, pages * resource.getpagesize(), files, int(keys), int(memory))


def describe_growth(samples: Sequence[Sample]) -> list[str]:
    """Describe what grew between a third of the duration and the end."""
    first, last, end = samples[len(samples) // 3], samples[-2], samples[-1]
    found = []
    if last.memory > _MAY_GROW * first.memory + _MAY_GROW_BYTES:
        found.append(f"the workers' memory grew from {first.memory / 2**20:.0f} to {last.memory / 2**20:.0f} MiB")
    if last.files > first.files + _MAY_GROW_FILES:
        found.append(f"the workers' open files grew from {first.files} to {last.files}")
    if end.keys:
        found.append(f"{end.keys} keys of streams are left in the store after every stream has expired; expected none")
    return found


def _count_stream_keys(client: redis.Redis) -> int:
    """Return the number of keys of streams; artifacts, the list of workers and the counts of releases live longer."""
    return sum(1 for _ in client.scan_iter(match=f"{PREFIX}{{*", count=1000))


async def _until_expired(system: System) -> None:
    """Wait until every stream has expired, or twice the TTL."""
    deadline = asyncio.get_running_loop().time() + 2 * IDLE_S
    with system.store.client() as client:
        while _count_stream_keys(client) and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110 - the server publishes no event
            await asyncio.sleep(0.2)
