"""The durations that the engine reports are precise to the microsecond, and lie within what a caller can measure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import uvloop

from stepwell.engine.engine import Engine
from tests.engine.harness import CountingObserver, chunk, step, submit_bulk, worker
from tests.graphs import fold, write_models
from tests.servers import Server

Send = Callable[[Engine, str, int], Awaitable[object]]
N = 20


class DurationObserver(CountingObserver):
    """Records the seconds of each response."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def replied(self, model: str, seconds: Sequence[float]) -> None:
        self.seconds += seconds


async def single(engine: Engine, stream: str, n: int) -> None:
    await engine.steps.advance(step(stream, n))


async def with_key(engine: Engine, stream: str, n: int) -> None:
    await engine.steps.advance(chunk(stream, [n, n], idempotency_key=f"k{n}"))


async def bulk(engine: Engine, stream: str, n: int) -> None:
    assert await submit_bulk(engine, {stream: ([n], n)}) is not None


@pytest.mark.parametrize("send", [single, with_key, bulk])
def test_durations_have_microseconds_on_the_loop_that_serves(
    send: Send, tmp_path: Path, shared_redis: Server, stream: str
) -> None:
    counts, measured = DurationObserver(), list[float]()

    async def main() -> None:
        async with worker(shared_redis.url, write_models(tmp_path, fold=fold), counts=counts) as engine:
            for n in range(1, N + 1):
                started = time.perf_counter()
                await send(engine, f"{send.__name__}-{stream}", n)
                measured.append(time.perf_counter() - started)
                await asyncio.sleep(0)  # the response is counted

    uvloop.run(main())
    in_whole_ms = [s for s in counts.seconds if abs(s * 1000 - round(s * 1000)) < 1e-6]

    assert len(counts.seconds) == N
    assert len(in_whole_ms) <= 1  # by chance at most
    assert all(0 < s <= wall for s, wall in zip(counts.seconds, measured, strict=True))
