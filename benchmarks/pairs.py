"""Costs of a release: CPU time of the engine per timestep without one, outside a trial, and as a pair.

    python -m benchmarks.pairs

Engines in one process step 256 streams each of the demo's model by columns, in turn, on one private store. The CPU time
is that of the process without the store and without a transport, so other load on the machine matters little; the
ratios are of medians. The runs of both versions alone are measured in the same turns.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.engines import MODEL, ROWS, private_store, step
from benchmarks.releases import write_next_version
from stepwell.addons.demo.recordings import MODELS
from stepwell.addons.releases.document import ReleaseDocument, ReleaseVersion, Trial
from stepwell.addons.releases.lookup import Releases
from stepwell.addons.releases.placing import ReleasePlacing
from stepwell.engine.engine import Engine
from stepwell.models.registry import ModelRegistry
from stepwell.store.state_store import StateStore
from stepwell_export.runtime.step_model import StepModel

ROUNDS = 300
GOAL = 0.15
"""What a pair may cost beside the run of the candidate, as a share of a plain step."""


def document(models: ModelRegistry, percent: float, mode: str) -> ReleaseDocument:
    """Return a release with version 2 as the candidate."""
    old, new = (ReleaseVersion(n, models.get(MODEL, n).fingerprint) for n in (1, 2))
    trial = Trial(old, new, 1, 0.0, mode, ((0.0, percent),), 0.0, salt="s")  # type: ignore[arg-type]  # a mode
    return ReleaseDocument(MODEL, 1, old, 0.0, trial)


async def measure(url: str, folder: Path) -> tuple[dict[str, list[float]], list[float]]:
    """Return the CPU seconds of each round by case, and those of a run of the candidate alone."""
    cases: dict[str, tuple[float, str] | None] = {"no release": None, "the same again": None}
    cases |= {"release, 0 %": (0.0, "shadow"), "shadow, 10 %": (10.0, "shadow")}
    cases |= {"shadow, 100 %": (100.0, "shadow"), "ramp, 100 %": (100.0, "ramp")}
    engines: dict[str, Engine] = {}
    placings: dict[str, ReleasePlacing] = {}
    for name, release in cases.items():
        models = ModelRegistry([folder], StepModel)
        await models.reload()
        releases = Releases()
        if release is not None:
            releases.put(MODEL, document(models, *release))
        store = StateStore(url)
        placings[name] = ReleasePlacing(store, models, documents=releases)
        engines[name] = Engine(store, models, placing=placings[name])
    candidate = StepModel(folder / MODEL / "2" / "model.onnx")
    [spec] = candidate.manifest.inputs
    states, rng = candidate.initial_states(ROWS), np.random.default_rng(0)
    found: dict[str, list[float]] = {name: [] for name in cases}
    runs: list[float] = []
    for i in range(ROUNDS):
        xs = rng.normal(size=(ROWS, *spec.row_shape)).astype(np.float32)
        for name, engine in engines.items():
            started = time.process_time()
            await step(engine, f"t{list(cases).index(name)}", xs, i + 1)
            if i >= ROUNDS // 5:
                found[name].append(time.process_time() - started)
        started = time.process_time()
        candidate.step({spec.name: xs}, states)
        runs.append(time.process_time() - started)
        if i % 50 == 49:
            for placing in placings.values():
                await placing.comparison.flush()
    for engine in engines.values():
        await engine.close()
    return found, runs


def report(found: Mapping[str, Sequence[float]], runs: Sequence[float]) -> None:
    """Print microseconds per timestep and the ratio to the first case, then the goal."""
    base = statistics.median(next(iter(found.values())))
    for name, seconds in found.items():
        median = statistics.median(seconds)
        print(f"{name:15} {1e6 * median / ROWS:6.2f} us of CPU per timestep  {median / base:5.3f}")
    run = statistics.median(runs)
    goal = 1 + run / base + GOAL
    print(f"a run of the candidate: {1e6 * run / ROWS:.2f} us per timestep; the goal of 100 %: {goal:.3f}")


def main() -> None:
    """Run it."""
    with tempfile.TemporaryDirectory() as name:
        folder, demo = Path(name), MODELS / "activity.onnx"
        first = folder / MODEL / "1" / "model.onnx"
        first.parent.mkdir(parents=True)
        first.write_bytes(demo.read_bytes())
        write_next_version(demo, folder / MODEL / "2" / "model.onnx")
        with private_store(folder / "data") as url:
            report(*asyncio.run(measure(url, folder)))


if __name__ == "__main__":
    main()
