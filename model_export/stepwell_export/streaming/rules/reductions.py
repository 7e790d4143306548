"""Sums, means, products, extremes and their places over time: the result for the timesteps so far.

Before and after:

    x (B, T, 4)                            x (B, 1, 4)                  mean (B, 4)
       | ReduceMean over T                     | ReduceMean over one       |
       |                              ->       mean' = mean + (now - mean) / count
    y (B, 4)                               y (B, 4): mean', which the next timestep starts from
    ReduceSum                         ->   sum' = sum + now; ReduceMax: Max (largest, now)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.known_values import reshaped
from stepwell_export.streaming.rules.elementwise import pointwise
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.walk import SORTED_FIX, AtEnd, PerStep, Rule, StreamingWalk

_JOINS = {
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare"), "Add"),
    "ReduceMax": "Max", "ReduceMin": "Min", "ReduceProd": "Mul",
}  # fmt: skip
GLOBAL_POOLS = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}
"""Operators that reduce all axes behind the channels, and what they reduce them by."""

_LARGEST = {"ReduceMax", "ReduceLogSumExp", "ArgMax"}

PLACES = ("ArgMax", "ArgMin")
"""The operators that `place_of_extreme` is the rule of."""

REDUCTIONS = tuple(_JOINS)
"""The operators that `reduction` is the rule of, beside global pooling."""


def over_time(rule: Rule) -> Rule:
    """Return the rule of a reduction over any axes; `rule` is for the timesteps from the beginning of a sequence on."""

    def over_any_axes(walk: StreamingWalk, node: onnx.NodeProto) -> None:
        name, is_over_time = node.input[0], _is_over_time(walk, node)
        tensor = walk.tensors[name]
        if is_over_time and isinstance(tensor, PerStep) and tensor.looks_ahead_by:
            walk.aligned(name)  # raises the refusal of what looks ahead
        if _is_of_the_last(walk, node):
            _of_the_last(walk, node)
        elif is_over_time and begins_with_the_sequence(walk, name):
            rule(walk, node)
        else:
            pointwise(walk, node)

    return over_any_axes


@over_time
def reduction(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Sums, means, products, extremes and global pooling: a running one.

    Its answer counts after the last timestep, as that of a recurrence without its sequence does. Sums of integers below
    64 bits are carried in 64, and limited at the end, as ONNX Runtime does for a whole sequence.

    Raises:
        RefusedModelError: It multiplies integers.
    """
    name, out = node.input[0], node.output[0]
    offset = walk.timed_offset(name)
    kind, dtype = GLOBAL_POOLS.get(node.op_type, node.op_type), walk.dtype(name)
    if kind in {"ReduceL2", "ReduceProd", "ReduceSumSquare"} and np.dtype(dtype).kind in "iu":
        raise walk.refuse(
            node,
            f"multiplies integers of {dtype} over time, and what is more than the type holds depends on the runtime",
            "Cast them to float in front of it.",
        )
    is_wide = _JOINS[kind] == "Add" and np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize < 8
    wide = walk.graph.op("Cast", walk.operand(name, offset, node), to=onnx.TensorProto.INT64) if is_wide else ""
    given, dtype = dtype, "int64" if is_wide else dtype
    made = walk.emit_like(node, offset, **({"i0": wide} if is_wide else {}))
    if node.op_type == "ReduceL2":  # the root of a sum of squares
        made.op_type = "ReduceSumSquare"
    now, dims = made.output[0], walk.facts.dims(out)
    label = f"{plain(node.name)}.{kind.removeprefix('Reduce').lower()}"
    state, spec = walk.graph.state_like(label, dims, dtype, _before(kind, dims, dtype))
    is_mean, is_float = kind == "ReduceMean", np.dtype(dtype).kind == "f"
    count = count_so_far(walk, dims, dtype, offset) if is_mean else ""
    if is_mean and is_float:  # a sum would lose digits in a long stream
        now = walk.graph.op("Div", walk.graph.op("Sub", now, state), count)
    joined = walk.graph.op(_JOINS[kind], state, now)
    if offset < 0:
        joined = walk.graph.op("Where", walk.has_seen(-offset, dims), joined, state)
    walk.graph.next_state_like(spec, joined, dims)
    result = walk.graph.op("Div", joined, count) if is_mean and not is_float else joined
    result = walk.graph.op("Sqrt", result) if kind == "ReduceL2" else result
    if is_wide:
        ends = (walk.graph.constant(end, "int64") for end in (np.iinfo(given).min, np.iinfo(given).max))
        limited = walk.graph.op("Clip", result, *ends)
        result = walk.graph.op("Cast", limited, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(given)))
    walk.set_at_end(node, out, result)


