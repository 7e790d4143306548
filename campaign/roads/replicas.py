"""`Replicas`: a store, several replicas on it, and a proxy that leads each connection to one that listens."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from tests.graphs import fold, write_model
from tests.processes import ServiceProcess
from tests.servers import AOF, Server

MODEL = "fold"
_PIECE = 1 << 18


class Replicas:
    """The service under test.

    Attributes:
        services: The replicas.
        model: The step graph's file.
        port: The port of the proxy.
        kills: How often a replica was killed.
    """

    def __init__(self, folder: Path, n: int, flags: Sequence[str]) -> None:
        """Use `replicas`."""
        self.model = write_model(folder / "models", MODEL, fold)
        self.store = Server(folder / "store", *AOF)
        self.services = [
            ServiceProcess(folder / "models", folder / f"w{i}", "--redis", self.store.url, "--drain-s", "0", *flags)
            for i in range(n)
        ]
        self.port = 0
        self.kills = 0
        self._turns = itertools.cycle(range(n))

    @property
    def url(self) -> str:
        """The address of the proxy."""
        return f"http://127.0.0.1:{self.port}"

    async def kill_one(self, *, away_s: float = 0.0) -> None:
        """Kill one replica after the other with SIGKILL, and start it again."""
        await self.kill([self.services[next(self._turns)]], away_s=away_s)

    async def kill(self, services: Sequence[ServiceProcess], *, away_s: float = 0.0) -> None:
        """Kill replicas at once, and start them again after some seconds."""
        for service in services:
            service.kill()
        self.kills += len(services)
        await asyncio.sleep(away_s)
        for service in services:
            service.launch()
        await asyncio.gather(*(asyncio.to_thread(service.wait_ready) for service in services))

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Lead a connection to a replica that listens; without one it is closed."""
        start = next(self._turns)
        for service in self.services[start:] + self.services[:start]:
            try:
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", service.port)
            except OSError:
                continue
            await asyncio.gather(_copy(reader, far_writer), _copy(far_reader, writer))
            return
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def replicas(folder: Path, n: int = 2, flags: Sequence[str] = ()) -> AsyncIterator[Replicas]:
    """Run replicas behind a proxy until the block ends.

    Args:
        folder: For the model, the store and the logs; its path must be short enough for a unix socket.
        n: The number of replicas.
        flags: Flags of the replicas.
    """
    one = Replicas(folder, n, flags)
    try:
        await asyncio.to_thread(one.store.start)
        for service in one.services:
            service.launch()
        await asyncio.gather(*(asyncio.to_thread(service.wait_ready) for service in one.services))
        proxy = await asyncio.start_server(one.relay, "127.0.0.1", 0)
        one.port = proxy.sockets[0].getsockname()[1]
        try:
            yield one
        finally:
            proxy.close()
    finally:
        for service in one.services:
            with contextlib.suppress(AssertionError):  # it was never started
                service.kill()
        one.store.kill()
