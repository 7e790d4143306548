"""Quotients by a sum over time: which factor of what is divided the sum is of, so that a running mean can be kept."""

from __future__ import annotations

import numpy as np
import onnx

from stepwell_export.streaming.rules.pooling.parts import emit_again, expanded, is_beside, part_of
from stepwell_export.streaming.rules.pooling.ranges import COPYING, range_of
from stepwell_export.streaming.rules.pooling.sums import summed_so_far
from stepwell_export.streaming.rules.reductions import is_whole, read_axes
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.tensor import TimeWeights
from stepwell_export.streaming.walk import StreamingWalk

_OVER_A_SUM = COPYING | {"Add", "Clip", "Div", "Max", "Reciprocal"}


def quotient_of_sums(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Div of `sum(x * w)` by `sum(w)`, sums over time of weights that are never negative: a weighted mean.

    Returns:
        Whether it was that, and is emitted.
    """
    top, bottom = node.input
    maker = walk.makers.get(top)
    if {walk.tensors[name].kind for name in node.input} != {"at_end"} or maker is None or maker.op_type != "ReduceSum":
        return False
    product = maker.input[0]
    if not is_whole(walk, product) or walk.facts.time_axis(product) not in read_axes(walk, maker):
        return False
    weight, values = split(walk, product, bottom)
    if not weight or not values:
        return False
    dims = walk.facts.dims(product)
    weight_part, values_part = (part_of(walk, factor, len(dims)) for factor in (weight, values))
    weights = TimeWeights(
        weight=weight_part, values=values_part, divisor=divisor_of(walk, bottom), bounds=range_of(walk, weight)
    )
    total = expanded(walk, summed_so_far(walk, plain(node.name), weights, walk.dtype(product)), dims)
    (reduced,) = emit_again(walk, maker, total.step)
    walk.set_output(node, node.output[0], walk.emit_like(node, 0, i0=reduced).output[0], "at_end")
    return True


def split(walk: StreamingWalk, name: str, total: str) -> tuple[str, str]:
    """Return the factor of a tensor that `total` is the sum over time of, and the other one.

    Either is empty where there is none. Only a factor that is never negative counts: a sum of others may be near zero.
    """
    summed = divisor_of(walk, total)
    if is_weight(walk, name, summed):
        return name, ""
    maker = walk.makers.get(name)
    if maker is not None and maker.op_type == "Mul":
        for weight, values in (maker.input, maker.input[::-1]):
            if is_weight(walk, weight, summed) and is_beside(walk, values):
                return weight, values
    return "", name


def is_weight(walk: StreamingWalk, name: str, summed: str) -> bool:
    """Whether a tensor has the numbers of `summed`, and none of them is negative."""
    is_summed = bool(summed) and source(walk, name) == summed and np.dtype(walk.dtype(name)).kind == "f"
    return is_summed and is_whole(walk, name) and range_of(walk, name)[0] >= 0


def divisor_of(walk: StreamingWalk, name: str) -> str:
    """Return what a tensor has the sum over time of, but for small constants; empty: it has none."""
    while (maker := walk.makers.get(name)) is not None:
        if maker.op_type == "ReduceSum":
            summed = maker.input[0]
            return source(walk, summed) if walk.facts.time_axis(summed) in read_axes(walk, maker) else ""
        rest = [given for given in maker.input if given and walk.tensors[given].kind != "constant"]
        if maker.op_type not in _OVER_A_SUM or len(rest) != 1:
            return ""
        name = rest[0]
    return ""


def source(walk: StreamingWalk, name: str) -> str:
    """Return the tensor that another one is a copy of, in another layout or type."""
    while (maker := walk.makers.get(name)) is not None and maker.op_type in COPYING:
        name = maker.input[0]
    return name
