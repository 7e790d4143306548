"""Two streams in one batch, one with infinity, NaN and 1e30: the other's answers and states stay bit for bit."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from stepwell_export.graph.nodes import all_nodes
from stepwell_export.graph.operators import RNN
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel, random_rows

STEPS = 4
WILD = (np.nan, np.inf, 1e30)

BY_PLACE = {"Acos", "Asin", "Atan", "Celu", "Cos", "Elu", "Log", "Mish", "Selu", "Sin", "Softplus"}
"""Operators that onnxruntime computes several numbers at a time, and those that are left at a tensor's end one by one:
the last digit follows from where a number is in the batch."""

SUMS = {"ReduceMean", "ReduceSum", "ReduceSumSquare", "ReduceL2", "ReduceProd", "ReduceLogSumExp"}
"""Operators whose order of additions follows from the number of rows, where the axis is not the last one; so does that
of recurrent operators, which are left where they run over several timesteps of a window."""


def assert_rows_apart(model: StepModel) -> None:
    """Check single steps, and chunks where these are one run, with the ordinary row in front and behind."""
    inputs = _drawn(model)
    for row in range(2):
        calm = _run(model, inputs)
        for value in WILD:
            wild = {name: _with_row(array, 1 - row, value) for name, array in inputs.items()}
            for one, other in zip(calm, _run(model, wild), strict=True):
                _assert_same(_of_row(one, row), _of_row(other, row), f"beside a row of {value}")


def assert_rows_alone(model: StepModel, graph: bytes) -> None:
    """Check that single steps of a row in a batch are those of the row alone, where the operators promise it."""
    kinds = [spec.dtype for spec in model.manifest.inputs] + [state.dtype for state in model.manifest.states]
    if _step_operators(graph) & (BY_PLACE | SUMS | RNN) or "float64" in kinds:
        return
    inputs = _drawn(model)
    together = _steps(model, inputs)
    for row in range(2):
        alone = _steps(model, {name: array[row : row + 1] for name, array in inputs.items()})
        _assert_same(_of_row(together, row), _of_row(alone, 0), "alone")


def _step_operators(graph: bytes) -> set[str]:
    """Return the operators of a single step: of a graph for chunks, without those of the branch for several."""
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "else_branch" and attribute.g.name == "chunk":
                attribute.g.Clear()
    return {node.op_type for node in all_nodes(model.graph)}


def _drawn(model: StepModel) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    return {spec.name: random_rows(rng, spec, (2, STEPS)) for spec in model.manifest.inputs}


def _with_row(values: Array, row: int, value: float) -> Array:
    """Return numbers with another row: from the second timestep on it is ordinary no more; whole numbers change."""
    changed = values.copy()
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            changed[row, 1:] = np.asarray(value, values.dtype)
    else:
        changed[row, 1:] = 1 - changed[row, 1:] if values.dtype.kind == "i" else ~changed[row, 1:]
    return changed


def _run(model: StepModel, inputs: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Return what single steps give, and what a chunk gives where that is one run: all answers, and the last states."""
    found = [_steps(model, inputs)]
    if model.chunked:
        outputs, states = model.chunk(inputs, model.initial_states(2))
        found.append({name: outputs[name] for name in outputs.keys() & found[0].keys()} | states)
    return found


def _steps(model: StepModel, inputs: Mapping[str, Array]) -> dict[str, Array]:
    states = model.initial_states(len(next(iter(inputs.values()))))
    answers = []
    for step in range(STEPS):
        outputs, states = model.step({name: array[:, step] for name, array in inputs.items()}, states)
        answers.append(outputs)
    random = {output.name for output in model.manifest.outputs if output.kind == "random"}
    return {name: np.stack([one[name] for one in answers], axis=1) for name in answers[0].keys() - random} | states


def _of_row(values: Mapping[str, Array], row: int) -> dict[str, Array]:
    return {name: array[row] for name, array in values.items()}


def _assert_same(found: Mapping[str, Array], expected: Mapping[str, Array], how: str) -> None:
    for name in found.keys() & expected.keys():
        is_float = found[name].dtype.kind == "f"
        assert np.array_equal(found[name], expected[name], equal_nan=is_float), f"{name} is another {how}"
