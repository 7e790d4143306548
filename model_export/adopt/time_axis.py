"""Graphs that take any number of timesteps at once: found by running a chunk against single steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from model_export.adopt.axes import Dim
from model_export.errors import StepwellError
from model_export.manifest import Array, InputSpec, Manifest, OutputSpec
from model_export.runtime.batch_independence import nearly_equal, random_rows
from model_export.specs import shape_of_rows
from model_export.step_model import StepModel
from model_export.verify.runners import Run, stepped

_ROWS, _STEPS = 2, 7


def find_chunks(path: Path, manifest: Manifest, declared: Mapping[str, tuple[Dim, ...]]) -> Manifest:
    """Return the manifest with `time.chunk` `dynamic` if the graph runs so, else as it was.

    It does where every input and answer has an open axis right behind the batch axis, and seven timesteps given along
    it equal seven single steps. A graph of one row may have no batch axis at all: what looked like one is time then.

    Args:
        path: The ONNX file.
        manifest: Its description, one timestep a run.
        declared: The lengths of each graph input's axes as they are declared.
    """
    readings = [manifest]
    if manifest.batch.mode == "single":
        readings.append(_without_batch(manifest))
    timed = [found for reading in readings if (found := _timed(reading, declared)) is not None]
    if not timed:
        return manifest
    rng = np.random.default_rng(2)
    inputs = {spec.name: random_rows(rng, spec, (_ROWS, _STEPS)) for spec in manifest.inputs}
    steps = stepped(StepModel(path, manifest), inputs, stored=False)
    return next((reading for reading in timed if _runs_as(reading, path, inputs, steps)), manifest)


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


def _runs_as(manifest: Manifest, path: Path, inputs: Mapping[str, Array], steps: Run) -> bool:
    """Return whether a chunk in one run equals the same timesteps one by one."""
    want, after = steps
    try:
        model = StepModel(path, manifest)
        got, states = model.chunk(inputs, model.initial_states(_ROWS))
    except StepwellError:
        return False
    sure = [output.name for output in manifest.answered if output.kind == "value"]
    return (
        model.chunked
        and all(nearly_equal(got[name], want[name]) for name in sure)
        and all(nearly_equal(states[name].reshape(after[name].shape), after[name]) for name in after)
    )
