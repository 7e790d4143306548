"""The rule of each operator, by a graph with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from stepwell_export.converted import check_model
from stepwell_export.graph.operators import RUNNING
from stepwell_export.streaming import convert
from stepwell_export.streaming.rules.attention_pooling import WEIGHTED
from stepwell_export.streaming.rules.convolution_and_pooling import WINDOW_POOLS
from stepwell_export.streaming.rules.reductions import GLOBAL_POOLS, PLACES, REDUCTIONS
from stepwell_export.streaming.rules.table import RULES
from tests.model_export.streaming.zoo_parts import X, graph


@dataclass(frozen=True, slots=True)
class OperatorCase:
    """A graph in which an operator runs over time.

    Attributes:
        nodes: From `x`, float32 of shape `(batch, time, 4)`, to `y`, in ONNX' text form; `OP` stands for the operator.
        weights: The shapes of float32 weights by name.
        integers: Integers by name, such as axes.
        length: The number of timesteps that has to be declared; None: any.
        opset: The version of its operators.
    """

    nodes: str
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    integers: Mapping[str, int | tuple[int, ...]] = field(default_factory=dict)
    length: int | None = None
    opset: int = 18


def _recurrent(gates: int) -> OperatorCase:
    weights = {"W": (1, 3 * gates, 4), "R": (1, 3 * gates, 3), "B": (1, 6 * gates)}
    return OperatorCase("t = Transpose <perm = [1, 0, 2]> (x) y = OP <hidden_size = 3> (t, W, R, B)", weights)


_CHANNELS = "c = Transpose <perm = [0, 2, 1]> (x)"
_BODY = """
    body (float[b, 3] h, float[b, 4] xi) => (float[b, 3] hn, float[b, 3] yi) {
        a = MatMul (xi, W) b = MatMul (h, R) s = Add (a, b) hn = Tanh (s) yi = Identity (hn)
    }
"""
_LOOP_BODY = """
    body (int64 i, bool go, float[b, 3] h) => (bool on, float[b, 3] hn, float[b, 3] yi) {
        xi = Gather <axis = 1> (x, i) a = MatMul (xi, W) b = MatMul (h, R) s = Add (a, b)
        hn = Tanh (s) yi = Identity (hn) on = Identity (go)
    }
