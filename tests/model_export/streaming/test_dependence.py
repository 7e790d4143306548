"""What tensors depend on, by their operators, whatever the runs show."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from stepwell_export.graph.nodes import constants
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming.axes.dependence import BATCH, DATA, TIME
from stepwell_export.streaming.axes.inputs import read_inputs
from stepwell_export.streaming.axes.measured_shapes import MeasuredShapes, TensorRuns, measure_shapes
from stepwell_export.streaming.normal_form.plain_form import load_graph
from stepwell_export.streaming.step import SequenceStep, make_step
from stepwell_export.structure.row_rules import mixed_axes
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
    "nodes",
    [
        "p = Pad (x, pads)",
        "q = Pad (x, pads) p = Tanh (q)",
        "q = Pad (x, pads) p = Transpose <perm = [0, 1, 2]> (q)",
        "c = Concat <axis = 0> (batches, pair, four) f = ConstantOfShape (c) p = Concat <axis = 1> (f, x)",
        "r = Sub (u, far) s = Relu (r) q = Add (x, s) p = Pad (q, pads)",
    ],
)
def test_what_no_input_reaches_is_what_a_state_begins_with(nodes: str) -> None:
    assert padded(nodes).manifest.states


@pytest.mark.parametrize(
    ("nodes", "why"),
    [
        ("q = Pad (x, pads) r = Sub (u, far) s = Relu (r) p = Add (q, s)", "which depends on the input"),
        ("q = Pad (x, pads) r = Sub (u, far) s = Relu (r) t = Shape (q) w = Expand (s, t) p = Add (q, w)",
         "which depends on the input"),
        ("e = Pad <mode = \"edge\"> (x, pads) r = Sub (e, far) s = Relu (r) q = Pad (x, pads) p = Add (q, s)",
         "which depends on the input"),
        ("h = Slice (x, start, pair, unit) r = Sub (h, far) f = Relu (r) p = Concat <axis = 1> (f, x)",
         "takes timesteps at fixed places"),
    ],
)  # fmt: skip
def test_what_an_input_reaches_does_not_stand_before_it(nodes: str, why: str) -> None:
    """Above 100 it does, which no run has."""
    with pytest.raises(RefusedModelError, match=why):
        padded(nodes)


def padded(nodes: str) -> SequenceStep:
    """Return the step of a running sum over `p`, which has two elements in front of `x`."""
    given: dict[str, Any] = {"one": np.int64(1), "unit": ints(1), "start": ints(0), "pair": ints(2), "four": ints(4)}
    source = graph(
        f"({X}, float[batch, 1, 4] u) => (float[batch, later, 4] y) {{ sizes = Shape (x) "
        f"batches = Slice (sizes, start, unit) {nodes} v = CumSum (p, one) y = Add (v, u) }}",
        pads=ints(0, 2, 0, 0, 0, 0), far=np.float32(100), **given,
    )  # fmt: skip
    return make_step(source, name="padded", time_axes={"x": 1, "u": None})


@pytest.mark.parametrize(
    ("node", "name", "axes"),
    [
        ("y = Softmax <axis = 1> (x)", "x", {1}),
        ("y = LayerNormalization <axis = 1> (x, w)", "x", {1, 2}),
        ("y = MatMul (x, w)", "x", {2}),
        ("y = MatMul (w, x)", "x", {1}),
        ('y = Einsum <equation = "btf,nf->btn"> (x, w)', "x", {2}),
        ("y = InstanceNormalization (x, w, w)", "x", {1, 2}),
        ("y = ReduceSum (x, one)", "x", {1}),
        ("y = ReverseSequence (x, one)", "x", None),
        ("y = DynamicQuantizeLinear (x)", "x", {0, 1, 2}),
    ],
)
def test_an_operator_mixes_the_axes_that_it_runs_over(node: str, name: str, axes: set[int] | None) -> None:
    model = graph(f"(float[2, 3, 4] x) => (float[a, b, c] y) {{ {node} }}", one=ints(1), w=(4, 4))
    tables = {name: onnx.numpy_helper.to_array(tensor) for name, tensor in constants(model.graph).items()}
    shapes = {"x": (2, 3, 4), **{name: value.shape for name, value in tables.items()}}
    taken = {name: shapes[name] for name in model.graph.node[0].input}

    assert mixed_axes(model.graph.node[0], name, taken, tables.get) == axes


@pytest.mark.parametrize(
    ("inputs", "node"),
    [
        (X, "p = MeanVarianceNormalization <axes = [2]> (x)"),
        (X, "r = Resize (x, , scales) p = Slice (r, start, four, two)"),
        (f"{X}, int64[batch, time, 4] i", "p = GatherElements <axis = 2> (x, i)"),
        (f"{X}, float[batch, time, 1] c, float[batch, time, 1] s",
         "p = RotaryEmbedding <num_heads = 2> (x, c, s)"),
    ],
)  # fmt: skip
def test_an_operator_whose_rule_keeps_timesteps_apart_as_rows_is_stepped(inputs: str, node: str) -> None:
    source = graph(
        f"({inputs}) => (float[batch, time, 4] y) {{ {node} y = CumSum (p, one) }}", opset=23,
        one=np.int64(1), scales=np.array([1, 1, 2], np.float32), start=ints(0), four=ints(4), two=ints(2),
    )  # fmt: skip

    assert make_step(source, name="apart", time_axes=dict.fromkeys((v.name for v in source.graph.input), 1))
