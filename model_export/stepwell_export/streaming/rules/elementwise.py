r"""Nodes that see one timestep at a time: emitted as they are, with shapes for one timestep.

Before and after:

    x (B, T, 4)                            x (B, 1, 4)
       | Reshape to (B, T, 2, 2)      ->      | Reshape to (B, 1, 2, 2)
       | Tanh, MatMul, ...                    | the same nodes
    y (B, T, 2, 5)                         y (B, 1, 2, 5)
    Range (0, T)                      ->   a state that counts the timesteps

What is computed from the number of timesteps, such as what a sum over time is divided by, is of those so far:

    x (B, T, 4) ----> Shape, Gather: T     x (B, 1, 4)   sum     count of timesteps
       | ReduceSum      | Cast                   \     /           | Cast
        \______________/              ->          Add             /
               Div                                 \_____________/
             y (B, 4)                                 Div: y (B, 4)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from stepwell_export.graph.nodes import all_graphs, attributes, renamed, subgraphs, uses
from stepwell_export.graph.operators import RESHAPING
from stepwell_export.streaming.axes.dependence import EACH_BY_ITSELF, ELEMENTWISE, kind_of
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.known_values import shape_at_one_step, shape_to_reshape
from stepwell_export.streaming.walk import AtEnd, ByPosition, Known, PerStep, Rule, Static, StreamingWalk, why
from stepwell_export.structure.rows import rows_of_node

_IN_BODIES = ELEMENTWISE | {"Constant", "ConstantOfShape", "Expand", "If", "Loop", "Shape", "Size"}
"""Operators of bodies that take each element by itself, or make others of sizes."""
_REFOLDING = {"Reshape", "Flatten"}
_WHOLE_FIX = (
    "Every timestep of a stream would change it for all timesteps before. Train the model with what is known at each "
    "timestep: the first one or the one before, a cumulative sum, the mean or extreme of those so far. If a sum over "
    "time follows: write weights that are divided by their sum as a softmax over time of scores (-1e9 where nothing "
    "counts), and a variance as the mean of the squares less the square of the mean; for other moments, "
    "or take the last n timesteps, x[:, -n:], with n - 1 timesteps of zeros padded in front."
)


def pointwise(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Emit a node as it is."""
    offset = joint_offset(walk, node)
    if (check := _CHECKS.get(node.op_type)) is not None:
        check(walk, node)
    so_far = lengths_so_far(walk, node) if node.op_type in _COMPUTING else {}
    _resolve_fixed(walk, node, offset, walk.emit_like(node, offset, **so_far))