"""
_ZEROS = "sizes = Shape (x) rows = Gather (sizes, zeroth) shape = Concat <axis = 0> (rows, three)"
_CELL = {"W": (4, 3), "R": (3, 3)}
_SIZES = {"zeroth": (0,), "three": (3,)}

CASES: dict[str, OperatorCase] = {
    "LSTM": _recurrent(4),
    "GRU": _recurrent(3),
    "RNN": _recurrent(1),
    **dict.fromkeys(RUNNING, OperatorCase("y = OP (x, time)", integers={"time": 1}, opset=26)),
    **dict.fromkeys(REDUCTIONS, OperatorCase("y = OP (x, axes)", integers={"axes": (1,)})),
    **dict.fromkeys(GLOBAL_POOLS, OperatorCase(f"{_CHANNELS} y = OP (c)")),
    **dict.fromkeys(PLACES, OperatorCase("y = OP <axis = 1, keepdims = 0> (x)")),
    "ReduceLogSumExp": OperatorCase("y = OP (x, axes)", integers={"axes": (1,)}),
    "TopK": OperatorCase(
        "p = Pad (x, pads) l = Slice (p, start, end, axes) y, at = OP <axis = 1> (l, axes)",
        integers={"pads": (0, 2, 0, 0, 0, 0), "start": (-3,), "end": (2**62,), "axes": (1,)},
    ),
    "Attention": OperatorCase(
        "q = MatMul (x, Q) k = MatMul (x, K) y = OP <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, k, x)",
        {"Q": (4, 4), "K": (4, 4)},
        length=20,
        opset=23,
    ),
    "Softmax": OperatorCase("w = OP <axis = 1> (x) v = Mul (w, x) y = ReduceSum (v, axes)", integers={"axes": (1,)}),
    "Conv": OperatorCase(f"{_CHANNELS} y = OP <pads = [2, 0]> (c, W)", {"W": (3, 4, 3)}),
    **dict.fromkeys(
        WINDOW_POOLS,
        OperatorCase(
            f"{_CHANNELS} p = Pad (c, pads) y = OP <kernel_shape = [3]> (p)", integers={"pads": (0, 0, 2, 0, 0, 0)}
        ),
    ),
    "ConvTranspose": OperatorCase(f"{_CHANNELS} y = OP <pads = [0, 2]> (c, W)", {"W": (4, 3, 3)}),
    "Pad": OperatorCase(
        "p = OP (x, pads) y = Slice (p, first, end, axes)",
        integers={"pads": (0, 1, 0, 0, 0, 0), "first": (0,), "end": (-1,), "axes": (1,)},
    ),
    "Slice": OperatorCase(
        "p = Pad (x, pads) y = OP (p, first, end, axes)",
        integers={"pads": (0, 1, 0, 0, 0, 0), "first": (0,), "end": (-1,), "axes": (1,)},
    ),
    "Concat": OperatorCase(
        "sizes = Shape (x) rows = Gather (sizes, first) shape = Concat <axis = 0> (rows, row) "
        "zeros = ConstantOfShape (shape) p = OP <axis = 1> (zeros, x) y = Slice (p, first, end, axes)",
        integers={"row": (1, 4), "axes": (1,), "first": (0,), "end": (-1,)},
    ),
    "Gather": OperatorCase("h = CumSum (x, time) y = OP <axis = 1> (h, place)", integers={"time": 1, "place": -1}),
    "Split": OperatorCase("h, g = OP <axis = 2, num_outputs = 2> (x) y = CumSum (h, time)", integers={"time": 1}),
    **dict.fromkeys(
        ("Expand", "Reshape"), OperatorCase("s = Shape (x) h = OP (x, s) y = CumSum (h, time)", integers={"time": 1})
    ),
    "Range": OperatorCase(
        "s = Shape (x) t = Gather (s, one) r = OP (zero, t, one) f = Cast <to = 1> (r) c = Unsqueeze (f, axes) "
        "y = Add (x, c)",
        integers={"one": 1, "zero": 0, "axes": (1,)},
    ),
    "Scan": OperatorCase(
        f"{_ZEROS} h0 = ConstantOfShape (shape) t = Transpose <perm = [1, 0, 2]> (x) "
        f"last, y = OP <num_scan_inputs = 1, body = {_BODY}> (h0, t)",
        _CELL,
        _SIZES,
    ),
    "Loop": OperatorCase(
        f"{_ZEROS} h0 = ConstantOfShape (shape) steps = Gather (sizes, one) yes = Constant <value = bool {{1}}> () "
        f"last, y = OP (steps, yes, h0) <body = {_LOOP_BODY}>",
        _CELL,
        {**_SIZES, "one": 1},
    ),
}


def test_each_operator_with_a_rule_has_a_graph_here_or_among_the_node_tests_of_onnx() -> None:
    tested_by_onnx = {"CausalConvWithState", "LinearAttention", "GroupQueryAttention", "MultiHeadAttention"}

    assert RULES.keys() - WEIGHTED.keys() <= CASES.keys() | tested_by_onnx


@pytest.mark.parametrize("operator", CASES)
def test_a_graph_with_the_operator_equals_itself_step_by_step(operator: str) -> None:
    case = CASES[operator]
    given: dict[str, Any] = {name: np.asarray(value, np.int64) for name, value in case.integers.items()}
    given |= case.weights
    nodes = case.nodes.replace("OP ", f"{operator} ")
    kind = "int64" if operator.startswith("Arg") else "float"
    model = graph(f"({X}) => ({kind}[] y) {{ {nodes} }}", opset=case.opset, **given)

    made = convert(model, name="case", length=case.length)

    assert any(node.op_type == operator for node in model.graph.node)
    assert made.manifest.states
    check_model(made)
