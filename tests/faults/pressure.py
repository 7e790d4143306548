"""Overload and slow clients for a service of its own."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.graphs import fold, slow, write_model
from tests.processes import ServiceProcess, service_process

STREAMS = 5_000
"""More streams than concurrent requests, so that each stream has at most one request in flight."""

TURNS = 2_000
"""Iterations of the slow model's loop: about a millisecond per step."""


@dataclass
class Tally:
    """Responses: latencies in seconds by status, and errors."""

    seconds: dict[int, list[float]] = field(default_factory=dict)
    badly_told: int = 0  # rejections without Retry-After, or without `"applied": "no"`
    lost: int = 0  # connections that ended without a response

    def count(self, status: int, took: float, text: bytes) -> None:
        self.seconds.setdefault(status, []).append(took)
        if status in (429, 503) and not (b"retry-after: " in text and b'"applied":"no"' in text):
            self.badly_told += 1


class Clients:
    """Connections that send one request at a time; a new one is opened if all are busy."""

    def __init__(self, port: int, most: int) -> None:
        self.port = port
        self._free: deque[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = deque()
        self._room = asyncio.Semaphore(most)

    async def send(self, request: bytes, tally: Tally, due: float) -> None:
        """Send a request with a due time, and count its response."""
        async with self._room:
            reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
            except (OSError, asyncio.IncompleteReadError):
                tally.lost += 1
                return
            tally.count(int(head[9:12]), time.monotonic() - due, head + body)
            if b"connection: close" in head:
                writer.close()
            else:
                self._free.append((reader, writer))

    def close(self) -> None:
        for _, writer in self._free:
            writer.close()


def step_request(model: str, n: int, x: int) -> bytes:
    body = b'{"inputs": [%d]}' % x
    line = f"POST /v1/models/{model}/streams/s{n % STREAMS}/step HTTP/1.1\r\n"
    return f"{line}host: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


async def closed_loop(clients: Clients, model: str, x: int, *, at_once: int, seconds: float) -> Tally:
    """Send each request after the response to the last one."""
    tally, until = Tally(), time.monotonic() + seconds

    async def one(n: int) -> None:
        while time.monotonic() < until:
            await clients.send(step_request(model, n, x), tally, time.monotonic())

    await asyncio.gather(*map(one, range(at_once)))
    return tally


async def open_loop(
    clients: Clients, model: str, x: int, *, rate: float, seconds: float, began: float | None = None
) -> Tally:
    """Send `rate` requests per second, independent of responses."""
    tally, began = Tally(), began or time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for n in range(int(rate * seconds)):
            due = began + n / rate
            if (wait := due - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            tasks.create_task(clients.send(step_request(model, n, x), tally, due))
    return tally


async def overload(one: ServiceProcess, seconds: float, *, calm_s: float = 8) -> dict[str, float]:
    """Find the capacity, offer three times as much, then half of it; `calm_s` are the seconds before and after."""
    clients = Clients(one.port, most=8000)
    await closed_loop(clients, "slow", TURNS, at_once=16, seconds=calm_s / 4)
    peak_tally = await closed_loop(clients, "slow", TURNS, at_once=32, seconds=calm_s)
    peak = len(peak_tally.seconds[200]) / calm_s
    began = time.monotonic()
    ended = began + seconds
    over, after = await asyncio.gather(
        open_loop(clients, "slow", TURNS, rate=3 * peak, seconds=seconds, began=began),
        open_loop(clients, "slow", TURNS, rate=peak / 2, seconds=calm_s, began=ended),
    )
    clients.close()
    return {
        "goodput_per_s": round(len(over.seconds.get(200, [])) / seconds),
        "refused": sum(len(values) for status, values in over.seconds.items() if status != 200),
        "slowest_s": max(map(max, over.seconds.values())),
        "badly_told": over.badly_told + after.badly_told,
        "lost": over.lost + after.lost,
    }


KINDS: tuple[tuple[str, bytes, bytes], ...] = (
    ("silent", b"", b""),
    ("half a head", b"POST /v1/models/fold/streams/a/step HTTP/1.1\r\nhost: x\r\n", b""),
    ("a dripped head", b"POST /v1/models/fold/streams/a/step HTTP/1.1\r\n", b"x: y\r\n"),
    ("no body", b"POST /v1/models/fold/streams/a/step HTTP/1.1\r\nhost: x\r\ncontent-length: 16\r\n\r\n", b""),
)
"""Name of each kind of slow client, the bytes that it sends first, and those that it then sends every second."""


async def held(port: int, kind: tuple[str, bytes, bytes]) -> float:
    """Open a slow client's connection; return the seconds until it is closed."""
    _, first, then = kind
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    writer.write(first)

    async def drip() -> None:
        while then:
            await asyncio.sleep(1)
            writer.write(then)

    dripping = asyncio.create_task(drip())
    try:
        while await reader.read(65536):
            pass
    except ConnectionError:
        pass
    dripping.cancel()
    writer.close()
    return time.monotonic() - began


@contextlib.contextmanager
def under_pressure(*flags: str) -> Iterator[ServiceProcess]:
    """A service with a fast and a slow model, and a batch size of 1."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        for build in (fold, slow):
            write_model(folder / "models", build.__name__, build)
        with service_process(folder / "models", folder / "one", "--max-batch-size", "1", *flags) as one:
            yield one