def by_timestep(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Emit a node without a rule of its own as it is, where each timestep takes its own alone.

    Raises:
        RefusedModelError: It mixes timesteps, or it is not known whether it does.
    """
    check_mixed(walk, node)
    pointwise(walk, node)


def joint_offset(walk: StreamingWalk, node: onnx.NodeProto) -> int | None:
    """Return the offset at which all timed inputs of a node can be taken; None: it has none.

    Raises:
        RefusedModelError: It also takes what is known after the last timestep only.
    """
    timed = walk.timed(node)
    last = [name for name in uses(node) if isinstance(walk.tensors[name], AtEnd)]
    if timed and last:
        reason = f"needs {last[0]!r}, which is known after the last timestep only, at every timestep"
        raise walk.refuse(node, reason, _WHOLE_FIX)
    offsets = [offset for name in timed if (offset := walk.offset(name)) is not None]
    if any(_repeats_first(walk, name) for name in timed) and not _is_edge(walk, node):
        # what stands in front is the first timestep in a part of it alone: each part is delayed by itself
        offsets += [
            max(walk.facts.length_delta(name), 0) for name in node.output[:1] if walk.facts.time_axis(name) is not None
        ]
    return min(offsets, default=None)


def _is_edge(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Whether a node takes only what has the first timestep in front, as often, so that its output has as well."""
    timed = walk.timed(node)
    others = {type(walk.tensors[name]) for name in uses(node)} - {Known, Static, PerStep}
    return all(_repeats_first(walk, name) for name in timed) and len(set(map(walk.offset, timed))) == 1 and not others


def _repeats_first(walk: StreamingWalk, name: str) -> bool:
    tensor = walk.tensors[name]
    return isinstance(tensor, PerStep) and tensor.repeats_first


def _resolve_fixed(walk: StreamingWalk, node: onnx.NodeProto, offset: int | None, made: onnx.NodeProto) -> None:
    """Set the outputs of a node that was emitted as it is, as `made`, on inputs at an offset."""
    kinds = {type(walk.tensors[name]) for name in uses(node)}
    position = any(walk.tensors[name].position for name in uses(node))
    repeats_first = any(_repeats_first(walk, name) for name in uses(node)) and _is_edge(walk, node)
    for name, step in zip(node.output, made.output, strict=True):
        if not name:
            continue
        if isinstance(walk.facts.value(name), list):
            walk.set_per_step(node, name, step, offset)
            continue
        times = [axis for axis, dim in enumerate(walk.facts.dims(name)) if dim.has_time]
        if AtEnd in kinds:
            if times:
                reason = "spreads what is known after the last timestep only over all timesteps"
                raise walk.refuse(node, reason, _WHOLE_FIX)
            walk.set_at_end(node, name, step)
        elif offset is None and ByPosition in kinds and len(times) == 1:
            dim = walk.facts.dims(name)[times[0]]
            if dim.extra or (name in walk.from_sizes and dim.steps == 1):  # else it would be by position itself
                raise walk.refuse(node, "makes of positions what depends on the number of timesteps")
            walk.set_per_step(node, name, step, 0)
        elif offset is None and PerStep not in kinds:
            _settle_untimed(walk, node, name, step, times)
        else:
            if not times:
                raise walk.refuse(node, "takes all timesteps of the sequence together")
            if len(times) > 1:
                raise walk.refuse(
                    node, "compares every timestep with every other, as attention without a fixed window does"
                )
            _check_length(walk, node, name)
            walk.set_per_step(node, name, step, offset, repeats_first=repeats_first)
        if position:
            walk.mark_position(name)


def reshape(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Reshape, Expand: to the shape that the result has at one timestep."""
    offset = joint_offset(walk, node)
    dims = walk.facts.dims(node.output[0])
    if any(dim.steps.denominator > 1 or dim.both.denominator > 1 for dim in dims):
        raise walk.refuse(node, "puts several timesteps into one")
    find_shape = shape_to_reshape if node.op_type == "Reshape" else shape_at_one_step
    shape = find_shape(walk.graph, dims)
    _resolve_fixed(walk, node, offset, walk.emit_like(node, offset, i1=shape))


def count_up(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Range over the timesteps: a state that counts them."""
    known = [walk.known(name) for name in node.input]
    if any(parts is None for parts in known) or any((part != known[k][0]).any() for k in (0, 2) for part in known[k]):
        pointwise(walk, node)
        return
    name = node.output[0]
    start, _, delta = (walk.facts.value(given) for given in node.input)
    dtype = walk.facts.value(name).dtype
    offset = max(walk.facts.length_delta(name), 0)
    graph = walk.graph
    place = graph.op("Add", graph.position(), graph.ints([offset]))
    count = graph.op("Cast", place, to=onnx.helper.np_dtype_to_tensor_dtype(dtype))
    scaled = graph.op("Mul", count, graph.constant(delta.reshape(1)))
    walk.set_per_step(node, name, graph.op("Add", scaled, graph.constant(start.reshape(1))), offset)
    walk.mark_position(name)


def _settle_untimed(walk: StreamingWalk, node: onnx.NodeProto, name: str, step: str, times: list[int]) -> None:
    if not times:
        walk.tensors[name] = Static(step)
    elif walk.facts.same_over_time(name):
        walk.set_per_step(node, name, step, None)
    elif len(times) > 1:
        raise walk.refuse(node, "makes a table of every timestep against every other")
    else:
        raise walk.refuse(
            node,
            "gives values by the position in the sequence, from a table or formula that a step cannot follow",
            "Positions grow without end in a stream: use a causal convolution, a recurrence or relative positions, or "
            "declare the number of timesteps of the model: `--length N`, `StepSpec(length=N)`.",
        )


def _check_length(walk: StreamingWalk, node: onnx.NodeProto, name: str) -> None:
    """Refuse what changes the number of timesteps."""
    dim = walk.facts.dims(name)[walk.facts.time_axis(name) or 0]
    timed = [given for given in walk.timed(node) if walk.facts.dims(given)]
    if dim.elements_per_step.denominator > 1 or dim.extra.denominator > 1:
        raise walk.refuse(node, f"gives {dim.elements_per_step} as many timesteps as it takes: a stride over time")
    if not timed:
        return
    extras = {walk.facts.length_delta(given) for given in timed}
    if int(dim.extra) not in extras:
        raise walk.refuse(
            node, f"changes the number of timesteps from T + {max(extras)} to T + {dim.extra} in a way without a rule"
        )
    multiples = {walk.facts.dims(given)[walk.facts.time_axis(given) or 0].elements_per_step for given in timed}
    if node.op_type not in _REFOLDING and dim.elements_per_step > max(multiples):
        raise walk.refuse(node, f"gives {dim.elements_per_step / max(multiples)} times as many timesteps as it takes")


def _check_branches(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Refuse a branch that is chosen by sizes, those of the sequence perhaps, or may mix timesteps."""
    if isinstance(walk.tensors[node.input[0]], Known):
        raise walk.refuse(
            node,
            "chooses a branch by sizes, which may be the numbers of timesteps and rows",
            "A stream has no length: export the model with one branch alone, as it is traced or as onnxsim leaves it.",
        )
    _check_bodies(walk, node)


def _check_bodies(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Refuse a body that is emitted as it is, for one timestep, and may mix timesteps.

    Most take each element by itself, or multiply by a weight. Others are read as a graph whose rows are the timesteps.
    """
    if not walk.timed(node):
        return
    fixed = {name for name, tensor in walk.tensors.items() if isinstance(tensor, Known)}
    for body in subgraphs(node):
        for inner in (inner for part in all_graphs(body) for inner in part.node):
            is_product = inner.op_type in {"MatMul", "Gemm"} and all(name in fixed for name in inner.input[1:])
            if inner.op_type not in _IN_BODIES and not is_product and not _keeps_timesteps_apart(walk, node):
                raise walk.refuse(node, f"may mix timesteps by its {inner.op_type}")


def _keeps_timesteps_apart(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Whether the operators of a node and its bodies show that no timestep reaches another: they are its rows here."""
    values = {name: value for name in uses(node) if isinstance(value := walk.facts.value(name), np.ndarray)}
    axes = {name: walk.facts.time_axis(name) for name in values}
    return rows_of_node(node, values, axes, walk.model.opset_import).outcome == "independent"


def check_mixed(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Refuse an operator that makes a timestep of others than its own.

    Raises:
        RefusedModelError: It does, or it is not known whether it does.
    """
    timed = [name for name in walk.timed(node, node.input) if walk.facts.time_axis(name) is not None]
    if not timed or not node.output[0] or walk.facts.time_axis(node.output[0]) is None:
        return  # without a time axis it is refused for that
    _check_length(walk, node, node.output[0])
    if kind_of(node) not in EACH_BY_ITSELF and not _keeps_timesteps_apart(walk, node):
        raise walk.refuse(node, f"mixes timesteps: each of its answers may take all of {timed[0]!r}{why(node)}")


def _check_tables(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Refuse a look-up by position in a table that ends."""
    if walk.tensors[node.input[1]].position:
        size = walk.facts.value(node.input[0]).shape[attributes(node).get("axis", 0)]
        raise walk.refuse(
            node,
            f"looks up positions in a table that ends after {size} timesteps",
            "A stream goes on: use relative positions, sines computed from the position, or a recurrence, or declare "
            f"the number of timesteps: `--length {size}`, `StepSpec(length={size})`.",
        )


_CHECKS: dict[str, Rule] = {
    **dict.fromkeys(("Gather", "GatherElements", "GatherND"), _check_tables),
    "If": _check_branches,
    **dict.fromkeys(("Loop", "Scan", "SequenceMap"), _check_bodies),
}
"""What is checked of operators that are not emitted as they are in every case."""


# ---------------------------------------------------------------- what is computed from the number of timesteps

_COMPUTING = {"Abs", "Add", "Cast", "Div", "Log", "Max", "Min", "Mul", "Neg", "Pow", "Reciprocal", "Sqrt", "Sub"}
"""Operators that compute with single numbers, and give one number for each row where they get one."""


def lengths_so_far(walk: StreamingWalk, node: onnx.NodeProto) -> dict[str, str]:
    """Emit what a computing node takes of the number of timesteps, beside an answer for the whole sequence.

    Returns:
        The emitted tensors by place, `i0`, `i1` and so on; nothing where the node takes each timestep.
    """
    kinds = {type(walk.tensors[name]) for name in node.input if name}
    if AtEnd not in kinds or kinds - {AtEnd, Static, Known}:
        return {}
    emitted, dims = {}, walk.facts.dims(node.output[0])
    for place, name in enumerate(node.input):
        if isinstance(walk.tensors[name], Known) and _grows(walk, name):
            emitted[f"i{place}"] = _so_far(walk, name, dims)
    return {place: tensor for place, tensor in emitted.items() if tensor}


def _grows(walk: StreamingWalk, name: str) -> bool:
    """Whether a tensor is a single number that depends on the number of timesteps."""
    first, *others = walk.facts.values(name)
    return (
        isinstance(first, np.ndarray) and first.size == 1 and any(not np.array_equal(first, other) for other in others)
    )


def _so_far(walk: StreamingWalk, name: str, dims: Sequence[Dim]) -> str:
    """Emit a single number for the timesteps so far, one for each row; empty: there is no way to.

    Args:
        walk: The walk.
        name: The tensor of the sequence graph.
        dims: The axes of what it broadcasts to.
    """
    graph, value = walk.graph, walk.facts.value(name)
    if not _grows(walk, name):
        return walk.operand(name) if value.size == 1 else ""
    if value.dtype.kind in "iu":
        number = walk.facts.number(name)
        if number.has_batch or number.steps.denominator > 1 or number.fixed.denominator > 1:
            return ""
        count = graph.count_like(dims, 1)
        count = graph.op("Mul", count, graph.ints([int(number.steps)])) if number.steps != 1 else count
        count = graph.op("Add", count, graph.ints([int(number.fixed)])) if number.fixed else count
        return count if value.dtype == np.int64 else graph.cast(count, value.dtype.name)
    node = walk.makers.get(name)
    if node is None or node.op_type not in _COMPUTING | RESHAPING:
        return ""
    if node.op_type in RESHAPING:
        return _so_far(walk, node.input[0], dims)
    inputs = [_so_far(walk, each, dims) for each in node.input]
    if not all(inputs):
        return ""
    out = graph.unique(f"{name}/so_far")
    graph.nodes.append(renamed(node, {**dict(zip(node.input, inputs, strict=True)), name: out}, name=node.name))
    return out
