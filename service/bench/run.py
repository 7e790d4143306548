"""Running a load: connections that step their streams, as fast as they are answered or at a fixed rate."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from service.bench.drivers import LoadDriver
from service.bench.latency import LatencyRecorder
from service.bench.workload import BenchStream

_PROGRESS_EVERY_S = 0.2
_GAP = frozenset({"seq_gap", "seq_passed", "seq_conflict", "state_changed"})


@dataclass(frozen=True, slots=True)
class Load:
    """How much is asked.

    Attributes:
        connections: Open at once.
        at_once: Streams that a connection steps together.
        seconds: How long it is measured.
        warmup_s: Seconds before that.
        rate: Requests per second that are due whatever the service does; 0: the next as soon as one is answered.
    """

    connections: int
    at_once: int
    seconds: float
    warmup_s: float
    rate: float = 0.0


async def run(
    load: Load,
    streams: Sequence[BenchStream],
    open_door: Callable[[], Awaitable[LoadDriver]],
    meter: LatencyRecorder,
    on_progress: Callable[[float], None] | None = None,
) -> None:
    """Put the load on; what comes of it is in `meter`, also when this is cancelled.

    Args:
        load: How much.
        streams: What is stepped; each belongs to one connection.
        open_door: Opens a connection.
        meter: Counts.
        on_progress: Called now and then with the seconds measured so far.

    Raises:
        BenchError: A connection cannot be had, or ended.
    """
    doors = [await open_door() for _ in range(load.connections)]
    dues = _Pacer(load.rate)
    try:
        async with asyncio.TaskGroup() as tasks:
            steppers = [
                tasks.create_task(_step(door, streams[i :: load.connections], load.at_once, dues, meter))
                for i, door in enumerate(doors)
            ]
            async for seconds in _clock(load, meter):
                if on_progress is not None:
                    on_progress(seconds)
            meter.stop()
            for stepper in steppers:
                stepper.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the first says it; the others fell with it
    finally:
        meter.stop()
        for door in doors:
            await door.close()


async def _clock(load: Load, meter: LatencyRecorder) -> AsyncIterator[float]:
    await asyncio.sleep(load.warmup_s)
    meter.start()
    while (seconds := meter.seconds) < load.seconds:
        yield seconds
        await asyncio.sleep(min(_PROGRESS_EVERY_S, load.seconds - seconds))
    yield load.seconds


async def _step(
    door: LoadDriver, own: Sequence[BenchStream], at_once: int, dues: _Pacer, meter: LatencyRecorder
) -> None:
    groups = itertools.cycle([own[i : i + at_once] for i in range(0, len(own), at_once)])
    for group in groups:
        began = await dues.next()
        codes = await door.step(group)
        seconds, good = perf_counter() - began, 0
        for stream, code in zip(group, codes, strict=True):
            if code is None:
                good += 1
                stream.step += 1
            else:
                meter.failed(code)
                if code in _GAP:  # somebody else steps it: leave it as it is, and count
                    stream.step += 1
        if good:
            meter.replied(seconds, steps=good)


class _Pacer:
    """When requests are due: now, or one after the other at a fixed rate."""

    def __init__(self, rate: float) -> None:
        self._dues: Iterator[float] | None = itertools.count(perf_counter(), 1 / rate) if rate else None

    async def next(self) -> float:
        """Wait until the next request is due, and return when that was."""
        if self._dues is None:
            return perf_counter()
        due = next(self._dues)
        await asyncio.sleep(max(0.0, due - perf_counter()))
        return due
