<<<<<<< HEAD
"""`without_unit_axes`: the same answers on fewer nodes, and axes of length 1 stay where an operator needs them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from model_export.graph.unit_axes import without_unit_axes
from model_export.manifest import Array
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
    "a convolution": (
        "c = Unsqueeze (x, two) z = Conv <kernel_shape = [1]> (c, K) q = Squeeze (z, two)", {"K": (3, 4, 1)}, 2,
    ),
    "a product between the rows' own matrices": (
        f"{UNSQUEEZED} c = Unsqueeze (x, two) p = MatMul (c, s) r = MatMul (s, p) z = MatMul (r, W) {SQUEEZED}",
        {"W": (4, 3)}, 3,
    ),
}  # fmt: skip


def made(nodes: str, weights: dict[str, Any], *, opset: int = 20) -> onnx.ModelProto:
    return graph(f"{X} {{ {nodes} y = Identity (q) }}", opset=opset, one=ints(1), two=ints(2), **weights)


def answers(model: onnx.ModelProto, rows: int) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
    found: Array = session.run(["y"], {"x": x})[0]
    return found


@pytest.mark.parametrize("name", GRAPHS)
def test_the_answers_stay_for_any_number_of_rows(name: str) -> None:
    nodes, weights, left = GRAPHS[name]
    before = made(nodes, weights)

    after = without_unit_axes(before, {"x": 0})

    onnx.checker.check_model(after, full_check=True)
    for rows in (1, 2, 5):
        np.testing.assert_allclose(answers(after, rows), answers(before, rows), atol=1e-6)
    kinds = Counter(node.op_type for node in after.graph.node)
    assert sum(kinds[kind] for kind in LAYOUT) == left


def test_a_reshape_that_joins_features_stays() -> None:
    nodes = "r = Reshape (x, pairs) t = Tanh (r) f = Reshape (t, flat) q = MatMul (f, W)"
    before = made(nodes, {"W": (4, 3), "pairs": ints(-1, 2, 2), "flat": ints(-1, 4)})

    after = without_unit_axes(before, {"x": 0})

    assert [node.op_type for node in after.graph.node].count("Reshape") == 2
    np.testing.assert_allclose(answers(after, 3), answers(before, 3), atol=1e-6)


def test_what_nothing_uses_any_more_is_gone() -> None:
    after = without_unit_axes(made(*GRAPHS["a product and a bias"][:2]), {"x": 0})

    assert {tensor.name for tensor in after.graph.initializer} == {"W", "B"}
    assert [node.op_type for node in after.graph.node] == ["MatMul", "Add", "Identity"]


def test_a_graph_for_one_row_without_a_batch_axis_is_left_as_it_is() -> None:
    before = made(*GRAPHS["a product and a bias"][:2])

    assert without_unit_axes(before, {"x": None}) is before


def test_a_graph_whose_axes_are_attributes_is_left_as_it_is() -> None:
    before = made(*GRAPHS["a product and a bias"][:2], opset=17)

    assert without_unit_axes(before, {"x": 0}) is before
=======
"""A step graph without axes of length 1 gives the same, for one row and for several."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from model_export.graph.unit_axes import without_unit_axes
from model_export.manifest import Array

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "own" : 1]>\n'

