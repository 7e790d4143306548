"""What tensors depend on, by their operators, whatever the runs show."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.graph.nodes import constants
from stepwell_export.streaming.axes.dependence import BATCH, DATA, TIME, mixed_axes
from stepwell_export.streaming.axes.inputs import read_inputs
from stepwell_export.streaming.axes.measured_shapes import MeasuredShapes, TensorRuns, measure_shapes
from stepwell_export.streaming.normal_form.plain_form import load_graph
from tests.model_export.streaming.zoo_parts import X, graph, ints


def facts_of(nodes: str, *, opset: int = 17, inputs: str = X, **weights: Any) -> MeasuredShapes:
    """Return what is found of a graph of `(batch, time, 4)` with these nodes."""
    text = f"({inputs}) => (float[batch, time, 4] y) {{ sizes = Shape (x) {nodes} y = CumSum (x, one) }}"
    given = {"one": np.int64(1), "zero": np.int64(0), "two": np.int64(2), "unit": ints(1), **weights}
    plain, declared, _ = load_graph(graph(text, opset=opset, **given), {})
    runs = TensorRuns(plain)
    return measure_shapes(runs, read_inputs(plain.graph, declared, time_axes={"x": 1}))


@pytest.mark.parametrize(
    ("nodes", "marks"),
    [
        ("n = Gather <axis = 0> (sizes, two)", set()),
        ("n = Gather <axis = 0> (sizes, one)", {TIME}),
        ("n = Gather <axis = 0> (sizes, zero)", {BATCH}),
        ("n = Size (x)", {TIME, BATCH}),
        ("n = ReduceMax <keepdims = 0> (x)", {DATA, TIME, BATCH}),
        ("z = NonZero (x) n = Size (z)", {DATA, TIME, BATCH}),
        ("w = Slice (sizes, unit, pair) n = Squeeze (w)", {TIME}),
        ("m = Mul (sizes, sizes) n = Gather <axis = 0> (m, two)", set()),
        ("c = ConstantOfShape (sizes) n = ReduceSum <keepdims = 0> (c, unit)", {TIME}),
        ("c = ConstantOfShape (sizes) n = Cos (c)", set()),
    ],
)
def test_a_number_depends_on_what_its_operators_take(nodes: str, marks: set[str]) -> None:
    assert facts_of(nodes, pair=ints(2)).depends("n").value == marks


@pytest.mark.parametrize(
    ("nodes", "is_even"),
    [
        ("n = Gather <axis = 0> (sizes, one)", True),
        ("t = Gather <axis = 0> (sizes, one) n = Sub (t, two)", True),
        ("t = Gather <axis = 0> (sizes, one) n = Min (t, far)", False),
        ("t = Gather <axis = 0> (sizes, one) n = Mod (t, far)", False),
        ("s = Slice (x, start, end, unit) of = Shape (s) n = Gather <axis = 0> (of, one)", False),
        ("s = Slice (x, start, near, unit) of = Shape (s) n = Gather <axis = 0> (of, one)", True),
        ("p = Pad (x, pads) s = Slice (p, start, cut, unit) of = Shape (s) n = Gather <axis = 0> (of, one)", True),
        ("s = Slice (x, start, cut, unit) of = Shape (s) n = Gather <axis = 0> (of, one)", False),
    ],
)
def test_a_limit_that_no_run_reaches_is_no_even_growth(nodes: str, is_even: bool) -> None:
    facts = facts_of(
        nodes, far=np.int64(5000), start=ints(0), end=ints(5000), near=ints(-1), pads=ints(0, 128, 0, 0, 128, 0),
        cut=ints(-128),
    )  # fmt: skip

    assert facts.depends("n").is_even == is_even


@pytest.mark.parametrize(
    ("nodes", "is_same"),
    [
        ("n = ConstantOfShape (sizes)", True),
        ("t = Gather <axis = 0> (sizes, one) r = Range (zero, t, one) n = Greater (r, far)", False),
        ("n = Expand (row, sizes)", True),
        ("t = Gather <axis = 0> (sizes, unit) n = Slice (table, start, t, start)", False),
        ("t = Gather <axis = 0> (sizes, unit) n = Slice (flat, start, t, start)", True),
    ],
)
def test_equal_values_in_the_runs_are_no_constant_over_time(nodes: str, is_same: bool) -> None:
    late = np.concatenate([np.zeros(3000), np.ones(1000)]).astype(np.float32)
    facts = facts_of(nodes, far=np.int64(3000), row=(4,), table=late, flat=np.zeros(4000, np.float32), start=ints(0))

    assert facts.same_over_time("n") == is_same


@pytest.mark.parametrize(
    ("nodes", "is_before"),
    [
        ("p = Pad (x, pads)", True),
        ("q = Pad (x, pads) p = Tanh (q)", True),
        ("q = Pad (x, pads) p = Transpose <perm = [0, 1, 2]> (q)", True),
        ("c = Concat <axis = 0> (batches, pair, four) f = ConstantOfShape (c) p = Concat <axis = 1> (f, x)", True),
        ("q = Pad (x, pads) u = ReduceMax <axes = [1], keepdims = 1> (x) r = Sub (u, far) s = Relu (r) p = Add (q, s)",
         False),
        ("h = Slice (x, start, pair, unit) r = Sub (h, far) f = Relu (r) p = Concat <axis = 1> (f, x)", False),
    ],
)  # fmt: skip
def test_what_an_input_reaches_does_not_stand_before_it(nodes: str, is_before: bool) -> None:
    facts = facts_of(
        f"batches = Slice (sizes, start, unit) {nodes}", pads=ints(0, 2, 0, 0, 0, 0), pair=ints(2), four=ints(4),
        start=ints(0), far=np.float32(100),
    )  # fmt: skip

    assert (facts.before_start("p", 0, 2) is not None) == is_before


@pytest.mark.parametrize(
    ("node", "place", "axes"),
    [
        ("y = Softmax <axis = 1> (x)", 0, {1}),
        ("y = LayerNormalization <axis = 1> (x, w)", 0, {1, 2}),
        ("y = MatMul (x, w)", 0, {2}),
        ("y = MatMul (w, x)", 1, {1}),
        ('y = Einsum <equation = "btf,bsf->btf"> (x, x)', 0, set()),
        ('y = Einsum <equation = "btf,bsf->btf"> (x, x)', 1, {1}),
        ("y = InstanceNormalization (x, w, w)", 0, {2}),
        ("y = Tanh (x)", 0, set()),
        ("y = ReduceSum (x, one)", 0, {1}),
        ("y = ReverseSequence (x, one)", 0, None),
        ("y = DynamicQuantizeLinear (x)", 0, {0, 1, 2}),
        ("y = GatherElements <axis = 1> (x, one)", 0, {1}),
    ],
)
def test_an_operator_mixes_the_axes_that_it_runs_over(node: str, place: int, axes: set[int] | None) -> None:
    model = graph(f"(float[2, 3, 4] x) => (float[a, b, c] y) {{ {node} }}", one=ints(1), w=(4, 4))
    tables = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in constants(model.graph).items()}
    ranks = {"x": 3, **{name: value.ndim for name, value in tables.items()}}

    assert mixed_axes(model.graph.node[0], place, ranks, 17, tables.get) == axes
