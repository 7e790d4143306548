"""CPU time of the engine per timestep on a model with a reference, with drift and without it.

    python -m benchmarks.engine_drift

Engines in one process step 256 streams each in turn, on one private store: in columns, and one timestep at a time. What
drift does once a second is done after each second of CPU time that the engine without it has used, as at full load of
one processor. The CPU time is that of the process without the store; a transport is not part of it, so the share of a
timestep that is served over HTTP is smaller: `python -m benchmarks drift` measures that.
"""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from benchmarks.engines import MODEL, ROWS, private_store, step
from stepwell.addons.drift.monitor import DriftMonitor
from stepwell.engine.engine import Engine
from stepwell.errors import ServiceError
from stepwell.models.registry import ModelRegistry
from stepwell.store.keys import record_key
from stepwell.store.state_store import StateStore
from stepwell.types import Prediction, StreamHandle, StreamKey
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from tests.addons.drift.live import normal, write_reference_model

SECONDS = 5.0
"""CPU seconds of the engine without drift, in each case."""

Step = Callable[[Engine, str, Array, int], Awaitable[None]]


async def step_alone(engine: Engine, tenant: str, xs: Array, seq: int) -> None:
    """Step all streams of a tenant by one timestep, one after another."""
    served, loop = engine.models.get(MODEL, 1), asyncio.get_running_loop()
    for i, row in enumerate(xs):
        done: asyncio.Future[Prediction | ServiceError] = loop.create_future()
        key = StreamKey(tenant, MODEL, f"s{i}")
        stream = StreamHandle(key, record_key(*key), None, "http")
        engine.steps.versions[served].submit_single(stream, (row.tobytes(),), seq, None, None, done.set_result)
        result = await done
        if isinstance(result, ServiceError):
            raise result


async def measure(url: str, models: ModelRegistry, one_step: Step, features: int, tenant: str) -> tuple[float, float]:
    """Return the CPU seconds per timestep without and with drift."""
    store = StateStore(url)
    monitor = DriftMonitor(store, is_on=True, max_features=64)
    off, on = Engine(StateStore(url), models), Engine(store, models, samplers=[monitor])
    rng, used, rounds, counted = np.random.default_rng(0), [0.0, 0.0], 0, 1.0
    while used[0] < SECONDS:
        rounds += 1
        xs = rng.normal(size=(ROWS, features)).astype(np.float32)
        for i, engine in enumerate((off, on) if rounds % 2 else (on, off)):
            place = i if rounds % 2 else 1 - i
            started = time.process_time()
            await one_step(engine, f"{tenant}{place}", xs, rounds)
            used[place] += time.process_time() - started
        if used[0] >= counted:
            counted += 1.0
            started = time.process_time()
            await monitor.run()
            used[1] += time.process_time() - started
    for engine in (off, on):
        await engine.close()
    return used[0] / (rounds * ROWS), used[1] / (rounds * ROWS)


async def report(url: str, folder: Path) -> None:
    """Print microseconds per timestep, and the ratio, for each case."""
    for features in (8, 62):
        write_reference_model(folder / str(features), MODEL, normal(32, 64, features), version=1)
        models = ModelRegistry([folder / str(features)], StepModel)
        await models.reload()
        gc.freeze()
        for name, one_step in (("columns of 256 streams", step), ("one timestep at a time", step_alone)):
            off, on = await measure(url, models, one_step, features, f"{name[:3]}{features}-")
            print(f"{features} inputs, {name}: {1e6 * off:6.2f} us without, {1e6 * on:6.2f} us with: {on / off:.3f}")


def main() -> None:
    """Run it."""
    gc.set_threshold(50_000, 10, 10)  # as the service does
    with tempfile.TemporaryDirectory() as name, private_store(Path(name) / "data") as url:
        asyncio.run(report(url, Path(name)))


if __name__ == "__main__":
    main()
