"""Which rule steps which ONNX operator, each with a graph that the tests step; others take each timestep by itself.

Operators with a state of their own, and their graphs, come from `stepwell_export.graph.operators`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from stepwell_export.graph.operators import RUNNING, STATEFUL, OperatorCase
from stepwell_export.streaming.rules.attention import attention
from stepwell_export.streaming.rules.elementwise import by_timestep, count_up, reshape
from stepwell_export.streaming.rules.loops import loop, scan
from stepwell_export.streaming.rules.pooling import WEIGHTED, log_sum_exp, softmax, with_weights
from stepwell_export.streaming.rules.recurrent import running, stateful_op
from stepwell_export.streaming.rules.reductions import (
    GLOBAL_POOLS,
    PLACES,
    REDUCTIONS,
    place_of_extreme,
    reduction,
    top_k,
)
from stepwell_export.streaming.rules.slicing import concat, gather, pad, slice_, split
from stepwell_export.streaming.rules.window import WINDOW_POOLS, convolution, transposed
from stepwell_export.streaming.walk import Rule, StepTensor

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


class StepRule(NamedTuple):
    """How an operator is stepped.

    Attributes:
        rule: Emits its part of the step graph.
        case: A graph with it; None: the node tests of ONNX have one.
    """

    rule: Rule
    case: OperatorCase | None


def _each(operators: Iterable[str], rule: Rule, case: OperatorCase | None) -> dict[str, StepRule]:
    return {name: StepRule(rule, case) for name in operators}


TABLE: Mapping[str, StepRule] = {
    **{name: StepRule(stateful_op, entry.case) for name, entry in STATEFUL.items() if entry.time_axis is not None},
    **{name: StepRule(running, entry.case) for name, entry in RUNNING.items()},
    **_each(REDUCTIONS, reduction, OperatorCase("y = OP (x, axes)", integers={"axes": (1,)})),
    **_each(GLOBAL_POOLS, reduction, OperatorCase(f"{_CHANNELS} y = OP (c)")),
    **_each(PLACES, place_of_extreme, OperatorCase("y = OP <axis = 1, keepdims = 0> (x)")),
    "ReduceLogSumExp": StepRule(log_sum_exp, OperatorCase("y = OP (x, axes)", integers={"axes": (1,)})),
    "TopK": StepRule(
        top_k,
        OperatorCase(
            "p = Pad (x, pads) l = Slice (p, start, end, axes) y, at = OP <axis = 1> (l, axes)",
            integers={"pads": (0, 2, 0, 0, 0, 0), "start": (-3,), "end": (2**62,), "axes": (1,)},
        ),
    ),
    "Attention": StepRule(
        attention,
        OperatorCase(
            "q = MatMul (x, Q) k = MatMul (x, K) y = OP <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, k, x)",
            {"Q": (4, 4), "K": (4, 4)}, length=20, opset=23,
        ),
    ),
    **_each(("GroupQueryAttention", "MultiHeadAttention"), attention, None),
    "Softmax": StepRule(
        softmax, OperatorCase("w = OP <axis = 1> (x) v = Mul (w, x) y = ReduceSum (v, axes)", integers={"axes": (1,)})
    ),
    "Conv": StepRule(convolution, OperatorCase(f"{_CHANNELS} y = OP <pads = [2, 0]> (c, W)", {"W": (3, 4, 3)})),
    **_each(
        WINDOW_POOLS, convolution,
        OperatorCase(f"{_CHANNELS} p = Pad (c, pads) y = OP <kernel_shape = [3]> (p)",
                     integers={"pads": (0, 0, 2, 0, 0, 0)}),
    ),
    "ConvTranspose": StepRule(
        transposed, OperatorCase(f"{_CHANNELS} y = OP <pads = [0, 2]> (c, W)", {"W": (4, 3, 3)})
    ),
    "Pad": StepRule(
        pad,
        OperatorCase("p = OP (x, pads) y = Slice (p, first, end, axes)",
                     integers={"pads": (0, 1, 0, 0, 0, 0), "first": (0,), "end": (-1,), "axes": (1,)}),
    ),
    "Slice": StepRule(
        slice_,
        OperatorCase("p = Pad (x, pads) y = OP (p, first, end, axes)",
                     integers={"pads": (0, 1, 0, 0, 0, 0), "first": (0,), "end": (-1,), "axes": (1,)}),
    ),
    "Concat": StepRule(
        concat,
        OperatorCase(
            "sizes = Shape (x) rows = Gather (sizes, first) shape = Concat <axis = 0> (rows, row) "
            "zeros = ConstantOfShape (shape) p = OP <axis = 1> (zeros, x) y = Slice (p, first, end, axes)",
            integers={"row": (1, 4), "axes": (1,), "first": (0,), "end": (-1,)},
        ),
    ),
    "Gather": StepRule(
        gather, OperatorCase("h = CumSum (x, time) y = OP <axis = 1> (h, place)", integers={"time": 1, "place": -1})
    ),
    "Split": StepRule(split, OperatorCase("h, g = OP <axis = 2, num_outputs = 2> (x) y = CumSum (h, time)",
                                          integers={"time": 1})),
    **_each(("Expand", "Reshape"), reshape, OperatorCase(
        "s = Shape (x) h = OP (x, s) y = CumSum (h, time)", integers={"time": 1})),
    "Range": StepRule(
        count_up,
        OperatorCase(
            "s = Shape (x) t = Gather (s, one) r = OP (zero, t, one) f = Cast <to = 1> (r) c = Unsqueeze (f, axes) "
            "y = Add (x, c)",
            integers={"one": 1, "zero": 0, "axes": (1,)},
        ),
    ),
    "Scan": StepRule(
        scan,
        OperatorCase(
            f"{_ZEROS} h0 = ConstantOfShape (shape) t = Transpose <perm = [1, 0, 2]> (x) "
            f"last, y = OP <num_scan_inputs = 1, body = {_BODY}> (h0, t)",
            _CELL, _SIZES,
        ),
    ),
    "Loop": StepRule(
        loop,
        OperatorCase(
            f"{_ZEROS} h0 = ConstantOfShape (shape) steps = Gather (sizes, one) yes = Constant <value = bool {{1}}> () "
            f"last, y = OP (steps, yes, h0) <body = {_LOOP_BODY}>",
            _CELL, {**_SIZES, "one": 1},
        ),
    ),
}  # fmt: skip
"""The rule of each operator."""

RULES: dict[str, Rule] = {name: entry.rule for name, entry in TABLE.items()}
RULES |= {name: with_weights(name, RULES.get(name, by_timestep)) for name in WEIGHTED}
"""Operators that need more than to be emitted as they are."""


def takes_refused(operator: str, tensor: StepTensor) -> bool:
    """Whether an operator's rule takes what is refused for others: a weight over time."""
    return tensor.weights is not None and operator in WEIGHTED
