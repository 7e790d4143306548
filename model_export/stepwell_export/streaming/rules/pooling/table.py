"""Which rule an operator has for a value that is weighed over time."""

from __future__ import annotations

from collections.abc import Callable

import onnx

from stepwell_export.graph.nodes import uses
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.streaming.rules.pooling.factors import by_the_whole, difference, exponential, masked, product
from stepwell_export.streaming.rules.pooling.layouts import joint, picked, refolded, repeated, transposed
from stepwell_export.streaming.rules.pooling.parts import expanded
from stepwell_export.streaming.rules.pooling.products import einsum, matmul
from stepwell_export.streaming.rules.pooling.quotients import quotient_of_sums
from stepwell_export.streaming.rules.pooling.sums import summed_so_far
from stepwell_export.streaming.rules.reductions import count_so_far, read_axes
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.tensor import StepTensor
from stepwell_export.streaming.walk import Rule, StreamingWalk


def with_weights(operator: str, otherwise: Rule) -> Rule:
    """Return the rule of an operator that may take a weight over time; `otherwise` is its rule without one."""

    def rule(walk: StreamingWalk, node: onnx.NodeProto) -> None:
        waiting = list(dict.fromkeys(name for name in uses(node) if walk.tensors[name].weights is not None))
        if waiting:
            if (len(waiting) > 1 and operator != "Concat") or not WEIGHTED[operator](walk, node, waiting[0]):
                walk.need(*waiting)
            return
        if operator == "Div" and quotient_of_sums(walk, node):
            return
        try:
            otherwise(walk, node)
        except RefusedModelError as exc:
            if (weights := by_the_whole(walk, node)) is None:
                raise
            walk.tensors[node.output[0]] = StepTensor("refused", error=exc, weights=weights)

    return rule


def _sum(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> bool:
    """ReduceSum or ReduceMean over time."""
    weights, dims = walk.tensors[name].weights, walk.facts.dims(name)
    if weights is None or weights.is_log or walk.facts.time_axis(name) not in read_axes(walk, node):
        return False
    total = expanded(walk, summed_so_far(walk, plain(node.name), weights, walk.dtype(name)), dims)
    made = walk.emit_like(node, 0, i0=total.step).output[0]
    if node.op_type == "ReduceMean":
        out = node.output[0]
        made = walk.graph.op("Div", made, count_so_far(walk, walk.facts.dims(out), walk.dtype(out)))
    walk.set_output(node, node.output[0], made, "at_end")
    return True


WEIGHTED: dict[str, Callable[[StreamingWalk, onnx.NodeProto, str], bool]] = {
    **dict.fromkeys(("Mul", "Div"), product),
    **dict.fromkeys(("Cast", "Dropout", "Expand", "Identity", "Tile"), repeated),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), refolded),
    **dict.fromkeys(("Gather", "Slice", "Split"), picked),
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _sum),
    "Concat": joint, "Einsum": einsum, "Exp": exponential, "MatMul": matmul, "Sub": difference,
    "Transpose": transposed, "Where": masked,
}  # fmt: skip
"""What operators make of a weight over time; False: nothing that a step can have."""
