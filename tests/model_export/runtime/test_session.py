"""Graphs that onnxruntime, left to itself, does not load."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from stepwell_export.runtime.session import open_session


def test_a_float16_transpose_before_a_matmul_is_loaded() -> None:
    weights = numpy_helper.from_array(np.ones((3, 4), np.float16), "w")
    nodes = [
        helper.make_node("Transpose", ["x"], ["turned"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["turned", "w"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "float16",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["batch", 1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, "batch", 4])],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    session = open_session(model.SerializeToString(), where="the graph")

    assert session.run(None, {"x": np.ones((2, 1, 3), np.float16)})[0].tolist() == [[[3.0] * 4] * 2]
