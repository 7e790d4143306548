"""Faults of the workers, of the store and of the network between them. Every fault heals itself."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import redis

from campaign.system import WORKERS, System
from campaign.tally import Tally

Inject = Callable[[System, int, random.Random], Awaitable[None]]


async def kill_worker(system: System, number: int, rng: random.Random) -> None:
    """`kill -9`, and a restart after up to a second."""
    await asyncio.to_thread(system.workers[number].kill)
    await asyncio.sleep(rng.uniform(0, 1))
    await system.start_worker(number)


async def pause_worker(system: System, number: int, rng: random.Random) -> None:
    """SIGSTOP: the worker resumes with a stale cache."""
    process = system.workers[number].process
    process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(rng.uniform(0.2, 2.5))
    finally:
        process.send_signal(signal.SIGCONT)


async def kill_store(system: System, _number: int, rng: random.Random) -> None:
    """`kill -9`, and a restart from the append-only file."""
    await asyncio.to_thread(system.store.kill)
    await asyncio.sleep(rng.uniform(0, 1))
    await asyncio.to_thread(system.store.start)


async def pause_store(system: System, _number: int, rng: random.Random) -> None:
    """SIGSTOP: commands sent meanwhile are executed after it resumes."""
    system.store.send(signal.SIGSTOP)
    try:
        await asyncio.sleep(rng.uniform(0.2, 2.5))
    finally:
        system.store.send(signal.SIGCONT)


async def kill_connections(system: System, _number: int, _rng: random.Random) -> None:
    """CLIENT KILL of all connections."""
    await asyncio.to_thread(
        _run_on_store, system, lambda client: client.client_kill_filter(_type="normal", skipme=True)
    )


async def flush_scripts(system: System, _number: int, _rng: random.Random) -> None:
    """SCRIPT FLUSH."""
    await asyncio.to_thread(_run_on_store, system, lambda client: client.script_flush())


async def delay(system: System, number: int, rng: random.Random) -> None:
    """Delay everything between a worker and the store."""
    system.proxies[number].delay = rng.uniform(0.05, 0.4)
    await asyncio.sleep(rng.uniform(0.5, 2))
    system.proxies[number].heal()


async def hold_back(system: System, number: int, rng: random.Random) -> None:
    """Hold back everything between a worker and the store, and deliver it later."""
    system.proxies[number].blackhole = True
    await asyncio.sleep(rng.uniform(0.5, 3))
    system.proxies[number].heal()


async def lose_replies(system: System, number: int, rng: random.Random) -> None:
    """Let commits be applied, and reset the connection instead of returning the reply."""
    system.proxies[number].lose_reply(to=b"EVALSHA", times=rng.randint(1, 5))
    await asyncio.sleep(rng.uniform(0.5, 1.5))
    system.proxies[number].heal()


async def refuse(system: System, number: int, rng: random.Random) -> None:
    """Reset all connections and refuse new ones."""
    system.proxies[number].refuse = True
    system.proxies[number].reset_all()
    await asyncio.sleep(rng.uniform(0.2, 2))
    system.proxies[number].heal()


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault.

    Attributes:
        do: Injects the fault and heals it.
        target: The part that it affects; a part has at most one fault at a time.
    """

    inject: Inject
    target: str  # "worker {}", "network {}" or "store"


FAULTS: dict[str, Fault] = {
    "worker killed": Fault(kill_worker, "worker {}"),
    "worker paused": Fault(pause_worker, "worker {}"),
    "store killed": Fault(kill_store, "store"),
    "store paused": Fault(pause_store, "store"),
    "connections killed": Fault(kill_connections, "store"),
    "scripts flushed": Fault(flush_scripts, "store"),
    "store slow": Fault(delay, "network {}"),
    "store unreachable": Fault(hold_back, "network {}"),
    "replies lost": Fault(lose_replies, "network {}"),
    "connections refused": Fault(refuse, "network {}"),
}


async def inject_faults(system: System, rng: random.Random, tally: Tally, every_s: float, over: asyncio.Event) -> None:
    """Inject faults until the campaign is over, and wait until all are healed.

    Args:
        system: The system under test.
        rng: Source of the random choices.
        tally: Counts the faults.
        every_s: Seconds between two faults, on average; faults of different targets may overlap.
        over: Set when no further faults are to be injected.
    """
    busy: set[str] = set()
    waiting: list[str] = []

    async def one(name: str, number: int, target: str) -> None:
        try:
            await FAULTS[name].inject(system, number, rng)
        finally:
            busy.discard(target)

    async with asyncio.TaskGroup() as tasks:
        while not await is_over(over, rng.uniform(0.5, 1.5) * every_s):
            waiting = waiting or rng.sample(list(FAULTS), len(FAULTS))  # every kind equally often
            for name in waiting:
                number = rng.randrange(WORKERS)
                target = FAULTS[name].target.format(number)
                if target not in busy:
                    waiting.remove(name)
                    busy.add(target)
                    tally.faults[name] += 1
                    tasks.create_task(one(name, number, target))
                    break


async def is_over(over: asyncio.Event, seconds: float) -> bool:
    """Return whether an event is set, after at most some seconds."""
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)
    return over.is_set()


def _run_on_store(system: System, command: Callable[[redis.Redis], object]) -> None:
    with contextlib.suppress(redis.RedisError), system.store.client() as client:
        command(client)
