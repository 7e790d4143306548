"""`Stage`: a store, a proxy before it for each worker, and two workers: all of it real, and there to be broken."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.exactly_once.http import Http, NoAnswerError
from tests.faults.proxy import Proxy
from tests.graphs import fold, write_model
from tests.processes import ServiceProcess
from tests.servers import Server

MODEL = "fold"
WORKERS = 2
STORE = ("--appendonly", "yes", "--appendfsync", "always")
_WORKER = ("--request-timeout-s", "4", "--stream-ttl-s", "86400", "--drain-s", "1")
_LOOK_AGAIN_S = 0.05
_START_S = 60.0


@dataclass
class Stage:
    """What the campaign is played on.

    Attributes:
        store: The server of the Redis protocol; its append-only file is synced before each answer.
        proxies: One per worker.
        workers: Two replicas on the one store.
    """

    store: Server
    proxies: list[Proxy]
    workers: list[ServiceProcess]

    @property
    def ports(self) -> list[int]:
        """Where the workers listen."""
        return [worker.port for worker in self.workers]

    async def start_worker(self, number: int) -> None:
        """Start a worker, again where it ended because its store was away, until it can serve.

        Raises:
            RuntimeError: It cannot be started.
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
                await asyncio.sleep(_LOOK_AGAIN_S)
        finally:
            http.close()
        raise RuntimeError(f"a worker does not start; its log ends with:\n{worker.log.read_text()[-2000:]}")


@contextlib.asynccontextmanager
async def stage(
    folder: Path, *, flags: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> AsyncIterator[Stage]:
    """Set up everything; ends with the block, and leaves nothing running.

    Args:
        folder: For the model, the sockets and the logs; its path has to be short.
        flags: Of the workers, over their defaults here.
        env: Of the workers, besides this process's own.
    """
    write_model(folder / "models", MODEL, fold)
    store = Server(folder / "r", *STORE)
    with contextlib.ExitStack() as ways:
        proxies = [ways.enter_context(Proxy(store.socket)) for _ in range(WORKERS)]
        workers = [
            ServiceProcess(folder / "models", folder / f"w{n}", "--redis", way.url, *_WORKER, *flags, env=env)
            for n, way in enumerate(proxies)
        ]
        made = Stage(store, proxies, workers)
        try:
            await asyncio.to_thread(store.start)
            await asyncio.gather(*(made.start_worker(n) for n in range(WORKERS)))
            yield made
        finally:
            for worker in workers:
                with contextlib.suppress(AssertionError):  # it was never started
                    worker.kill()
            store.kill()
