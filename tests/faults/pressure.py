"""Measures a service under overload and with slow clients.

    python -m tests.faults.pressure overload [--seconds 60]      three times the capacity, then the recovery
    python -m tests.faults.pressure slow [--sockets 200]         clients that never complete their requests

Prints JSON and exits with 1 if a goal is missed. Starts its own service.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
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
    by_second: list[tuple[float, int, float]] = field(default_factory=list)  # when, status, seconds
    badly_told: int = 0  # rejections without Retry-After, or without `"applied": "no"`
    lost: int = 0  # connections that ended without a response

    def count(self, status: int, took: float, text: bytes) -> None:
        self.seconds.setdefault(status, []).append(took)
        self.by_second.append((time.monotonic(), status, took))
        if status in (429, 503) and not (b"retry-after: " in text and b'"applied":"no"' in text):
            self.badly_told += 1

    def ms(self, status: int, share: float) -> float:
        values = sorted(self.seconds.get(status, []))
        return round(values[min(int(len(values) * share), len(values) - 1)] * 1000, 1) if values else 0.0


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
    # The service has recovered after the last rejected or late request.
    odd = [when for when, status, took in after.by_second if status != 200 or took > 0.25]
    return {
        "peak_per_s": round(peak),
        "offered_per_s": round(3 * peak),
        "goodput_per_s": round(len(over.seconds.get(200, [])) / seconds),
        "goodput_share": round(len(over.seconds.get(200, [])) / seconds / peak, 3),
        "refused": sum(len(values) for status, values in over.seconds.items() if status != 200),
        "refusals_p50_ms": over.ms(503, 0.5),
        "refusals_p99_ms": over.ms(503, 0.99),
        "accepted_p99_ms": over.ms(200, 0.99),
        "slowest_ms": max(over.ms(status, 1) for status in over.seconds),
        "badly_told": over.badly_told + after.badly_told,
        "lost": over.lost + after.lost,
        "normal_after_s": round(max(odd, default=ended) - ended, 2),
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


async def slow_clients(one: ServiceProcess, sockets: int) -> dict[str, float]:
    """Measure normal requests alone, then together with slow clients."""
    clients = Clients(one.port, most=100)
    await closed_loop(clients, "fold", 1, at_once=1, seconds=2)
    alone = await open_loop(clients, "fold", 1, rate=300, seconds=8)
    holding = [asyncio.create_task(held(one.port, KINDS[n % len(KINDS)])) for n in range(sockets)]
    beside = await open_loop(clients, "fold", 1, rate=300, seconds=8)
    async with asyncio.timeout(60):
        ended = await asyncio.gather(*holding)
    clients.close()
    return {
        "sockets": sockets,
        "gone_after_s": round(max(ended), 2),
        "gone_after_median_s": round(statistics.median(ended), 2),
        "p99_alone_ms": alone.ms(200, 0.99),
        "p99_beside_ms": beside.ms(200, 0.99),
        "refused": sum(len(values) for status, values in beside.seconds.items() if status != 200),
    }


def missed(what: str, found: dict[str, float]) -> list[str]:
    """Return descriptions of the missed goals."""
    if what == "overload":
        goals = {
            "goodput is at least 80 % of the peak": found["goodput_share"] >= 0.8,
            "half of the rejections arrive within 50 ms": found["refusals_p50_ms"] < 50,
            "every rejection has Retry-After and `applied`: no": not found["badly_told"],
            "every request gets a response": not found["lost"],
            "the service has recovered after five seconds": found["normal_after_s"] <= 5,
        }
    else:
        goals = {
            "slow clients are disconnected within 15 s": found["gone_after_s"] <= 15,
            "the p99 of normal requests less than doubles": found["p99_beside_ms"] < 2 * found["p99_alone_ms"],
            "no normal request is rejected": not found["refused"],
        }
    return [goal for goal, met in goals.items() if not met]


@contextlib.contextmanager
def under_pressure(*flags: str) -> Iterator[ServiceProcess]:
    """A service with a fast and a slow model, and a batch size of 1."""
    with tempfile.TemporaryDirectory(prefix="sw") as name:
        folder = Path(name)
        for build in (fold, slow):
            write_model(folder / "models", build.__name__, build)
        with service_process(folder / "models", folder / "one", "--max-batch-size", "1", *flags) as one:
            yield one


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a service under overload or with slow clients.")
    parser.add_argument("what", choices=["overload", "slow"])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--sockets", type=int, default=200)
    chosen = parser.parse_args()
    work: Callable[[ServiceProcess], Awaitable[dict[str, float]]] = (
        (lambda one: overload(one, chosen.seconds))
        if chosen.what == "overload"
        else (lambda one: slow_clients(one, chosen.sockets))
    )
    with under_pressure() as one:

        async def run() -> dict[str, float]:
            return await work(one)

        found = asyncio.run(run())
    short = missed(chosen.what, found)
    print(json.dumps({**found, "missed": short}, indent=1))  # noqa: T201 - the command's output
    sys.exit(bool(short))


if __name__ == "__main__":
    main()
