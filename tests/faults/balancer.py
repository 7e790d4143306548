"""`Balancer`: a TCP load balancer that assigns each new connection to a ready service; runs in its own thread."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from types import TracebackType

_CHECK_S = 0.2  # interval of readiness checks
_PIECE = 65536


class Balancer:
    """A layer 4 load balancer: it checks `/readyz`, and never sends data twice.

    Attributes:
        resets: Connections to a service that were open, and were reset.
        assigned: Number of connections that each port was given.
    """

    def __init__(self, ports: Sequence[int], *, is_blind: bool = False) -> None:
        """Create the balancer; entering the context opens the port.

        Args:
            ports: Where the services are, on 127.0.0.1.
            is_blind: It does not check readiness, and learns from a refused connection that a service is away.
        """
        self.port = 0
        self.resets = 0
        self.assigned: Counter[int] = Counter()
        self._ports = list(ports)
        self._ready = list(ports)
        self._is_blind = is_blind
        self._turn = itertools.count()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="balancer", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def route_to(self, ports: Sequence[int]) -> None:
        """Assign new connections to these services alone, as if they were the endpoints of a Kubernetes Service."""
        self._ready = self._ports = list(ports)

    def __enter__(self) -> Balancer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        if not self._is_blind:
            self._checker = asyncio.create_task(self._check_readiness())

    async def _close(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _check_readiness(self) -> None:
        while True:
            results = await asyncio.gather(*map(self._is_ready, self._ports))
            self._ready = [port for port, ready in zip(self._ports, results, strict=True) if ready]
            await asyncio.sleep(_CHECK_S)

    async def _is_ready(self, port: int) -> bool:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                line = await reader.readline()
                writer.close()
                return b" 200 " in line
        return False

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ready = self._ready or self._ports
        first = next(self._turn) % len(ready)
        for port in (*ready[first:], *ready[:first]):
            try:
                theirs, ours = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                continue
            self.assigned[port] += 1
            await asyncio.gather(_pipe(reader, ours), self._pipe_back(theirs, writer))
            return
        writer.transport.abort()

    async def _pipe_back(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            await _pipe(source, sink)
        finally:
            self.resets += isinstance(source.exception(), ConnectionResetError)


async def _pipe(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(_PIECE):
            sink.write(data)
            await sink.drain()
    sink.close()
