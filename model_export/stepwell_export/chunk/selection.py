"""Whether a model gets a graph with a time axis: decided by the size of what it does, and measured for the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stepwell_export.chunk.analysis import NoChunkError
from stepwell_export.chunk.dynamic import AT_ONCE, dynamic_graphs, dynamic_manifest, operator_products
from stepwell_export.graph.decompose_rnn import decompose_rnn
from stepwell_export.runtime.batch_independence import random_rows
from stepwell_export.runtime.errors import InternalError, ModelLoadError
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.runtime.memory import release
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.structure.rows import rows_of_step
from stepwell_export.verify.report import ChunkChoice, Timing

if TYPE_CHECKING:
    import onnx

    from stepwell_export.verify.tolerance import Tolerance

STEPS = 100
"""Timesteps of the chunk that is measured; fewer where a model is slow."""

ROWS = (1, 32)

AT_ONCE_MOST = 500_000
"""Numbers that a model's loops may multiply in each timestep where they run as fused operators; above that the time
goes into products of matrices, which come one after another in any case. Source: docs/adr/0032."""

INSIDE_MOST = 150_000
"""The same where the loops run timestep by timestep inside one run, which gains less."""

_BUDGET_S = 0.02


def choose_chunk(
    proto: onnx.ModelProto,
    manifest: Manifest,
    samples: Sequence[Mapping[str, Array]],
    tolerance: Tolerance,
) -> tuple[bytes, StepModel, ChunkChoice]:
    """Return the step graph, or a graph with a time axis that equals it and is worth having: its file and its model.

    In neither are there recurrent operators over a single timestep: see `stepwell_export.graph.decompose_rnn`.

    Args:
        proto: The step graph.
        manifest: What it takes, carries and gives.
        samples: Sequences `{input: (rows, T, *shape)}` on which a chunk has to equal its steps.
        tolerance: How far it may be from them.
    """
    alone = decompose_rnn(proto)
    content = alone.SerializeToString()
    del alone
    step = StepModel(content, manifest)
    release(len(content))
    if (why := too_heavy(AT_ONCE, operator_products(proto))) is not None:
        return content, step, ChunkChoice("step", f"{AT_ONCE}: {why}")  # without graphs that take seconds to make
    refusals = []
    try:
        for how, graph, products in dynamic_graphs(proto, manifest):
            if (why := too_heavy(how, products)) is not None:
                refusals.append(ChunkChoice("step", f"{how}: {why}"))
                break  # the other way has more to run in each timestep
            described = dynamic_manifest(manifest)
            if (verdict := rows_of_step(graph, described).verdict).outcome != "independent":
                refusals.append(ChunkChoice("step", f"{how}: {verdict.why}"))
                continue
            try:
                timed = graph.SerializeToString()
                del graph
                model = StepModel(timed, described)
                release(len(timed))
                if not all(_equal(step, model, sample, tolerance) for sample in samples):
                    refusals.append(ChunkChoice("step", f"{how}: does not equal the single steps"))
                    continue
            except ModelLoadError:
                refusals.append(ChunkChoice("step", f"{how}: onnxruntime does not run it"))
                continue
            return timed, model, ChunkChoice("dynamic", how, _measure(step, model))
    except NoChunkError as exc:
        refusals.append(ChunkChoice("step", str(exc)))
    except Exception as exc:  # noqa: BLE001  # the step graph is right without; the report has the fault
        refusals.append(ChunkChoice("step", str(InternalError("making a graph with a time axis", exc))))
    return content, step, refusals[0]


def _equal(step: StepModel, model: StepModel, sample: Mapping[str, Array], tolerance: Tolerance) -> bool:
    rows = len(next(iter(sample.values())))
    want = step.chunk(sample, step.initial_states(rows))
    got = model.chunk(sample, model.initial_states(rows))
    judged = {spec.name for spec in step.manifest.answered if spec.kind == "value"} | {f.name for f in step.fields}
    return all(
        tolerance.holds(got_values[name], expected[name])
        for got_values, expected in zip(got, want, strict=True)
        for name in expected.keys() & judged
    )


def too_heavy(how: str, products: int) -> str | None:
    """Return why a graph with a time axis is not worth having, by what its loops multiply in each timestep.

    By size and not by the clock: a model exported twice is one file, whatever else the machine does.
    """
    most = AT_ONCE_MOST if how == AT_ONCE else INSIDE_MOST
    if products <= most:
        return None
    return f"each timestep multiplies {products:,} numbers in the loops, and above {most:,} little is gained"


def _measure(step: StepModel, model: StepModel) -> list[Timing]:
    """Measure both, for the report alone."""
    rows = ROWS if step.batched else ROWS[:1]
    return [timing for count in rows for timing in _measure_rows(step, model, count)]


def _measure_rows(step: StepModel, model: StepModel, rows: int) -> list[Timing]:
    rng = np.random.default_rng(0)
    states = step.initial_states(rows)
    timestep = {spec.name: random_rows(rng, spec, (rows,)) for spec in step.manifest.inputs}
    single = _interleaved(lambda: step.step(timestep, states), lambda: model.step(timestep, states))
    steps = int(np.clip(_BUDGET_S * 1e6 / single[0], 8, STEPS))
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
