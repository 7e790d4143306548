"""Which rule steps which ONNX operator; one that is not here takes each timestep by itself."""

from __future__ import annotations

from stepwell_export.graph.operators import RUNNING, STATEFUL
from stepwell_export.streaming.rules.attention import attention
from stepwell_export.streaming.rules.elementwise import by_timestep, count_up, reshape
from stepwell_export.streaming.rules.loops import loop, scan
from stepwell_export.streaming.rules.pooling.factors import softmax
from stepwell_export.streaming.rules.pooling.sums import log_sum_exp
from stepwell_export.streaming.rules.pooling.table import WEIGHTED, with_weights
from stepwell_export.streaming.rules.recurrent import running, stateful_op
from stepwell_export.streaming.rules.reductions import PLACES, REDUCTIONS, place_of_extreme, reduction, top_k
from stepwell_export.streaming.rules.slicing import concat, gather, pad, slice_, split
from stepwell_export.streaming.rules.variances import DEVIATING, with_deviations
from stepwell_export.streaming.rules.window import convolution, transposed
from stepwell_export.streaming.tensor import StepTensor
from stepwell_export.streaming.walk import Rule

RULES: dict[str, Rule] = {
    **dict.fromkeys(REDUCTIONS, reduction),
    **dict.fromkeys(PLACES, place_of_extreme),
    **{name: stateful_op for name, operator in STATEFUL.items() if operator.time_axis is not None},
    **dict.fromkeys(RUNNING, running),
    "Attention": attention,
    "AveragePool": convolution,
    "Concat": concat,
    "Conv": convolution,
    "ConvTranspose": transposed,
    "Expand": reshape,
    "GroupQueryAttention": attention,
    "Gather": gather,
    "Loop": loop,
    "LpPool": convolution,
    "MaxPool": convolution,
    "MultiHeadAttention": attention,
    "Pad": pad,
    "Range": count_up,
    "ReduceLogSumExp": log_sum_exp,
    "Reshape": reshape,
    "Scan": scan,
    "Slice": slice_,
    "LogSoftmax": softmax,
    "Softmax": softmax,
    "Split": split,
    "TopK": top_k,
}
RULES |= {name: with_weights(name, RULES.get(name, by_timestep)) for name in WEIGHTED}
RULES |= {name: with_deviations(RULES.get(name, by_timestep)) for name in DEVIATING}
"""Operators that need more than to be emitted as they are."""


def takes_refused(operator: str, tensor: StepTensor) -> bool:
    """Whether an operator's rule takes what is refused for others: a weight over time, a difference from a mean."""
    weighs, deviates = tensor.weights is not None, tensor.deviation is not None
    return (weighs and operator in WEIGHTED) or (deviates and operator in DEVIATING)
