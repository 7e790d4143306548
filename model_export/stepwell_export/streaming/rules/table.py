"""Which rule steps which ONNX operator; others take each timestep by itself.

Operators with a state of their own come from `stepwell_export.graph.operators`.
"""

from __future__ import annotations

from stepwell_export.graph.operators import RUNNING, STATEFUL
from stepwell_export.streaming.rules.attention import attention
from stepwell_export.streaming.rules.attention_pooling import log_sum_exp, softmax
from stepwell_export.streaming.rules.convolution_and_pooling import WINDOW_POOLS, convolution, transposed
from stepwell_export.streaming.rules.elementwise import count_up, reshape
from stepwell_export.streaming.rules.loops import loop, scan
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
from stepwell_export.streaming.walk import Rule

RULES: dict[str, Rule] = {
    **{name: stateful_op for name, operator in STATEFUL.items() if operator.time_axis is not None},
    **dict.fromkeys(RUNNING, running),
    **dict.fromkeys((*REDUCTIONS, *GLOBAL_POOLS), reduction),
    **dict.fromkeys(PLACES, place_of_extreme),
    "ReduceLogSumExp": log_sum_exp,
    "TopK": top_k,
    **dict.fromkeys(("Attention", "GroupQueryAttention", "MultiHeadAttention"), attention),
    "Softmax": softmax,
    **dict.fromkeys(("Conv", *WINDOW_POOLS), convolution),
    "ConvTranspose": transposed,
    "Pad": pad,
    "Slice": slice_,
    "Concat": concat,
    "Gather": gather,
    "Split": split,
    **dict.fromkeys(("Expand", "Reshape"), reshape),
    "Range": count_up,
    "Scan": scan,
    "Loop": loop,
}
"""The rule of each operator that needs more than to be emitted as it is."""
