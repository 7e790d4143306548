"""The node cases of ONNX' own backend test: each stepped and equal to its sequence, or refused for a stated reason."""

from __future__ import annotations

import importlib
import pkgutil
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Array, Manifest
from stepwell_export.streaming import convert

OPERATORS = {"LSTM", "GRU", "RNN", "Scan", "Loop", "CumSum", "CumProd", "CausalConvWithState", "LinearAttention"}
GIVEN = {"W", "R", "B", "P", "weight", "bias", "axis"}
"""Inputs of the cases that are weights of a model, or set where time is."""

REFUSED = {
    "test_cumsum_1d_reverse": "runs from the end of the sequence",
    "test_cumsum_1d_reverse_exclusive": "runs from the end of the sequence",
    "test_cumprod_1d_reverse": "runs from the end of the sequence",
    "test_cumprod_1d_reverse_exclusive": "runs from the end of the sequence",
    "test_gru_bidirectional": "is bidirectional over time",
    "test_gru_reverse": "is reverse over time",
    "test_lstm_bidirectional": "is bidirectional over time",
    "test_lstm_reverse": "is reverse over time",
    "test_simple_rnn_bidirectional": "is bidirectional over time",
    "test_simple_rnn_reverse": "is reverse over time",
    # a loop over a fixed table: no input has a time axis
    "test_loop11": "No axis of ['cond', 'trip_count', 'y'] can be read as time",
    "test_loop13_seq": "Input 'seq_empty' is sequence_type; expected a tensor",
    "test_loop16_seq_none": "Input 'opt_seq' is optional_type; expected a tensor",
    "test_scan_sum": "is the Scan of opset 8",
}
HALF = {"test_causal_conv_with_state_fp16", "test_causal_conv_with_state_silu_fp16", "test_linear_attention_fp16"}
"""Cases in float16, whose rounding is 1e-3."""


def cases() -> dict[str, Any]:
    """Return the cases by name.

    They are made by importing one module for each operator. `collect_testcases` would import them all, which runs a
    reference of every operator of ONNX: a third of the time that it takes to collect all tests.
    """
    from onnx.backend.test.case import node

    wanted = {operator.lower() for operator in OPERATORS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.iter_modules(node.__path__, f"{node.__name__}."):
            if module.name.rpartition(".")[2].replace("_", "") in wanted:
                importlib.import_module(module.name)
    return {
        case.name: case
        for case in node._NodeTestCases
        if case.model is not None and len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in OPERATORS
    }


CASES = cases()
STEPPED = sorted(CASES.keys() - REFUSED.keys())


def arrays(values: Any) -> list[Array]:
    return [np.asarray(value) for value in values]


TIME = {"LSTM": 0, "GRU": 0, "RNN": 0, "Scan": 0, "CausalConvWithState": 2}
"""The time axis by operator, which the cases declare by numbers alone."""


def times(case: Any) -> dict[str, int]:
    """Return the time axis of the sequence that a case has among its inputs."""
    [node], inputs = case.model.graph.node, case.model.graph.input
    arrays_of = dict(zip((value.name for value in inputs), arrays(case.data_sets[0][0]), strict=True))
    axis = int(arrays_of["axis"]) if "axis" in arrays_of else TIME.get(node.op_type)
    if not node.input[0]:  # the Scan of opset 8, whose batch stands in front
        axis = 1
    name = node.input[-1] if node.op_type == "Scan" else node.input[0]
    return {} if axis is None or name not in arrays_of else {name: axis}


def given(case: Any) -> dict[str, Array]:
    """Return the inputs of a case that are weights."""
    inputs = dict(zip((value.name for value in case.model.graph.input), arrays(case.data_sets[0][0]), strict=True))
    return {name: value for name, value in inputs.items() if name in GIVEN}


def drawn(rng: np.random.Generator, manifest: Manifest, rows: int, steps: int) -> dict[str, Array]:
    """Return inputs as the operators want them: decays below 0 and rates below 1, keys that do not blow up."""
    data = {i.name: rng.standard_normal((rows, steps, *i.shape)) * 0.3 for i in manifest.inputs}
    return {
        i.name: (-np.abs(data[i.name]) if i.name == "decay" else data[i.name]).astype(i.dtype) for i in manifest.inputs
    }


def test_there_are_cases_of_every_operator() -> None:
    known = {schema.name for schema in onnx.defs.get_all_schemas()}  # CumProd came with opset 26, the last two with 27

    assert {case.model.graph.node[0].op_type for case in CASES.values()} == OPERATORS & known


@pytest.mark.many
@pytest.mark.parametrize("name", STEPPED)
def test_a_case_is_equal_to_its_sequence_step_by_step(name: str) -> None:
    case = CASES[name]
    made = convert(case.model, name=name, constants=given(case), time_axes=times(case))
    made = replace(made, samplers={"random": lambda rng, rows, steps: drawn(rng, made.manifest, rows, steps)})
    atol, rtol = (2e-3, 1e-2) if name in HALF else (1e-5, 1e-4)
    _, report = verify_model(made, long_steps=100, atol=atol, rtol=rtol)

    assert report.parity.max_abs <= report.parity.atol


@pytest.mark.parametrize("name", sorted(REFUSED.keys() & CASES.keys()))
def test_a_case_that_cannot_be_stepped_is_refused_for_the_right_reason(name: str) -> None:
    case = CASES[name]

    with pytest.raises(StepwellError) as caught:
        convert(case.model, name=name, constants=given(case), time_axes=times(case))
    assert REFUSED[name] in caught.value.problem
