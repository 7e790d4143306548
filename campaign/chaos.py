"""`run`: steps many streams on two workers and one store under faults, and checks every answer."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from campaign.checker import MODEL
from campaign.client import RandomClient
from campaign.clients.calls import NodeCalls, PythonCalls
from campaign.clients.streams import ClientStreamDriver, ThroughClient, disturb
from campaign.faults import inject_faults
from campaign.releases.operator import ReleaseOperator
from campaign.streams import StreamDriver
from campaign.system import System, running_system
from campaign.tally import Tally
from campaign.transports import Transports
from stepwell_client import AsyncClient
from tests.faults.proxy import Proxy

Client = Literal["own", "typescript", "python"]
_PROGRESS_EVERY_S = 0.2
_DISTURB_EVERY_S = 0.7


@dataclass(frozen=True, slots=True)
class ChaosPlan:
    """Parameters of a chaos campaign.

    Attributes:
        seconds: How long faults are injected.
        seed: Seed of all random choices; the timing is not reproducible.
        streams: Concurrent streams; the streams of one bulk request count as one.
        fault_every_s: Seconds between two faults, on average.
        release_every_s: Seconds between two changes of the release, on average; 0: there is no release.
        stop_when_broken: Whether to stop at the first violation.
        transport: What steps the streams: HTTP and WebSockets, or gRPC.
        client: What makes the requests: the campaign's own client, the TypeScript client or the Python client.
    """

    seconds: float
    seed: int
    streams: int = 32
    fault_every_s: float = 2.0
    release_every_s: float = 0.0
    stop_when_broken: bool = False
    transport: Literal["http", "grpc"] = "http"
    client: Client = "own"


async def run(
    plan: ChaosPlan,
    folder: Path,
    tally: Tally,
    *,
    env: Mapping[str, str] | None = None,
    on_progress: Callable[[float], None] = lambda _: None,
) -> None:
    """Run a chaos campaign; the results are in `tally`, also after a cancellation.

    Args:
        plan: The parameters.
        folder: For the model, the sockets and the logs; its path must be short enough for a unix socket.
        tally: Receives the results.
        env: Environment variables of the workers, in addition to this process's own.
        on_progress: Called regularly with the elapsed seconds.
    """
    is_grpc = plan.transport == "grpc"
    async with (
        running_system(folder, releases=plan.release_every_s > 0, grpc=is_grpc, env=env) as system,
        _running_driver(plan, system, folder, tally) as driver,
    ):
        operator = ReleaseOperator(driver, random.Random(plan.seed), tally) if plan.release_every_s else None
        over = asyncio.Event()
        if operator is not None:
            await operator.start()
        async with asyncio.TaskGroup() as tasks:
            patterns = [tasks.create_task(driver.run_patterns()) for _ in range(plan.streams)]
            tasks.create_task(inject_faults(system, random.Random(plan.seed), tally, plan.fault_every_s, over))
            if operator is not None:
                tasks.create_task(operator.run(plan.release_every_s, over, plan.seconds / 2))
            await _wait(plan, tally, on_progress)
            over.set()
            driver.stop()
            if is_broken := plan.stop_when_broken and tally.broken.is_set():
                for pattern in patterns:  # on a broken build some repeat a request until its deadline
                    pattern.cancel()
        if is_broken:
            return
        await driver.verify_final_states()
        if operator is not None:
            await operator.check_settled_streams()


@contextlib.asynccontextmanager
async def _running_driver(plan: ChaosPlan, system: System, folder: Path, tally: Tally) -> AsyncIterator[StreamDriver]:
    """Create what steps the streams, and close it when the block ends."""
    rng, transports, prefix = random.Random(plan.seed), Transports(system.ports, MODEL), f"s{plan.seed}"
    driver: StreamDriver
    async with contextlib.AsyncExitStack() as stack:
        if plan.transport == "grpc":
            from campaign.over_grpc.streams import GrpcRandomClient, GrpcStreamDriver  # needs grpcio, an extra

            driver = GrpcStreamDriver(GrpcRandomClient(transports, system.grpc_ports, rng, tally), rng, prefix)
        elif plan.client == "own":
            driver = StreamDriver(RandomClient(transports, rng, tally), rng, prefix)
        else:
            proxy = stack.enter_context(Proxy([("127.0.0.1", port) for port in system.ports]))
            url, is_node = f"http://127.0.0.1:{proxy.port}", plan.client == "typescript"
            calls = NodeCalls(url, folder / "node.log") if is_node else PythonCalls(AsyncClient(url))
            through = ThroughClient(transports, calls, rng, tally)
            driver = ClientStreamDriver(through, rng, prefix, requests=is_node)
            disturbing = asyncio.create_task(
                disturb(proxy, random.Random(plan.seed), tally, _DISTURB_EVERY_S, tally.answers.total)
            )
            stack.callback(disturbing.cancel)
        stack.push_async_callback(driver.client.close)
        yield driver


async def _wait(plan: ChaosPlan, tally: Tally, on_progress: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    started_at = loop.time()
    while (seconds := loop.time() - started_at) < plan.seconds and not (
        plan.stop_when_broken and tally.broken.is_set()
    ):
        on_progress(seconds)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(tally.broken.wait(), _PROGRESS_EVERY_S)
            await asyncio.sleep(0 if plan.stop_when_broken else _PROGRESS_EVERY_S)