CASES = {
    "a slope of lower rank": "u = Unsqueeze(x, one)\n s = PRelu(u, slope)\n y = Squeeze(s, one)",
    "a choice among lower ranks": (
        "u = Unsqueeze(x, one)\n t = Greater(u, zero)\n s = Where(t, slope, u)\n y = Squeeze(s, one)"
    ),
    "axes that count from the end": (
        "u = Unsqueeze(x, one)\n a = Softmax<axis=-1>(u)\n b = Concat<axis=-2>(u, a)\n"
        " c = ReduceSum<keepdims=0>(b, minus_two)\n y = Identity(c)"
    ),
    "a split along an axis of length 1 and one of four": (
        "u = Unsqueeze(x, one)\n a, b = Split<axis=-1, num_outputs=2>(u)\n c = Concat<axis=2>(b, a)\n"
        " d = Split<axis=1, num_outputs=1>(c)\n y = Squeeze(d, one)"
    ),
    "a norm over an axis of length 1 too": (
        "u = Unsqueeze(x, one)\n n = LayerNormalization<axis=1>(u, scale)\n y = Squeeze(n, one)"
    ),
    "a reduction of an axis of length 1": (
        "u = Unsqueeze(x, one)\n m = ReduceMean<keepdims=1>(u, one)\n y = Squeeze(m, one)"
    ),
    "a transposition that moves an axis of length 1": (
        "u = Unsqueeze(x, one)\n t = Transpose<perm=[1, 2, 0]>(u)\n v = Transpose<perm=[2, 0, 1]>(t)\n"
        " w = Neg(v)\n y = Squeeze(w, one)"
    ),
    "a body that takes a tensor from outside": (
        "u = Unsqueeze(x, one)\n n = Neg(u)\n t = ReduceMax<keepdims=0>(zero)\n c = Cast<to=9>(t)\n"
        " b = If(c)<then_branch = g1() => (float[N,1,4] p) { p = Abs(n) },"
        " else_branch = g2() => (float[N,1,4] q) { q = Exp(n) }>\n y = Squeeze(b, one)"
    ),
    "a row of numbers for each row": (
        "u = Unsqueeze(x, minus_one)\n m = MatMul(u, row)\n s = Tanh(m)\n y = ReduceSum<keepdims=0>(s, two)"
    ),
}

WEIGHTS: dict[str, Array] = {
    "one": np.array([1], np.int64),
    "two": np.array([2], np.int64),
    "minus_one": np.array([-1], np.int64),
    "minus_two": np.array([-2], np.int64),
    "zero": np.zeros((), np.float32),
    "slope": np.linspace(0.1, 0.4, 4, dtype=np.float32),
    "scale": np.linspace(1, 2, 4, dtype=np.float32).reshape(1, 4),
    "row": np.array([[2.0, 3.0]], np.float32),
}


def _model(body: str, opset: int, functions: str = "") -> onnx.ModelProto:
    text = f"{HEADER.format(opset=opset)}step (float[N,4] x) => (float[N,4] y) {{\n {body}\n}}\n{functions}"
    model = parser.parse_model(text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in WEIGHTS.items())
    return model


def _check(model: onnx.ModelProto) -> onnx.ModelProto:
    before = onnx.ModelProto()
    before.CopyFrom(model)
    after = without_unit_axes(model, {"x": 0})
    onnx.checker.check_model(after, full_check=True)
    runs: list[Callable[..., list[Array]]] = [
        ort.InferenceSession(one.SerializeToString(), providers=["CPUExecutionProvider"]).run for one in (before, after)
    ]
    for rows in (1, 3, 5):
        x = np.random.default_rng(rows).standard_normal((rows, 4)).astype(np.float32)
        want, got = (run(None, {"x": x})[0] for run in runs)
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    return after


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("body", CASES.values(), ids=CASES.keys())
def test_a_graph_without_unit_axes_gives_the_same(body: str, opset: int) -> None:
    _check(_model(body, opset))


def test_an_operator_of_another_domain_keeps_its_axes() -> None:
    function = (
        '<domain: "own", opset_import: ["" : 20]>\n'
        "Tanh (v) => (w) { axis = Constant<value_ints=[2]>() s = Squeeze(axis) w = CumSum(v, s) }\n"
    )
    body = "u = Unsqueeze(x, one)\n t = own.Tanh(u)\n y = Squeeze(t, one)"
    _check(_model(body, 20, function))
>>>>>>> e992c4a1 (Step graphs keep the axes of operators of other domains; tests of what is left out)