@over_time
def place_of_extreme(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """ArgMax, ArgMin: the place of the extreme so far, which is a state beside it."""
    graph, attrs, name, out = walk.graph, attributes(node), node.input[0], node.output[0]
    offset, dims, dtype = walk.timed_offset(name), walk.facts.dims(out), walk.dtype(name)
    kind, label = node.op_type.replace("Arg", "Reduce"), plain(node.name)
    now = reshaped(graph, walk.operand(name, offset), dims)
    before, spec = graph.state_like(f"{label}.{_JOINS[kind].lower()}", dims, dtype, _before(kind, dims, dtype))
    place, place_spec = graph.state_like(f"{label}.place", dims, "int64")
    is_new = graph.op("Greater", now, before) if kind == "ReduceMax" else graph.op("Less", now, before)
    if attrs.get("select_last_index"):
        is_new = graph.op("Or", is_new, graph.op("Equal", now, before))
    extreme = graph.op(_JOINS[kind], before, now)  # as in `reduction`, so that both of one tensor are one state
    if offset < 0:
        begun = walk.has_seen(-offset, dims)
        is_new, extreme = graph.op("And", is_new, begun), graph.op("Where", begun, extreme, before)
    graph.next_state_like(spec, extreme, dims)
    place = graph.op("Where", is_new, graph.count_like(dims, offset), place)
    graph.next_state_like(place_spec, place, dims)
    walk.set_at_end(node, out, place)


def top_k(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """TopK of features or of a window: as it is.

    Raises:
        RefusedModelError: It sorts the timesteps of the sequence.
    """
    name = node.input[0]
    axis = int(attributes(node).get("axis", -1)) % len(walk.facts.dims(name))
    if walk.timed(node, [name]) and walk.facts.time_axis(name) == axis:
        raise walk.refuse(node, "sorts the timesteps of the whole sequence", SORTED_FIX)
    pointwise(walk, node)


def _is_of_the_last(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Whether a node reduces the last timesteps of a sequence, a fixed number of them."""
    tensor = walk.tensors[node.input[0]]
    return isinstance(tensor, AtEnd) and tensor.keys in read_axes(walk, node)


def _of_the_last(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Reduce the last timesteps of a sequence: at the beginning of a stream, as many of them as there are."""
    name, out = node.input[0], node.output[0]
    tensor, dims, dtype = walk.tensors[name], walk.facts.dims(name), walk.dtype(name)
    assert isinstance(tensor, AtEnd)
    kind, graph, offset = GLOBAL_POOLS.get(node.op_type, node.op_type), walk.graph, tensor.offset
    step, neutral, is_padded = tensor.step, _neutral(kind, dtype), offset >= tensor.window - 1
    # a slice has zeros before the first timestep
    if not is_padded and (neutral or walk.makers[name].op_type != "Slice"):
        shape = [size if axis == tensor.keys else 1 for axis, size in enumerate(walk.facts.value(name).shape)]
        ages = np.arange(tensor.window - 1, -1, -1).reshape(shape) - offset
        early = graph.op("Less", graph.count_like(dims), graph.constant(ages))
        step = graph.op("Where", early, graph.constant(neutral), step)
    result = walk.emit_like(node, None, i0=step).output[0]
    if not is_padded and kind in {"ReduceMean", *PLACES}:
        most = graph.constant(tensor.window, walk.dtype(out))
        count = graph.op("Min", count_so_far(walk, walk.facts.dims(out), walk.dtype(out), offset), most)
        if kind == "ReduceMean":
            result = graph.op("Mul", result, graph.op("Div", most, count))
        else:  # the first of equal ones may be a neutral number in front of the sequence
            result = graph.op("Max", graph.op("Sub", result, graph.op("Sub", most, count)), graph.constant(0, "int64"))
    walk.set_at_end(node, out, result)


def _is_over_time(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Whether a node reduces the timesteps of a sequence."""
    name = node.input[0]
    return isinstance(walk.tensors[name], PerStep) and walk.facts.time_axis(name) in read_axes(walk, node)


def _before(kind: str, dims: Sequence[Dim], dtype: str) -> Array | None:
    """Return what a reduction begins with, one row, which changes nothing: a state holds finite numbers only."""
    if _JOINS[kind] == "Add":
        return None
    before: Array = np.nan_to_num(np.full([max(dim.at_one_step()) for dim in dims], _neutral(kind, dtype)))
    return before


def _neutral(kind: str, dtype: str) -> Array:
    """Return the number that changes nothing in a reduction; infinity for extremes of floats."""
    is_float = np.dtype(dtype).kind == "f"
    most = np.inf if is_float else np.iinfo(dtype).max
    least = -np.inf if is_float else np.iinfo(dtype).min
    neutral = {"ReduceMin": most, "ArgMin": most, "ReduceProd": 1}
    return np.asarray(least if kind in _LARGEST else neutral.get(kind, 0), dtype)


def is_whole(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor has one element for each timestep of the sequence, from the first one on."""
    return walk.offset(name) == 0 and begins_with_the_sequence(walk, name)


def begins_with_the_sequence(walk: StreamingWalk, name: str) -> bool:
    """Whether a timed tensor has one element for each timestep, but for some of the first."""
    axis, offset = walk.facts.time_axis(name), walk.offset(name)
    dim = walk.facts.dims(name)[axis or 0]
    one_each = dim.elements_per_step == 1 and not dim.both
    return one_each and offset is not None and offset <= 0 and walk.facts.length_delta(name) == offset


def read_axes(walk: StreamingWalk, node: onnx.NodeProto) -> list[int]:
    """Return the axes that a node reduces; none where they are computed on the way."""
    rank = len(walk.facts.dims(node.input[0]))
    if node.op_type in GLOBAL_POOLS:
        return list(range(2, rank))
    attrs = attributes(node)
    if node.op_type in PLACES:
        return [int(attrs.get("axis", 0)) % rank]
    axes = None
    if len(node.input) > 1 and node.input[1]:
        known = walk.known(node.input[1])
        if known is None:
            return []
        axes = np.reshape(known[0], -1)
    if axes is None or not len(axes):
        return [] if attrs.get("noop_with_empty_axes") else list(range(rank))
    return [int(axis) % rank for axis in axes]


def count_so_far(walk: StreamingWalk, dims: Sequence[Dim], dtype: str, offset: int = 0) -> str:
    """Return how many timesteps a tensor has had until now, at least 1, in a shape that broadcasts to its rows.

    Args:
        walk: The walk.
        dims: The axes of what it broadcasts to.
        dtype: NumPy name of the type.
        offset: How much later than the sequence it begins, 0 or negative.
    """
    graph = walk.graph
    count = graph.count_like(dims, 1 + offset)
    if offset:
        count = graph.op("Max", count, graph.ints([1]))
    return graph.op("Cast", count, to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
