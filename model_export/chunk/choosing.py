"""Whether a model gets a graph with a time axis: decided by measuring, once, when it is exported."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from model_export.chunk.cells import FusedCell
from model_export.chunk.choice import ChunkChoice, Timing
from model_export.chunk.graph import dynamic_graphs, dynamic_manifest
from model_export.chunk.reading import NoChunkError
from model_export.errors import ModelLoadError
from model_export.manifest import Array, Manifest
from model_export.probe import random_rows
from model_export.step_model import StepModel

if TYPE_CHECKING:
    import onnx

    from model_export.compare import Tolerance

STEPS = 100
"""Timesteps of the chunk that is measured; fewer where a model is slow."""

ROWS = (1, 32)
SLOWER = 1.05
SLOWER_US = 2.0
"""A single step may take this much longer, as a factor plus microseconds; beyond that chunks stay out."""

QUICKER = 1.5
"""A chunk of one stream has to be this much quicker than its steps, and one of 32 streams no slower."""

_BUDGET_S = 0.05
_TRIES = 3


def choose_chunk(
    proto: onnx.ModelProto,
    manifest: Manifest,
    cells: Sequence[FusedCell],
    samples: Sequence[Mapping[str, Array]],
    tolerance: Tolerance,
) -> tuple[onnx.ModelProto, Manifest, ChunkChoice]:
    """Return the step graph, or a graph with a time axis that equals it and is worth having.

    Args:
        proto: The step graph.
        manifest: What it takes, carries and gives.
        cells: Parts of it that one fused operator can do.
        samples: Sequences `{input: (rows, T, *shape)}` on which a chunk has to equal its steps.
        tolerance: How far it may be from them.

    Raises:
        ManifestError: The manifest does not fit the step graph.
        ModelLoadError: onnxruntime cannot run the step graph.
    """
    step = StepModel(proto.SerializeToString(), manifest)
    refusals = []
    try:
        for how, graph in dynamic_graphs(proto, manifest, cells):
            described = dynamic_manifest(manifest)
            try:
                model = StepModel(graph.SerializeToString(), described)
                if not all(_equal(step, model, sample, tolerance) for sample in samples):
                    refusals.append(ChunkChoice("step", f"{how}: does not equal the single steps"))
                    continue
            except ModelLoadError:
                refusals.append(ChunkChoice("step", f"{how}: onnxruntime does not run it"))
                continue
            timings = _measure(step, model)
            for _ in range(_TRIES - 1):  # other work on the machine makes a call look slow, never quick
                if not_worth(timings) is not None and not _hopeless(timings):
                    again = _measure(step, model, like=timings)
                    timings = [_quicker(*pair) for pair in zip(timings, again, strict=True)]
            if (why := not_worth(timings)) is None:
                return graph, described, ChunkChoice("dynamic", how, timings)
            refusals.append(ChunkChoice("step", f"{how}: {why}", timings))
            break  # the other way has more to run in each timestep
    except NoChunkError as exc:
        refusals.append(ChunkChoice("step", str(exc)))
    except Exception as exc:  # noqa: BLE001  # a graph that is odd in some way is served step by step, not refused
        refusals.append(ChunkChoice("step", f"making a graph with a time axis failed: {type(exc).__name__}: {exc}"))
    return proto, manifest, refusals[0]


def _equal(step: StepModel, model: StepModel, sample: Mapping[str, Array], tolerance: Tolerance) -> bool:
    rows = len(next(iter(sample.values())))
    want = step.chunk(sample, step.initial_states(rows))
    got = model.chunk(sample, model.initial_states(rows))
    judged = {spec.name for spec in step.manifest.answered if spec.kind == "value"} | {f.name for f in step.fields}
    return all(
        tolerance.holds(found[name], expected[name])
        for found, expected in zip(got, want, strict=True)
        for name in expected.keys() & judged
    )


def not_worth(timings: Sequence[Timing]) -> str | None:
    """Return why a graph with a time axis that took so long is not worth having; None where it is."""
    for t in timings:
        if t.steps == 1 and t.dynamic > t.stepwise * SLOWER + SLOWER_US:
            return f"a single step of {t.rows} streams takes {t.dynamic:.1f} us instead of {t.stepwise:.1f}"
        needed = QUICKER if t.rows == 1 else 1 / SLOWER
        if t.steps > 1 and t.stepwise / t.dynamic < needed:
            return f"a chunk of {t.steps} timesteps of {t.rows} streams is {t.stepwise / t.dynamic:.2f} times as quick"
    return None


def _quicker(first: Timing, second: Timing) -> Timing:
    """Return the shorter times of two measurements."""
    shorter = {name: min(getattr(first, name), getattr(second, name)) for name in ("stepwise", "dynamic")}
    return replace(first, **shorter)


def _hopeless(timings: Sequence[Timing]) -> bool:
    """Return whether chunks are so far from being worth it that noise cannot be why."""
    return any(t.steps > 1 and t.stepwise / t.dynamic < 0.8 * (QUICKER if t.rows == 1 else 1) for t in timings)


def _measure(step: StepModel, model: StepModel, *, like: Sequence[Timing] = ()) -> list[Timing]:
    """Measure both; chunks are as long as in another measurement."""
    lengths = {timing.rows: timing.steps for timing in like}
    rows = ROWS if step.batched else ROWS[:1]
    return [timing for count in rows for timing in _measure_rows(step, model, count, lengths.get(count))]


def _measure_rows(step: StepModel, model: StepModel, rows: int, steps: int | None) -> list[Timing]:
    rng = np.random.default_rng(0)
    states = step.initial_states(rows)
    one = {spec.name: random_rows(rng, spec, (rows,)) for spec in step.manifest.inputs}
    single = _interleaved(lambda: step.step(one, states), lambda: model.step(one, states))
    steps = steps or int(np.clip(_BUDGET_S * 1e6 / single[0], 8, STEPS))
    chunk = {spec.name: random_rows(rng, spec, (rows, steps)) for spec in step.manifest.inputs}
    both = _interleaved(lambda: step.chunk(chunk, states), lambda: model.chunk(chunk, states))
    return [Timing(rows, 1, *single), Timing(rows, steps, *both)]


def _interleaved(*calls: Callable[[], object]) -> list[float]:
    """Return each call's shortest processor time in microseconds; they take turns, so that both meet the same noise."""
    best = [_seconds(call, 1) for call in calls]
    began = time.thread_time()
    loops = max(1, int(_BUDGET_S / 20 / max(best)))
    while True:
        for i, call in enumerate(calls):
            best[i] = min(best[i], _seconds(call, loops))
        if time.thread_time() - began > _BUDGET_S:
            return [seconds * 1e6 for seconds in best]


def _seconds(call: Callable[[], object], loops: int) -> float:
    began = time.thread_time()
    for _ in range(loops):
        call()
    return (time.thread_time() - began) / loops
