"""`without_copies`: outputs are made by the nodes themselves, and copied where they cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest

from stepwell_export.graph.nodes import replace_items, without_copies
from tests.model_export.streaming.zoo_parts import graph

# name: (nodes, how many copies are left)
GRAPHS = {
    "a copy": ("n = Neg (x) y = Identity (n) z = Abs (n)", 0),
    "a copy of a copy": ("n = Neg (x) m = Identity (n) y = Identity (m) z = Abs (m)", 0),
    "two copies of one tensor": ("n = Neg (x) y = Identity (n) z = Identity (n)", 1),
    "a copy of an output": ("y = Neg (x) z = Identity (y)", 1),
    "a copy of an input": ("y = Identity (x) z = Neg (x)", 1),
    "a copy inside": ("n = Identity (x) y = Neg (n) z = Abs (n)", 1),
    "in the body of an If": (
        (
            "s = ReduceSum <keepdims = 0> (x) c = Greater (s, nil) n = Neg (x) y = Identity (n) z = If (c) <"
            "then_branch = then () => (float[batch, 4] a) { a = Abs (n) }, "
            "else_branch = other () => (float[batch, 4] b) { b = Exp (n) }>"
        ),
        0,
    ),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_the_answers_stay_without_the_copies(name: str) -> None:
    nodes, left = GRAPHS[name]
    weights: dict[str, Any] = {"nil": np.float32(0)} if "nil" in nodes else {}
    model = graph(f"(float[batch, 4] x) => (float[batch, 4] y, float[batch, 4] z) {{ {nodes} }}", opset=20, **weights)
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    want = onnxruntime.InferenceSession(model.SerializeToString()).run(["y", "z"], {"x": x})

    replace_items(model.graph.node, without_copies(model.graph.node, ["y", "z"]))

    found = onnxruntime.InferenceSession(model.SerializeToString()).run(["y", "z"], {"x": x})
    np.testing.assert_array_equal(found, want)
    assert [node.op_type for node in model.graph.node].count("Identity") == left
