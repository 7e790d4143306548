"""Graphs that take any number of timesteps at once: found by running a chunk against single steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stepwell_export.adoption.axes import Dim
from stepwell_export.adoption.rare_rows import rare_rows
from stepwell_export.adoption.timewise import is_timewise
from stepwell_export.runtime.batch_independence import nearly_equal, random_rows
from stepwell_export.runtime.errors import ModelLoadError, StepwellError
from stepwell_export.runtime.manifest import Array, InputSpec, Manifest, OutputSpec
from stepwell_export.runtime.specs import shape_of_rows
from stepwell_export.runtime.step_model import MOST_STEPS, StepModel
from stepwell_export.verify.runners import Run, chunked, stepped

if TYPE_CHECKING:
    import onnx

_LENGTHS = (1, 2, 3, 7, 51)
"""Timesteps of the chunks that rows with something rare are cut into."""


def find_chunks(
    path: Path, model: onnx.ModelProto, manifest: Manifest, declared: Mapping[str, tuple[Dim, ...]]
) -> Manifest:
    """Return the manifest with `time.chunk` `dynamic` if the graph runs so, else as it was.

    It does where every input and answer has an open axis right behind the batch axis, and timesteps along it equal
    single steps: by the operators, and in chunks of several lengths up to the longest that is ever run, for ordinary
    rows and such with something rare in them. A graph of one row may have no batch axis at all: what looked like one is
    time then.

    Args:
        path: The ONNX file.
        model: The same, as it was read.
        manifest: Its description, one timestep a run.
        declared: The lengths of each graph input's axes as they are declared.
    """
    readings = [manifest]
    if manifest.batch.mode == "single":
        readings.append(_without_batch(manifest))
    found = [_timed(reading, declared) for reading in readings]
    timed = [reading for reading in found if reading is not None and _by_operators(model, reading)]
    if not timed:
        return manifest
    rng = np.random.default_rng(2)
    long = {spec.name: random_rows(rng, spec, (2, MOST_STEPS)) for spec in manifest.inputs}
    rare = rare_rows(rng, manifest, sum(_LENGTHS), most=1)
    single = StepModel(path, manifest)
    runs: list[tuple[Mapping[str, Array], Sequence[int], Run]] = [
        (long, [MOST_STEPS], stepped(single, long, stored=False))
    ]
    with suppress(ModelLoadError):  # a graph may fail on values that are never sent; then it was not run on them at all
        runs.append((rare, _LENGTHS, stepped(single, rare, stored=False)))
    return next((reading for reading in timed if all(_runs_as(reading, path, *run) for run in runs)), manifest)


def _by_operators(model: onnx.ModelProto, manifest: Manifest) -> bool:
    times = {
        spec.name: 0 if spec.batch_axis is None else spec.batch_axis + 1
        for spec in (*manifest.inputs, *manifest.answered)
    }
    states = {state.input: state.output for state in manifest.states}
    return is_timewise(model, {name: axis for name, axis in times.items() if name not in states.values()}, states)


def _without_batch(manifest: Manifest) -> Manifest:
    """Return the manifest read as that of a graph without batch axes."""
    inputs = [spec.placed(shape_of_rows(spec.graph_row_shape, spec.batch_axis, 1), None) for spec in manifest.inputs]
    outputs = [spec.placed(shape_of_rows(spec.graph_row_shape, spec.batch_axis, 1), None) for spec in manifest.outputs]
    states = [state.placed(shape_of_rows(state.row_shape, state.batch_axis, 1), None) for state in manifest.states]
    return manifest.model_copy(update={"inputs": inputs, "states": states, "outputs": outputs})


def _timed(manifest: Manifest, declared: Mapping[str, tuple[Dim, ...]]) -> Manifest | None:
    """Return the manifest with its time axes taken out of the graph's rows; None: some tensor has none."""
    if manifest.windows:
        return None
    parts: dict[str, list[InputSpec | OutputSpec]] = {"inputs": [], "outputs": []}
    for what, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        for spec in specs:
            at, row = spec.batch_axis or 0, list(spec.graph_row_shape)
            axis = at if spec.batch_axis is None else at + 1
            if at >= len(row) or row[at] != 1:
                return None
            if what == "inputs" and isinstance(declared[spec.name][axis], int):
                return None
            del row[at]
            parts[what].append(spec.placed(row, spec.batch_axis))
    return manifest.model_copy(update={**parts, "time": manifest.time.model_copy(update={"chunk": "dynamic"})})


def _runs_as(manifest: Manifest, path: Path, inputs: Mapping[str, Array], lengths: Sequence[int], steps: Run) -> bool:
    """Return whether chunks, each in one run, equal the same timesteps one by one."""
    want, after = steps
    try:
        model = StepModel(path, manifest)
        got, states = chunked(model, inputs, lengths)
    except StepwellError:
        return False
    sure = [output.name for output in manifest.answered if output.kind == "value"]
    return (
        model.chunked
        and all(_rows_nearly_equal(got[name], want[name]) for name in sure)
        and all(_rows_nearly_equal(states[name].reshape(after[name].shape), after[name]) for name in after)
    )


def _rows_nearly_equal(found: Array, expected: Array) -> bool:
    """Return whether each row differs by no more than rounding, in units of its own largest value."""
    return all(nearly_equal(one, other) for one, other in zip(found, expected, strict=True))
