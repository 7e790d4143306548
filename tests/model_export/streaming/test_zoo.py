"""Every graph of the zoo: a step graph, and equal to itself on whole sequences."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.streaming import convert
from stepwell_export.verify.runners import stepped
from tests.model_export.rows_apart import assert_rows_alone, assert_rows_apart
from tests.model_export.streaming.zoo import ZOO

ONE_ROW = {"positions_in_floats", "one_dimension", "made_for_one_row"}
"""Graphs whose rows cannot be run together."""


@pytest.mark.many
@pytest.mark.parametrize("name", ZOO)
def test_a_graph_of_the_zoo_equals_itself_step_by_step(name: str) -> None:
    """The proof compares 64 timesteps of nine sequences, rows in a batch with rows alone, chunks with steps."""
    content, report = verify_model(convert(ZOO[name].build(), name=name), long_steps=100)

    model = StepModel(content)
    assert report.parity.max_abs <= 1e-5
    assert not report.weak
    assert all(output.compared >= 9 for output in report.outputs)
    assert model.batched == (name not in ONE_ROW)
    assert model.manifest.states
    onnx.checker.check_model(onnx.load_model_from_string(content), full_check=True)
    assert_rows_apart(model)
    assert_rows_alone(model, content)


@pytest.mark.parametrize("name", ["lstm", "gru", "pad_then_conv", "padded_once"])
def test_a_row_gives_bit_for_bit_what_it_gives_alone(name: str) -> None:
    """The answers of a stream do not depend on which other streams are in its batch."""
    content, _ = verify_model(convert(ZOO[name].build(), name=name), long_steps=0)
    model, rng = StepModel(content), np.random.default_rng(3)
    inputs = {spec.name: rng.standard_normal((32, 5, *spec.shape)).astype(spec.dtype) for spec in model.manifest.inputs}

    together, _ = stepped(model, inputs)
    alone, _ = stepped(model, {name: values[7:8] for name, values in inputs.items()})

    assert all(np.array_equal(together[output][7:8], alone[output]) for output in together)


def test_a_convolution_of_one_axis_is_one_product() -> None:
    kinds = {node.op_type for node in convert(ZOO["chomp"].build(), name="chomp").proto.graph.node}

    assert kinds & {"Conv", "Gemm"} == {"Gemm"}
