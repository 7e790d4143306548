"""Graphs of older opsets get newer operators."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.converted import verify_model
from stepwell_export.graph.nodes import read_opset
from stepwell_export.graph.onnx_file import with_opset
from stepwell_export.graph.unit_axes import OLDEST_OPSET
from stepwell_export.runtime.errors import ModelLoadError, RefusedModelError
from stepwell_export.streaming import convert
from tests.model_export.streaming.zoo_parts import GRU, channels, graph, ints

OLD_GRU = """
    xt = Transpose <perm = [1, 0, 2]> (x)
    yt = GRU <hidden_size = 5> (xt, W, R, B)
    ys = Squeeze <axes = [1]> (yt)
    y = Transpose <perm = [1, 0, 2]> (ys)
"""
SCAN_8 = """
    sn, y = Scan <num_scan_inputs = 1, body = body (float[4] a, float[4] b) => (float[4] c, float[4] d) {
        c = Add (a, b)
        d = Identity (c)
    }> (, s, x)
"""


def old_gru(opset: int, **weights: Any) -> onnx.ModelProto:
    """Return a GRU with its axes as attributes, as before opset 13."""
    return graph(f"(float[batch, time, 4] x) => (float[batch, time, 5] y) {{ {OLD_GRU} }}", opset=opset, **weights)


@pytest.mark.parametrize("opset", [7, 11])
def test_a_graph_of_an_older_opset_has_no_axes_of_length_1_either(opset: int) -> None:
    made = convert(old_gru(opset, **GRU), name="old")
    report = verify_model(made, long_steps=100)[1]

    assert read_opset(made.proto) == OLDEST_OPSET
    assert [state.shape for state in made.manifest.states] == [[5]]
    assert report.chunk is not None
    assert report.parity.max_abs <= 1e-5


def test_the_scan_of_opset_8_is_refused_with_what_to_do() -> None:
    """It has a batch axis of its own, which onnx' conversion leaves in its body."""
    model = graph(f"(float[N, T, 4] x, float[N, 4] s) => (float[N, T, 4] y) {{ {SCAN_8} }}", opset=8)

    with pytest.raises(RefusedModelError, match="is the Scan of opset 8") as caught:
        convert(model, name="older")

    assert "opset 9 or later" in caught.value.fix


def test_states_keep_their_names() -> None:
    """They are named after nodes, and the conversion adds nodes in between."""
    model = channels(
        "p = Pad <pads = [0, 0, 2, 0, 0, 0]> (x) m = ReduceMean <axes = [1], keepdims = 1> (p) n = Sub (p, m) "
        "y = Conv (n, W)",
        opset=9, W=(3, 4, 3),
    )  # fmt: skip

    assert [state.input for state in convert(model, name="named").manifest.states] == ["Conv_3.past"]


def test_the_weights_of_a_converted_graph_are_its_own() -> None:
    """Large ones do not take part in the conversion; axes that become inputs are added."""
    model = graph(
        "(float[N, 4] x) => (float[N, 100] y) { m = MatMul (x, V) y = ReduceSum <axes = [1], keepdims = 0> (m) }",
        opset=11, V=(4, 100),
    )  # fmt: skip

    made = with_opset(model, 18)

    assert [np.array_equal(onnx.numpy_helper.to_array(t), onnx.numpy_helper.to_array(model.graph.initializer[0]))
            for t in made.graph.initializer if t.name == "V"] == [True]  # fmt: skip
    assert [value.name for value in made.graph.input] == ["x"]
    assert ints(1) in [
        onnx.numpy_helper.to_array(a.t) for n in made.graph.node for a in n.attribute if a.name == "value"
    ]


@pytest.mark.parametrize(
    "nodes",
    ["y = Affine (x)", "y = com.microsoft.Gelu (x)"],  # an operator without a schema, and one of an unknown domain
)
def test_what_onnx_cannot_convert_is_refused(nodes: str) -> None:
    model = graph(f"(float[batch, time, 4] x) => (float[batch, time, 4] y) {{ {nodes} }}", opset=13)

    with pytest.raises(ModelLoadError, match="onnx cannot convert the graph to opset 18"):
        convert(model, name="old")
