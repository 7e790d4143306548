"""Costs of a release: CPU time of the engine per timestep without one, outside a trial, and as a pair.

    python -m benchmarks.pairs

Four engines in one process step 256 streams each by columns, in turn, on one private store. The CPU time is that of the
process without the store, so other load on the machine matters little; the ratios are of medians.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model_export.manifest import Array
from model_export.step_model import StepModel
from service.engine.engine import Engine
from service.models.registry import ModelRegistry
from service.releases.document import ReleaseDocument, ReleaseVersion, Trial
from service.releases.lookup import Releases
from service.store.keys import record_key
from service.store.state_store import StateStore
from service.types import BulkTimesteps, StreamKey
from tests.graphs import lstm, write_model
from tests.servers import server

MODEL, ROWS, ROUNDS = "bench", 256, 300


def document(models: ModelRegistry, percent: float, mode: str) -> ReleaseDocument:
    """Return a release with version 2 as the candidate."""
    old, new = (ReleaseVersion(n, models.get(MODEL, n).fingerprint) for n in (1, 2))
    trial = Trial(old, new, 1, 0.0, mode, ((0.0, percent),), 0.0, salt="s")  # type: ignore[arg-type]  # a mode
    return ReleaseDocument(MODEL, 1, old, 0.0, trial)


async def step(engine: Engine, tenant: str, xs: Array, seq: int) -> None:
    """Step all streams of a tenant by one timestep, in columns."""
    keys = [StreamKey(tenant, MODEL, f"s{i}") for i in range(ROWS)]
    done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    bulk = BulkTimesteps(
        keys=keys, names=[record_key(*key) for key in keys], inputs={"x": xs[:, None]},
        packed=[(row.tobytes(),) for row in xs], length=1, seqs=[seq] * ROWS, afters=[None] * ROWS,
    )  # fmt: skip
    if not engine.steps.submit_columnar(bulk, done.set_result, engine.models.get(MODEL, 1)):
        raise RuntimeError("the columns were not accepted")
    await done


async def measure(url: str, folder: Path) -> dict[str, list[float]]:
    """Return the CPU seconds of each round, by case."""
    cases: dict[str, tuple[float, str] | None] = {"no release": None, "the same again": None}
    cases |= {"release, 0 %": (0.0, "shadow"), "shadow, 10 %": (10.0, "shadow")}
    cases |= {"shadow, 100 %": (100.0, "shadow"), "ramp, 100 %": (100.0, "ramp")}
    engines: dict[str, Engine] = {}
    for name, release in cases.items():
        models = ModelRegistry([folder], StepModel)
        await models.reload()
        releases = Releases()
        if release is not None:
            releases.put(MODEL, document(models, *release))
        engines[name] = Engine(StateStore(url), models, releases=releases)
    rng = np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in cases}
    for i in range(ROUNDS):
        xs = rng.normal(size=(ROWS, 4)).astype(np.float32)
        for name, engine in engines.items():
            started = time.process_time()
            await step(engine, f"t{list(cases).index(name)}", xs, i + 1)
            if i >= ROUNDS // 5:
                found[name].append(time.process_time() - started)
        if i % 50 == 49:
            for engine in engines.values():
                await engine.comparison.flush()
    for engine in engines.values():
        await engine.close()
    return found


def report(found: Mapping[str, Sequence[float]]) -> None:
    """Print microseconds per timestep, and the ratio to the first case."""
    base = statistics.median(next(iter(found.values())))
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"{name:15} {1e6 * median / ROWS:6.2f} us of CPU per timestep  {median / base:5.3f}")


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, MODEL, lstm, version=1)
        write_model(folder, MODEL, lambda: lstm(seed=7), version=2)
        with server(folder / "data") as store:
            report(asyncio.run(measure(store.url, folder)))


if __name__ == "__main__":
    main()
