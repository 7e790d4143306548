"""`System`: the system under test: a store, two workers, and for each worker a proxy in front of the store."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from campaign.checker import MODEL
from campaign.releases.log import FACTORS
from tests.exactly_once.http import Http, NoAnswerError
from tests.faults.proxy import Proxy
from tests.graphs import fold, write_model
from tests.processes import ServiceProcess, free_port
from tests.servers import Server

WORKERS = 2
STORE = ("--appendonly", "yes", "--appendfsync", "always")
_WORKER = (
    *("--request-timeout-s", "4", "--stream-ttl-s", "86400", "--drain-s", "1"),
    *("--run-timeout-s", "60"),  # a run of a worker that is paused takes long; its stream would leave the release
)
_POLL_S = 0.05
_START_S = 240.0  # a machine that runs other tests, too


@dataclass
class System:
    """The system under test.

    Attributes:
        store: A server of the Redis protocol that syncs its append-only file before each reply.
        proxies: One per worker, between the worker and the store.
        workers: Two replicas on the store.
        grpc_ports: Ports of the workers for gRPC; empty: they do not serve it.
    """

    store: Server
    proxies: list[Proxy]
    workers: list[ServiceProcess]
    grpc_ports: list[int]

    @property
    def ports(self) -> list[int]:
        """Ports of the workers."""
        return [worker.port for worker in self.workers]

    async def start_worker(self, number: int) -> None:
        """Start a worker until it is ready; restart it if it exits because the store is unreachable.

        Raises:
            RuntimeError: The worker is not ready in time.
        """
        worker, http = self.workers[number], Http()
        worker.launch()
        deadline = asyncio.get_running_loop().time() + _START_S
        try:
            while asyncio.get_running_loop().time() < deadline:
                if worker.process.poll() is not None:
                    worker.launch()
                with contextlib.suppress(NoAnswerError):
                    status, _ = await http.request("GET", worker.port, "/readyz", timeout=2)
                    if status == 200:
                        return
                await asyncio.sleep(_POLL_S)
        finally:
            http.close()
        raise RuntimeError(f"a worker does not start; its log ends with:\n{worker.log.read_text()[-2000:]}")


@contextlib.asynccontextmanager
async def running_system(
    folder: Path,
    *,
    releases: bool = False,
    grpc: bool = False,
    flags: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> AsyncIterator[System]:
    """Run the system under test until the block ends.

    Args:
        folder: For the model, the sockets and the logs; its path must be short enough for a unix socket.
        releases: Whether the model has a second version.
        grpc: Whether the workers serve gRPC.
        flags: Flags of the workers, after the default ones.
        env: Environment variables of the workers, in addition to this process's own.
    """
    for version in FACTORS if releases else [1]:
        write_model(folder / "models", MODEL, partial(fold, FACTORS[version]), version=version)
    store = Server(folder / "r", *STORE)
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(store.socket)) for _ in range(WORKERS)]
        grpc_ports = [free_port() for _ in proxies] if grpc else []
        workers = []
        for n, proxy in enumerate(proxies):
            own = ("--redis", proxy.url, *(("--grpc-port", str(grpc_ports[n])) if grpc else ()))
            workers.append(ServiceProcess(folder / "models", folder / f"w{n}", *own, *_WORKER, *flags, env=env))
        system = System(store, proxies, workers, grpc_ports)
        try:
            await asyncio.to_thread(store.start)
            await asyncio.gather(*(system.start_worker(n) for n in range(WORKERS)))
            yield system
        finally:
            for worker in workers:
                with contextlib.suppress(AssertionError):  # it was never started
                    worker.kill()
            store.kill()
