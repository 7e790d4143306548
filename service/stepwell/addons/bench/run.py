"""Runs a load: connections that step their streams, in a closed loop or at a fixed rate."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from stepwell.addons.bench.drivers import LoadDriver
from stepwell.addons.bench.latency import LatencyRecorder
from stepwell.addons.bench.workload import BenchStream

_PROGRESS_EVERY_S = 0.2
_GAP = frozenset({"seq_gap", "seq_passed", "seq_conflict", "state_changed"})


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """The size of a load.

    Attributes:
        connections: Number of open connections.
        at_once: Streams that a connection steps in one request.
        seconds: Duration of the measurement.
        warmup_s: Seconds of load before the measurement.
        rate: Requests per second, independent of responses; 0 sends the next request after each response.
    """

    connections: int
    at_once: int
    seconds: float
    warmup_s: float
    rate: float = 0.0


async def run(
    load: LoadPlan,
    streams: Sequence[BenchStream],
    open_driver: Callable[[], Awaitable[LoadDriver]],
    recorder: LatencyRecorder,
    on_progress: Callable[[float], None] | None = None,
) -> None:
    """Run a load; `recorder` has the results, even if the run is cancelled.

    Args:
        load: The size of the load.
        streams: The streams to step; each is assigned to one connection.
        open_driver: Opens a connection.
        recorder: Counts the results.
        on_progress: Called about five times a second with the seconds measured so far.

    Raises:
        BenchError: A connection failed or was closed.
    """
    drivers = [await open_driver() for _ in range(load.connections)]
    pacer = _Pacer(load.rate)
    try:
        async with asyncio.TaskGroup() as tasks:
            steppers = [
                tasks.create_task(_step(driver, streams[i :: load.connections], load.at_once, pacer, recorder))
                for i, driver in enumerate(drivers)
            ]
            async for seconds in _clock(load, recorder):
                if on_progress is not None:
                    on_progress(seconds)
            recorder.stop()
            for stepper in steppers:
                stepper.cancel()
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None  # the first is the cause; the others follow from it
    finally:
        recorder.stop()
        for driver in drivers:
            await driver.close()


async def _clock(load: LoadPlan, recorder: LatencyRecorder) -> AsyncIterator[float]:
    await asyncio.sleep(load.warmup_s)
    recorder.start()
    while (seconds := recorder.seconds) < load.seconds:
        yield seconds
        await asyncio.sleep(min(_PROGRESS_EVERY_S, load.seconds - seconds))
    yield load.seconds


async def _step(
    driver: LoadDriver, streams: Sequence[BenchStream], at_once: int, pacer: _Pacer, recorder: LatencyRecorder
) -> None:
    groups = itertools.cycle([streams[i : i + at_once] for i in range(0, len(streams), at_once)])
    for group in groups:
        due = await pacer.next()
        codes = await driver.step(group)
        seconds, succeeded = perf_counter() - due, 0
        for stream, code in zip(group, codes, strict=True):
            if code is None:
                succeeded += 1
                stream.step += 1
            else:
                recorder.failed(code)
                if code in _GAP:  # another writer steps the stream: count the error and continue with the next step
                    stream.step += 1
        if succeeded:
            recorder.replied(seconds, steps=succeeded)


class _Pacer:
    """Due times of requests: immediately, or at a fixed rate."""

    def __init__(self, rate: float) -> None:
        self._due_times: Iterator[float] | None = itertools.count(perf_counter(), 1 / rate) if rate else None

    async def next(self) -> float:
        """Wait until the next request is due, and return its due time."""
        if self._due_times is None:
            return perf_counter()
        due = next(self._due_times)
        await asyncio.sleep(max(0.0, due - perf_counter()))
        return due
