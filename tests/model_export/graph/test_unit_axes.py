"""`without_unit_axes`: the same answers on fewer nodes, and axes of length 1 stay where an operator needs them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from stepwell_export.graph.unit_axes import without_unit_axes
from stepwell_export.runtime.manifest import Array, StateSpec
from tests.model_export.streaming.zoo_parts import graph, ints

X = "(float[batch, 4] x) => (float[batch, 3] y)"
UNSQUEEZED = "s = Unsqueeze (x, one)"
SQUEEZED = "q = Squeeze (z, one)"
IN_FRONT = "Transpose <perm = [1, 0, 2]>"
LAYOUT = {"Reshape", "Squeeze", "Unsqueeze", "Transpose"}

# name: (nodes from `x` to `q`, weights, operators that only bring an axis of length 1 or take it away and are left)
GRAPHS: dict[str, tuple[str, dict[str, Any], int]] = {
    "a product and a bias": (f"{UNSQUEEZED} m = MatMul (s, W) z = Add (m, B) {SQUEEZED}", {"W": (4, 3), "B": (3,)}, 0),
    "a bias with an axis of length 1": (
        f"{UNSQUEEZED} m = MatMul (s, W) z = Add (m, B) {SQUEEZED}", {"W": (4, 3), "B": (1, 3)}, 0,
    ),
    "a normalisation": (
        f"{UNSQUEEZED} n = LayerNormalization <axis = -1> (s, G, H) z = MatMul (n, W) {SQUEEZED}",
        {"W": (4, 3), "G": (4,), "H": (4,)}, 0,
    ),
    "a softmax of the features": (
        f"{UNSQUEEZED} m = MatMul (s, W) z = Softmax <axis = 2> (m) {SQUEEZED}", {"W": (4, 3)}, 0,
    ),
    "a sum over the one timestep": (
        f"{UNSQUEEZED} m = MatMul (s, W) q = ReduceSum <keepdims = 0> (m, one)", {"W": (4, 3)}, 0,
    ),
    "timesteps in front": (
        f"{UNSQUEEZED} t = {IN_FRONT} (s) m = MatMul (t, W) u = Tanh (m) z = {IN_FRONT} (u) {SQUEEZED}",
        {"W": (4, 3)}, 0,
    ),
    "a softmax over the one timestep": (
        f"{UNSQUEEZED} m = MatMul (s, W) z = Softmax <axis = 1> (m) {SQUEEZED}", {"W": (4, 3)}, 2,
    ),
    "a mean of the features": (
        f"{UNSQUEEZED} p = Mul (s, s) n = ReduceMean (p, two) r = Sqrt (n) d = Div (s, r) z = MatMul (d, W) {SQUEEZED}",
        {"W": (4, 3)}, 0,
    ),
    "a part of the features": (
        f"{UNSQUEEZED} c = Slice (s, one, three, two) z = MatMul (c, W) {SQUEEZED}", {"W": (2, 3)}, 0,
    ),
    "one feature and a bias": (
        f"{UNSQUEEZED} m = MatMul (s, V) a = Add (m, B) t = Tanh (a) z = Mul (t, C) {SQUEEZED}",
        {"V": (4, 1), "B": (1,), "C": (3,)}, 0,
    ),
    "heads that a product brings together": (
        ("h = Reshape (x, pairs) u = Unsqueeze (h, two) k = Tanh (u) t = Transpose <perm = [0, 1, 3, 2]> (k) "
         "p = MatMul (u, t) r = MatMul (p, u) o = Reshape (r, flat) e = Unsqueeze (o, one) "
         f"z = MatMul (e, W) {SQUEEZED}"),
        {"W": (4, 3), "pairs": ints(-1, 2, 2), "flat": ints(-1, 4)}, 4,
    ),
    "heads that share a key": (
        ("h = Reshape (x, queries) k = Reshape (x, keys) p = MatMul (h, k) o = Reshape (p, flat) "
         f"e = Unsqueeze (o, one) z = MatMul (e, W) {SQUEEZED}"),
        {"W": (4, 3), "queries": ints(-1, 1, 2, 1, 2), "keys": ints(-1, 1, 1, 2, 2), "flat": ints(-1, 4)}, 3,
    ),
    "a mask that hides nothing": (
        f"{UNSQUEEZED} m = MatMul (s, W) z = Where (none, never, m) {SQUEEZED}",
        {"W": (4, 3), "none": np.zeros((1, 3), bool), "never": np.float32(-np.inf)}, 0,
    ),
    "a length of the features": (
        f"{UNSQUEEZED} n = ReduceL2 (s, two) d = Div (s, n) z = MatMul (d, W) {SQUEEZED}", {"W": (4, 3)}, 0,
    ),
    "a length of the one timestep": (
        f"{UNSQUEEZED} n = ReduceL2 (s, one) z = MatMul (n, W) {SQUEEZED}", {"W": (4, 3)}, 2,
    ),
    "a convolution": (
        "c = Unsqueeze (x, two) z = Conv <kernel_shape = [1]> (c, K) q = Squeeze (z, two)", {"K": (3, 4, 1)}, 2,
    ),
    "a product between the rows' own matrices": (
        f"{UNSQUEEZED} c = Unsqueeze (x, two) p = MatMul (c, s) r = MatMul (s, p) z = MatMul (r, W) {SQUEEZED}",
        {"W": (4, 3)}, 3,
    ),
}  # fmt: skip


def made(nodes: str, weights: dict[str, Any], *, opset: int = 20) -> onnx.ModelProto:
    return graph(f"{X} {{ {nodes} y = Identity (q) }}", opset=opset, one=ints(1), two=ints(2), three=ints(3), **weights)


def answers(model: onnx.ModelProto, rows: int) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
    found: Array = session.run(["y"], {"x": x})[0]
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_the_answers_stay_for_any_number_of_rows(name: str) -> None:
    nodes, weights, left = GRAPHS[name]
    before = made(nodes, weights)

    after, _, _ = without_unit_axes(before, {"x": 0})

    onnx.checker.check_model(after, full_check=True)
    for rows in (1, 2, 5):
        np.testing.assert_allclose(answers(after, rows), answers(before, rows), atol=1e-6)
    kinds = Counter(node.op_type for node in after.graph.node)
    assert sum(kinds[kind] for kind in LAYOUT) == left


def test_a_mask_without_effect_is_no_node() -> None:
    after, _, _ = without_unit_axes(made(*GRAPHS["a mask that hides nothing"][:2]), {"x": 0})

    assert [node.op_type for node in after.graph.node] == ["MatMul", "Identity"]


def test_a_reshape_that_joins_features_stays() -> None:
    nodes = "r = Reshape (x, pairs) t = Tanh (r) f = Reshape (t, flat) q = MatMul (f, W)"
    before = made(nodes, {"W": (4, 3), "pairs": ints(-1, 2, 2), "flat": ints(-1, 4)})

    after, _, _ = without_unit_axes(before, {"x": 0})

    assert [node.op_type for node in after.graph.node].count("Reshape") == 2
    np.testing.assert_allclose(answers(after, 3), answers(before, 3), atol=1e-6)


def test_what_nothing_uses_any_more_is_gone() -> None:
    after, _, _ = without_unit_axes(made(*GRAPHS["a product and a bias"][:2]), {"x": 0})

    assert {tensor.name for tensor in after.graph.initializer} == {"W", "B"}
    assert [node.op_type for node in after.graph.node] == ["MatMul", "Add", "Identity"]


def test_a_graph_for_one_row_without_a_batch_axis_is_left_as_it_is() -> None:
    before = made(*GRAPHS["a product and a bias"][:2])

    assert without_unit_axes(before, {"x": None})[0] is before


def test_a_graph_whose_axes_are_attributes_is_left_as_it_is() -> None:
    before = made(*GRAPHS["a product and a bias"][:2], opset=17)

    assert without_unit_axes(before, {"x": 0})[0] is before


def carrying(nodes: str, dims: str, **weights: Any) -> tuple[onnx.ModelProto, StateSpec]:
    """Return a step graph with a state `h` of these dims, and the state without them in its name."""
    text = f"(float[batch, 4] x, float[{dims}] h) => (float[batch, 4] y, float[{dims}] h_next) {{ {nodes} }}"
    shape = [int(size) for size in dims.split(",")[1:]]
    state = StateSpec(input="h", output="h_next", dtype="float32", shape=shape)
    return graph(text, opset=20, one=ints(1), two=ints(2), **weights), state


@pytest.mark.parametrize(
    ("nodes", "dims", "left"),
    {
        "a sum of features": (
            "u = Unsqueeze (x, one) a = Add (h, u) t = Squeeze (a, one) y = Identity (t) h_next = Identity (a)",
            "batch, 1, 4", [4],
        ),
        "one number that features are divided by": (
            "n = ReduceMax (x, one) a = Add (h, n) d = Div (x, a) y = Identity (d) h_next = Identity (a)",
            "batch, 1", [1],
        ),
        "the past of one head": (
            ("c = Reshape (x, places) j = Concat <axis = 2> (h, c) p = ReduceSum <keepdims = 0> (j, both) "
             "y = Identity (p) l = Slice (j, one, four, two) h_next = Identity (l)"),
            "batch, 1, 3, 4", [3, 4],
        ),
    }.values(),
)  # fmt: skip
def test_a_state_has_the_axes_of_length_1_that_save_nodes_and_no_others(nodes: str, dims: str, left: list[int]) -> None:
    weights = {"places": ints(-1, 1, 1, 4), "both": ints(1, 2), "four": ints(4)}
    before, state = carrying(nodes, dims, **{name: value for name, value in weights.items() if name in nodes})
    copied = onnx.ModelProto()
    copied.CopyFrom(before)

    after, (narrow,), _ = without_unit_axes(copied, {"x": 0}, [state])

    onnx.checker.check_model(after, full_check=True)
    assert narrow.shape == left
    x = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    h = np.random.default_rng(1).standard_normal((3, *state.shape)).astype(np.float32)
    runs = [onnxruntime.InferenceSession(model.SerializeToString()).run for model in (before, after)]
    want = runs[0](None, {"x": x, "h": h})
    found = runs[1](None, {"x": x, "h": h.reshape(3, *left)})
    for one, other in zip(found, want, strict=True):
        np.testing.assert_array_equal(one.reshape(other.shape), other)
