"""The part of a graph that a tensor follows from, run alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from stepwell_export.graph.nodes import only_needed
from stepwell_export.graph_session import GraphSession
from tests.model_export.streaming.zoo_parts import graph

TEXT = """
    (float[B,2] x) => (float[B,2] y) {
        a = MatMul (x, W)
        b = Add (a, S)
        y = Mul (b, S)
    }"""


def test_it_has_the_nodes_and_weights_that_are_needed_alone() -> None:
    weights: dict[str, Any] = {"W": np.eye(2, dtype=np.float32), "S": np.ones(2, np.float32)}
    whole = graph(TEXT, **weights)

    part = only_needed(whole, "a")

    assert [node.op_type for node in part.graph.node] == ["MatMul"]
    assert [tensor.name for tensor in part.graph.initializer] == ["W"]
    assert [value.name for value in part.graph.output] == ["a"]
    x = np.ones((3, 2), np.float32)
    np.testing.assert_array_equal(GraphSession(part).run({"x": x})["a"], x)
