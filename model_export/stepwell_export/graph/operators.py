"""The ONNX operators that carry states, that only move data, that work element by element, that reduce: the one table.

A new operator with a state needs an entry here and nothing else, or a rule in `stepwell_export.streaming.rules.table`
if `stateful_op` and `running` do not fit. The tests step a graph with each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class StatefulOperator:
    """Where an operator has its states.

    Attributes:
        states: The output with the next state, by the input with the state; both counted from 0.
        time_axis: The axis of its first input along which it runs; None: it runs along none, as a cache of keys and
            values.
        timed: Inputs that have a time axis.
        lengths: The input with the lengths of the sequences; None: there is none.
        labels: What each of the states is called behind the node's name.
    """

    states: Mapping[int, int]
    time_axis: int | None = None
    timed: tuple[int, ...] = (0,)
    lengths: int | None = None
    labels: tuple[str, ...] = ("state",)


STATEFUL: Final[Mapping[str, StatefulOperator]] = {
    "LSTM": StatefulOperator({5: 1, 6: 2}, time_axis=0, lengths=4, labels=("h", "c")),
    "GRU": StatefulOperator({5: 1}, time_axis=0, lengths=4, labels=("h",)),
    "RNN": StatefulOperator({5: 1}, time_axis=0, lengths=4, labels=("h",)),
    "CausalConvWithState": StatefulOperator({3: 1}, time_axis=2),
    "LinearAttention": StatefulOperator({3: 1}, time_axis=1, timed=(0, 1, 2, 4, 5)),
    "Attention": StatefulOperator({4: 1, 5: 2}),
    "TensorScatter": StatefulOperator({0: 0}),
    "GroupQueryAttention": StatefulOperator({3: 1, 4: 2}),
    "MultiHeadAttention": StatefulOperator({6: 1, 7: 2}),
}
"""Source: the specifications; the last two are onnxruntime's own. Scan and Loop have theirs in their bodies."""


@dataclass(frozen=True, slots=True)
class RunningOperator:
    """What an operator makes of all timesteps so far.

    Attributes:
        combine: The operator that adds one timestep to what the ones before it make.
        start: What none make.
        label: What the state is called behind the node's name.
    """

    combine: str
    start: float
    label: str


RUNNING: Final[Mapping[str, RunningOperator]] = {
    "CumSum": RunningOperator("Add", 0, "sum"),
    "CumProd": RunningOperator("Mul", 1, "product"),
}
"""Operators whose second input is the axis that they run along, with the attributes `exclusive` and `reverse`."""

RNN: Final = frozenset(name for name, operator in STATEFUL.items() if operator.lengths is not None)
"""LSTM, GRU and RNN, which have the same inputs and outputs."""

RESHAPING: Final = frozenset({"Identity", "Squeeze", "Unsqueeze", "Transpose", "Reshape", "Flatten"})
"""Operators that give the same numbers in another shape or order."""

PICKING: Final = frozenset({"Slice", "Split", "Gather"})
"""Operators that give some of the numbers of their first input."""

UNARY: Final = frozenset({
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu", "Cos", "Cosh",
    "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu",
})  # fmt: skip
"""Operators that make of each element of their first input one element at the same place."""

BROADCASTING: Final = frozenset({
    "Add", "And", "BitShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "CastLike", "Clip", "Div", "Equal", "Greater",
    "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum",
    "Where", "Xor",
})  # fmt: skip
"""Operators that make of elements at the same place of several inputs one element there."""

ELEMENTWISE: Final = UNARY | BROADCASTING

REDUCTIONS: Final = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd",
    "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
