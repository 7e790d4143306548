"""Long faults, as long as one likes: `python -m tests.faults.scenarios restarts --times 20`, `kills`, `reshard` ...

Each prints what was done and found as JSON, and ends with 1 when anything was wrong. The tests run short ones.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from tests.engine.harness import worker
from tests.faults.balancer import Balancer
from tests.faults.feeder import Feeder, feeders, judged, reached, run, run_until, told
from tests.faults.proxy import Proxy
from tests.faults.steppers import Stepper, stepping
from tests.graphs import fold, write_model, write_models
from tests.processes import service_process
from tests.servers import AOF, server
from tests.store.clusters import SLOTS, cluster

ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
Found = dict[str, Any]


async def kills(folder: Path, *, times: int, streams: int = 20, between: int = 500) -> Found:
    """Kill a store that flushes before it answers, again and again, while two workers step streams.

    Args:
        folder: Where its file and the model lie.
        times: Kills.
        streams: How many; every fourth with idempotency keys.
        between: Confirmed timesteps between two kills.
    """
    built = write_models(folder / "models", fold=fold)
    with server(folder / "r", *ALWAYS) as store:
        async with worker(store.url, built) as one, worker(store.url, built) as two:
            fed, done = feeders([one, two], streams, keyed_every=4), asyncio.Event()
            running = asyncio.create_task(run_until(fed, done))
            for _ in range(times):
                await reached(fed, told(fed) + between)
                await asyncio.to_thread(store.kill)
                await asyncio.to_thread(store.start)
            done.set()
            await running
    return {"kills": times, **_summary(fed)}


async def reshard(folder: Path, *, share: float, streams: int = 40) -> Found:
    """Move a share of a Cluster's slots, key by key, while two workers step streams, half of them keyed.

    Args:
        folder: Where the model lies.
        share: Of all slots, which are moved from the first primary on to the next ones.
        streams: How many.
    """
    built = write_models(folder / "models", fold=fold)
    with cluster() as three:
        async with worker(three.url, built) as one, worker(three.url, built) as two:
            fed, done = feeders([one, two], streams, keyed_every=2), asyncio.Event()
            await run(fed, 3)
            running = asyncio.create_task(run_until(fed, done))
            began = time.monotonic()
            moved = list(range(0, SLOTS, max(round(1 / share), 1)))
            await asyncio.to_thread(three.move_many, moved)
            took = time.monotonic() - began
            done.set()
            await running
            listed = await _all_names(one)
    summary = _summary(fed)
    if listed != {stream.stream for stream in fed}:
        summary["wrong"].append(f"listed {sorted(listed)}")
    return {"slots moved": len(moved), "seconds": round(took, 1), **summary}


async def restarts(folder: Path, *, times: int, clients: int = 20, workers: int = 1) -> Found:
    """Restart two replicas in turn, by SIGTERM, under clients that never send anything again.

    Half of the clients keep their connection as long as they may, half open one for each timestep. Half of either are
    behind a load balancer that looks at readiness, half behind one that goes on until a connection is refused.

    Args:
        folder: Where the replicas' files and the model lie.
        times: Restarts.
        clients: How many.
        workers: Of each replica.
    """
    write_model(folder / "models", "fold", fold)
    with server(folder / "r", *AOF) as store, contextlib.ExitStack() as stack:
        flags = ("--redis", store.url, "--workers", str(workers))
        one, two = (
            stack.enter_context(service_process(folder / "models", folder / name, *flags)) for name in ("one", "two")
        )
        looking = stack.enter_context(Balancer([one.port, two.port]))
        blind = stack.enter_context(Balancer([one.port, two.port], is_blind=True))
        ports = (looking.port, looking.port, blind.port, blind.port)
        steppers = [Stepper(ports[n % 4], f"s{n}", keeps_connection=n % 2 == 0) for n in range(clients)]
        async with stepping(steppers):
            for n in range(times):
                replica = (one, two)[n % 2]
                code = await asyncio.to_thread(replica.stop)
                assert code == 0
                await asyncio.to_thread(replica.start)
    return {
        "restarts": times,
        "timesteps confirmed": sum(len(answers) for stepper in steppers for answers in stepper.answers),
        "connections reset": looking.resets + blind.resets,
        "requests failed": sum(len(stepper.failures) for stepper in steppers),
        "wrong": [what for stepper in steppers for what in stepper.wrong()][:20],
    }


def recovery(folder: Path) -> Found:
    """Seconds from a fault's begin or end to the first good answer, over HTTP, with two replicas of the service.

    A replica is killed, and clients (time-out 0.5 s) turn to the other; one replica's way to the store is cut, and
    healed.
    """
    write_model(folder / "models", "fold", fold)
    with (
        server(folder / "r", *AOF) as store,
        Proxy(store.socket) as way,
        service_process(folder / "models", folder / "one", "--redis", store.url) as one,
        service_process(folder / "models", folder / "two", "--redis", way.url) as two,
    ):
        seq = 0

        def step(*ports: int) -> None:
            nonlocal seq
            seq = _insist(ports, seq + 1)

        for _ in range(20):
            step(one.port, two.port)
        one.kill()
        killed = _took(lambda: step(one.port, two.port))
        way.blackhole = True
        noticed = _took(lambda: _until_status(two.port, "/readyz", 503))
        alive = _status(two.port, "/healthz")
        began = time.monotonic()
        body = {"inputs": [seq + 1], "seq": seq + 1}
        refused = httpx2.post(_step_url(two.port), json=body, timeout=15, trust_env=False)
        refused_in = time.monotonic() - began
        way.heal()
        healed = _took(lambda: step(two.port))
        ready = _took(lambda: _until_status(two.port, "/readyz", 200))
    wrong = [
        text
        for text, is_so in {
            f"killed replica: first good answer after {killed:.2f} s": killed > 1,
            f"cut way: not ready after {noticed:.2f} s": noticed > 3,
            f"cut way: alive is {alive}": alive != 200,
            f"cut way: a step got {refused.status_code} after {refused_in:.1f} s": refused.status_code != 503,
            f"healed way: first good answer after {healed:.2f} s": healed > 2,
        }.items()
        if is_so
    ]
    return {
        "replica killed: first good answer, s": round(killed, 3),
        "way cut: not ready, s": round(noticed, 3),
        "way cut: a step is refused, s": round(refused_in, 3),
        "way cut: refused with": refused.json()["code"],
        "way healed: first good answer, s": round(healed, 3),
        "way healed: ready, s": round(healed + ready, 3),
        "wrong": wrong,
    }


# -------------------------------------------------------------------- helpers


def _summary(fed: list[Feeder]) -> Found:
    return {
        "timesteps confirmed": told(fed),
        "asked again": sum(one.asked_again for one in fed),
        "acknowledged and lost": sum(one.sent_again for one in fed),
        "wrong": judged(fed),
    }


async def _all_names(engine: Any) -> set[str]:
    names: set[str] = set()
    cursor = None
    while True:
        page = await engine.streams.list("default", "fold", cursor=cursor)
        names |= {name for name, _ in page.streams}
        if page.cursor is None:
            return names
        cursor = page.cursor


def _step_url(port: int) -> str:
    return f"http://127.0.0.1:{port}/v1/models/fold/streams/a/step"


def _insist(ports: tuple[int, ...], seq: int) -> int:
    """Send one timestep to the services in turn until one answers, each within half a second; returns its number."""
    turn = 0
    while True:
        port = ports[turn % len(ports)]
        turn += 1
        try:
            answer = httpx2.post(_step_url(port), json={"inputs": [seq], "seq": seq}, timeout=0.5, trust_env=False)
        except httpx2.TransportError:
            continue
        if answer.status_code == 200:
            return seq


def _status(port: int, path: str) -> int:
    return httpx2.get(f"http://127.0.0.1:{port}{path}", timeout=5, trust_env=False).status_code


def _until_status(port: int, path: str, status: int) -> None:
    while _status(port, path) != status:
        pass


def _took(act: Callable[[], object]) -> float:
    began = time.monotonic()
    act()
    return time.monotonic() - began


SCENARIOS: dict[str, Callable[[Path, argparse.Namespace], Found]] = {
    "kills": lambda folder, given: asyncio.run(kills(folder, times=given.times)),
    "reshard": lambda folder, given: asyncio.run(reshard(folder, share=given.share)),
    "restarts": lambda folder, given: asyncio.run(restarts(folder, times=given.times, workers=given.workers)),
    "recovery": lambda folder, _: recovery(folder),
}


def main() -> int:
    """Run one scenario and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--times", type=int, default=20, help="kills, restarts")
    parser.add_argument("--workers", type=int, default=1, help="of each replica: restarts")
    parser.add_argument("--share", type=float, default=0.3, help="of the slots that are moved")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        found = SCENARIOS[given.scenario](Path(folder), given)
    print(json.dumps(found, indent=2))  # noqa: T201 - a command's output
    return 1 if found["wrong"] or found.get("acknowledged and lost") or found.get("connections reset") else 0


if __name__ == "__main__":
    sys.exit(main())
