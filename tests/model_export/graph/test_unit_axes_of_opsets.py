"""A step graph without axes of length 1 gives the same, for one row and for several."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser

from stepwell_export.graph.unit_axes import without_unit_axes
from stepwell_export.runtime.manifest import Array

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
    "a sum over all axes, of which none is written": (
        "u = Unsqueeze(x, one)\n t = Transpose<perm=[1, 2, 0]>(u)\n m = ReduceMax<keepdims=1>(t, none)\n"
        " v = Sub(u, m)\n y = Squeeze(v, one)"
    ),
    "a product with a vector": (
        "u = Unsqueeze(x, one)\n d = MatMul(u, slope)\n e = Unsqueeze(d, two)\n v = Mul(u, e)\n y = Squeeze(v, one)"
    ),
    "a row of numbers for each row": (
        "u = Unsqueeze(x, minus_one)\n m = MatMul(u, row)\n s = Tanh(m)\n y = ReduceSum<keepdims=0>(s, two)"
    ),
}

WEIGHTS: dict[str, Array] = {
    "none": np.zeros(0, np.int64),
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
    after, _, _ = without_unit_axes(model, {"x": 0})
    onnx.checker.check_model(after, full_check=True)
    runs: list[Callable[..., list[np.ndarray]]] = [
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
