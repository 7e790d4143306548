"""`run`: all conformance cases, again and again, by the clients of both languages against a service under faults."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
import redis

from campaign.client import DEADLINE_S
from campaign.clients.streams import disturb
from campaign.faults import inject_faults, is_over
from campaign.system import running_system
from campaign.tally import Tally
from stepwell_client import AsyncClient
from stepwell_client.memory import Engine
from stepwell_client.protocol.requests import ClientRequest
from tests.all_clients.kit import FILE, KIT, Case
from tests.all_clients.model import doubling
from tests.all_clients.python_kit import PythonKit
from tests.faults.proxy import Proxy
from tests.graphs import write_model
from tests.npm import NEEDS_NODE, node_command

PROGRAM: Final = FILE.parent / "typescript" / "conformance.mjs"
CLIENTS: Final = (
    "TypeScript, HTTP",
    "TypeScript, feed",
    "Python, HTTP",
    "Python, feed",
    "Python, in process",
    "Python, feed in process",
)
_AT_ONCE: Final = 4  # cases of one client
_DISTURB_EVERY_S: Final = 1.0
_IN_PROCESS: Final = {"model_probe_s": 0, "durability": "fsync"}


@dataclass
class KitResult:
    """What became of the cases.

    Attributes:
        passed: Number of cases that passed, by client.
        violations: Cases that failed: which client, which case, and how its answer differs.
        skipped: Clients that could not be run, and why.
        tally: Counts of the faults.
    """

    passed: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)

    def record(self, client: str, section: str, case: str, error: str) -> None:
        """Record the end of a case."""
        if error:
            self.violations.append(f"{client}: {section}: {case}: {error}")
        else:
            self.passed[client] += 1


async def run(folder: Path, result: KitResult, *, seconds: float, seed: int, fault_every_s: float) -> None:
    """Run the cases by all clients at once; what is found is in `result`, also after a cancellation.

    Args:
        folder: For models, sockets and logs; its path must be short enough for a unix socket.
        result: Receives what is found.
        seconds: How long cases are begun.
        seed: Seed of the faults; the timing is not reproducible.
        fault_every_s: Seconds between two faults, on average.
    """
    write_model(folder / "models", KIT["model"], doubling)
    over, rng = asyncio.Event(), random.Random(seed)
    node = await asyncio.to_thread(node_command)
    async with (
        running_system(folder) as system,
        AsyncClient(":memory:", models=folder / "models", settings=_IN_PROCESS) as local,
        contextlib.AsyncExitStack() as stack,
    ):
        assert local._engine is not None
        proxy = stack.enter_context(Proxy([("127.0.0.1", port) for port in system.ports]))
        url = f"http://127.0.0.1:{proxy.port}"
        remote = await stack.enter_async_context(AsyncClient(url))
        disturbing = asyncio.create_task(disturb(proxy, rng, result.tally, _DISTURB_EVERY_S, result.passed.total))
        stack.callback(disturbing.cancel)
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(inject_faults(system, random.Random(seed), result.tally, fault_every_s, over))
            tasks.create_task(_disturb_store(local._engine, random.Random(seed), result.tally, fault_every_s, over))
            runs: list[Coroutine[Any, Any, None]] = [
                _run_python(result, name, PatientKit(client, by_feed="feed" in name), end)
                for name, client in zip(CLIENTS[2:], (remote, remote, local, local), strict=True)
            ]
            for name in CLIENTS[:2]:
                if node is None:
                    result.skipped[name] = NEEDS_NODE
                else:
                    flags = [*(["--feed"] if "feed" in name else []), "--under-faults", str(seconds)]
                    runs.append(_run_node(result, name, [*node, str(PROGRAM), url, str(FILE), *flags]))
            await asyncio.gather(*runs)
            over.set()


class PatientKit(PythonKit):
    """Sends each request until its outcome is known, as programs without a client have to."""

    async def send(self, request: ClientRequest) -> Any:
        """Send a request until its outcome is known; return its document, or the fields of its error."""
        loop, in_doubt = asyncio.get_running_loop(), False
        end = loop.time() + DEADLINE_S
        while True:
            found = await super().send(request)
            rows = (found.get("errors") or {}).values() if isinstance(found, dict) else ()
            if loop.time() > end or not any(one.get("retry") == "same" for one in (found, *rows)):
                if in_doubt and found.get("applied") == "no":
                    found["applied"] = "unknown"
                return found
            in_doubt = in_doubt or found.get("applied", "no") != "no"
            await asyncio.sleep(random.uniform(0.01, 0.1))


async def _disturb_store(engine: Engine, rng: random.Random, tally: Tally, every_s: float, over: asyncio.Event) -> None:
    """Inject faults of the store of an engine in this process, until the run is over."""
    pid_file = Path(engine.url.removeprefix("unix://")).parent / "data" / "store.pid"
    kinds = ("store killed", "store paused", "connections killed", "scripts flushed")
    while not await is_over(over, rng.uniform(0.5, 1.5) * every_s):
        kind = rng.choice(kinds)
        tally.faults[f"{kind}, in process"] += 1
        with contextlib.suppress(OSError, ValueError, redis.RedisError):  # it is being restarted
            if kind.startswith("store"):
                pid = int(pid_file.read_text())
                os.kill(pid, signal.SIGKILL if kind == "store killed" else signal.SIGSTOP)
                if kind == "store paused":
                    await asyncio.sleep(rng.uniform(0.2, 2))
                    os.kill(pid, signal.SIGCONT)
            else:
                with redis.Redis.from_url(engine.store_url) as store:
                    flush = store.script_flush
                    kill = functools.partial(store.client_kill_filter, _type="normal", skipme=True)
                    await asyncio.to_thread(flush if kind == "scripts flushed" else kill)


async def _run_python(result: KitResult, name: str, kit: PythonKit, end: float) -> None:
    loop = asyncio.get_running_loop()
    all_cases = [(section, case) for section in ("http", "client") for case in KIT[section]]
    cases = itertools.cycle([one for one in all_cases if not one[1].get("not_under_faults")])

    async def some() -> None:
        while loop.time() < end:
            section, case = next(cases)
            one = Case(case, under_faults=True)
            try:
                await (kit.run_requests(one) if section == "http" else kit.run_calls(one))
            except AssertionError as exc:
                result.record(name, section, case["name"], str(exc))
            else:
                result.record(name, section, case["name"], "")

    await asyncio.gather(*(some() for _ in range(_AT_ONCE)))


async def _run_node(result: KitResult, name: str, command: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async for line in process.stdout:
            found = msgspec.json.decode(line)
            result.record(name, found["section"], found["name"], found["error"])
        errors = await process.stderr.read()
        if await process.wait() not in (0, 1) or errors.strip():
            result.violations.append(f"{name}: it ended with {process.returncode}: {errors.decode()[-1000:]}")
    except asyncio.CancelledError:
        process.kill()
        raise
