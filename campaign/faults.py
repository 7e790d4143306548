"""What is done to the workers, to the store, and to what lies between them. Every fault ends by itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import redis

from campaign.stage import WORKERS, Stage
from campaign.tally import Tally

Do = Callable[[Stage, int, random.Random], Awaitable[None]]


async def kill_worker(stage: Stage, number: int, rng: random.Random) -> None:
    """`kill -9`, and a new start after a while."""
    await asyncio.to_thread(stage.workers[number].kill)
    await asyncio.sleep(rng.uniform(0, 1))
    await stage.start_worker(number)


async def pause_worker(stage: Stage, number: int, rng: random.Random) -> None:
    """SIGSTOP: it wakes up with its old view of everything, and goes on."""
    process = stage.workers[number].process
    process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(rng.uniform(0.2, 2.5))
    finally:
        process.send_signal(signal.SIGCONT)


async def kill_store(stage: Stage, _number: int, rng: random.Random) -> None:
    """`kill -9`, and a new start on its file."""
    await asyncio.to_thread(stage.store.kill)
    await asyncio.sleep(rng.uniform(0, 1))
    await asyncio.to_thread(stage.store.start)


async def pause_store(stage: Stage, _number: int, rng: random.Random) -> None:
    """SIGSTOP: what was sent to it is done when it wakes up."""
    stage.store.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(rng.uniform(0.2, 2.5))
    finally:
        stage.store.send(signal.SIGCONT)


async def kill_connections(stage: Stage, _number: int, _rng: random.Random) -> None:
    """CLIENT KILL, all of them."""
    await asyncio.to_thread(_tell, stage, lambda client: client.client_kill_filter(_type="normal", skipme=True))


async def flush_scripts(stage: Stage, _number: int, _rng: random.Random) -> None:
    """SCRIPT FLUSH."""
    await asyncio.to_thread(_tell, stage, lambda client: client.script_flush())


async def delay(stage: Stage, number: int, rng: random.Random) -> None:
    """Everything between a worker and the store is late."""
    stage.proxies[number].delay = rng.uniform(0.05, 0.4)
    await asyncio.sleep(rng.uniform(0.5, 2))
    stage.proxies[number].heal()


async def withhold(stage: Stage, number: int, rng: random.Random) -> None:
    """Nothing passes between a worker and the store; all of it arrives when the way is free again."""
    stage.proxies[number].blackhole = True
    await asyncio.sleep(rng.uniform(0.5, 3))
    stage.proxies[number].heal()


async def lose_replies(stage: Stage, number: int, rng: random.Random) -> None:
    """Commits are done, and instead of the reply the connection is reset."""
    stage.proxies[number].lose_reply(to=b"EVALSHA", times=rng.randint(1, 5))
    await asyncio.sleep(rng.uniform(0.5, 1.5))
    stage.proxies[number].heal()


async def refuse(stage: Stage, number: int, rng: random.Random) -> None:
    """Every connection is reset, and no new one is taken."""
    stage.proxies[number].refuse = True
    stage.proxies[number].reset_all()
    await asyncio.sleep(rng.uniform(0.2, 2))
    stage.proxies[number].heal()


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault.

    Attributes:
        do: Does it, and heals it.
        target: What it hits: a fault is not done to what still recovers from another.
    """

    do: Do
    target: str  # "worker {}", "way {}" or "store"


FAULTS: dict[str, Fault] = {
    "worker killed": Fault(kill_worker, "worker {}"),
    "worker paused": Fault(pause_worker, "worker {}"),
    "store killed": Fault(kill_store, "store"),
    "store paused": Fault(pause_store, "store"),
    "connections killed": Fault(kill_connections, "store"),
    "scripts flushed": Fault(flush_scripts, "store"),
    "store slow": Fault(delay, "way {}"),
    "store unreachable": Fault(withhold, "way {}"),
    "replies lost": Fault(lose_replies, "way {}"),
    "connections refused": Fault(refuse, "way {}"),
}


async def trouble(stage: Stage, rng: random.Random, tally: Tally, every_s: float, over: asyncio.Event) -> None:
    """Do one fault after the other until it is over, and see all of them healed.

    Args:
        stage: What is broken.
        rng: Decides.
        tally: Counts.
        every_s: Seconds between two, on average; those of different targets may overlap.
        over: Set when it is enough.
    """
    busy: set[str] = set()
    waiting: list[str] = []

    async def one(name: str, number: int, target: str) -> None:
        try:
            await FAULTS[name].do(stage, number, rng)
        finally:
            busy.discard(target)

    async with asyncio.TaskGroup() as tasks:
        while not await _is_over(over, rng.uniform(0.5, 1.5) * every_s):
            waiting = waiting or rng.sample(list(FAULTS), len(FAULTS))  # each kind as often as the others
            for name in waiting:
                number = rng.randrange(WORKERS)
                target = FAULTS[name].target.format(number)
                if target not in busy:
                    waiting.remove(name)
                    busy.add(target)
                    tally.faults[name] += 1
                    tasks.create_task(one(name, number, target))
                    break


async def _is_over(over: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)
    return over.is_set()


def _tell(stage: Stage, command: Callable[[redis.Redis], object]) -> None:
    with contextlib.suppress(redis.RedisError), stage.store.client() as client:
        command(client)
