"""Recurrences: LSTM, GRU, RNN, Scan, Loop, running sums and the operators that have a state of their own."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import onnx

from model_export.graph.nodes import attributes, subgraphs, uses
from model_export.graph.operators import RUNNING, STATEFUL
from model_export.manifest import Array
from model_export.streaming.axes.measured_shapes import Dim
from model_export.streaming.constants import initial_row
from model_export.streaming.rules.elementwise import pointwise
from model_export.streaming.step_graph import plain
from model_export.streaming.walk import StreamingWalk

_ONE = Dim(Fraction(1))


def stateful_op(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """An operator of the table with states along its time axis: they become states of the step graph.

    Raises:
        RefusedModelError: It runs backwards over time, or over sequences of different lengths.
    """
    operator = STATEFUL[node.op_type]
    names = [node.input[place] for place in operator.timed if place < len(node.input) and node.input[place]]
    timed = walk.timed(node, names)
    if not timed or any(walk.facts.time_axis(name) != operator.time_axis for name in timed):
        pointwise(walk, node)
        return
    direction = attributes(node).get("direction", "forward")
    if direction != "forward":
        raise walk.refuse(node, f"is {direction} over time")
    if operator.lengths is not None and len(node.input) > operator.lengths:
        _check_lengths(walk, node, node.input[operator.lengths], timed[0])
    offset = _start(walk, names)
    made = walk.emit_like(node, offset)
    made.input.extend([""] * (max(operator.states) + 1 - len(made.input)))
    if operator.lengths is not None:
        made.input[operator.lengths] = ""
    for label, (past, after) in zip(operator.labels, operator.states.items(), strict=True):
        dims, out = walk.facts.dims(node.output[after]), made.output[after]
        if all(dim.fixed or dim.has_batch for dim in dims):  # a kernel of one timestep looks at nothing before
            given = node.input[past] if len(node.input) > past else ""
            dtype = walk.dtype(node.output[after])
            made.input[past] = carried(walk, node, label, dims, given=given, out=out, offset=offset, dtype=dtype)
        _give_final(walk, node, node.output[after], out, source=timed[0], offset=offset)
    if node.output[0]:
        walk.set_output(node, node.output[0], made.output[0], "per_step", offset)


def scan(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Scan over time: one turn of it, with its states carried.

    Raises:
        RefusedModelError: It runs backwards.
    """
    attrs = attributes(node)
    old = walk.opset < 9  # with a batch axis, and the lengths as its first input
    count = int(attrs["num_scan_inputs"])
    states = list(node.input[old : len(node.input) - count])
    scanned = list(node.input[len(node.input) - count :])
    ranks = [len(walk.facts.dims(name)) for name in scanned]
    axes = [axis % rank for axis, rank in zip(attrs.get("scan_input_axes") or [int(old)] * count, ranks, strict=True)]
    if not any(_over_time(walk, name, axis) for name, axis in zip(scanned, axes, strict=True)):
        pointwise(walk, node)
        return
    backwards = attrs.get("directions" if old else "scan_input_directions") or [0]
    if any(backwards) or any(attrs.get("scan_output_directions") or [0]):
        raise walk.refuse(node, "runs backwards over time")
    if old:
        _check_lengths(walk, node, node.input[0], scanned[0])
    timed = [name for name in scanned if walk.timed(node, [name])]
    offset = _start(walk, timed)
    made = walk.emit_like(node, offset)
    if old:
        made.input[0] = ""
    body = next(subgraphs(node))
    for place in range(len(states)):
        if _unchanged(body, body.input[place].name, body.output[place].name):
            _give_unchanged(walk, node, node.output[place], made.output[place])
            continue
        _carry(walk, node, made, place, at=old + place, timed=timed[0], offset=offset)
    for place in range(len(states), len(node.output)):
        if node.output[place]:
            walk.set_output(node, node.output[place], made.output[place], "per_step", offset)


def loop(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """Loop over time: one turn of it; what it carries is a state, but for counters and what it collects."""
    if not turns_with_time(walk, node):
        pointwise(walk, node)
        return
    timed = walk.timed(node)
    offset = _start(walk, timed)
    if offset != 0:
        raise walk.refuse(node, "runs over a sequence that was cut in front")
    made = walk.emit_like(node, 0)
    carried_inputs = list(node.input[2:])
    body = next(subgraphs(node))
    for place, given in enumerate(carried_inputs):
        out = node.output[place]
        if _unchanged(body, body.input[2 + place].name, body.output[1 + place].name):
            _give_unchanged(walk, node, out, made.output[place])
        elif _stays(walk, given, out):
            if out:
                _give_collected(walk, node, out, made.output[place])
        else:
            _carry(walk, node, made, place, at=2 + place, timed=timed[0] if timed else "", offset=0)
    for place in range(len(carried_inputs), len(node.output)):
        if node.output[place]:
            _give_collected(walk, node, node.output[place], made.output[place])


def running(walk: StreamingWalk, node: onnx.NodeProto) -> None:
    """A running sum or product over time: what the timesteps so far make is a state.

    Raises:
        RefusedModelError: It runs from the end.
    """
    operator = RUNNING[node.op_type]
    name, out = node.input[0], node.output[0]
    known = walk.known(node.input[1])
    axis = walk.facts.time_axis(name)
    if known is None or axis is None or axis != int(np.reshape(known[0], ())) % len(walk.facts.dims(name)):
        pointwise(walk, node)
        return
    attrs = attributes(node)
    if attrs.get("reverse"):
        raise walk.refuse(node, "runs from the end of the sequence (reverse)")
    offset = walk.tensors[name].offset or 0
    dims = list(walk.facts.dims(name))
    dims[axis] = _ONE
    init: Array | None = np.full(_row(dims), operator.start, walk.dtype(name)) if operator.start else None
    if offset > 0:
        init = walk.facts.before_start(out, offset - (not attrs.get("exclusive")), 1)
        if init is None:
            raise walk.refuse(node, "takes what stands before the first timestep, which depends on the input")
    state, spec = walk.graph.state_like(f"{plain(node.name)}.{operator.label}", dims, walk.dtype(name), init)
    value = walk.started(walk.operand(name, offset, node), name, offset, operator.start)
    total = walk.graph.op(operator.combine, state, value)
    walk.graph.next_state_like(spec, total, dims)
    walk.set_output(node, out, state if attrs.get("exclusive") else total, "per_step", offset)


def carried(
    walk: StreamingWalk,
    node: onnx.NodeProto,
    label: str,
    dims: Sequence[Dim],
    *,
    given: str,
    out: str,
    offset: int,
    dtype: str = "",
) -> str:
    """Declare a state for what a recurrence carries and return the tensor that it starts from.

    Args:
        walk: The walk.
        node: The recurrence.
        label: The state's name behind the node's.
        dims: Of the carried tensor.
        given: What it starts from in the sequence graph; empty: zeros.
        out: The tensor of the step graph that it becomes.
        offset: Below 0 the first timesteps are not consumed.
        dtype: NumPy name; that of the first input by default.
    """
    graph = walk.graph
    dtype = dtype or walk.dtype(given or node.input[0])
    kind = walk.tensors[given].kind if given else "constant"
    if kind in {"per_step", "final"}:
        raise walk.refuse(node, f"starts from {given!r}, which the sequence decides")
    init = initial_row(walk, given, node) if kind == "constant" else None
    if init is not None and init.shape != (row := _row(dims)):
        raise walk.refuse(
            node,
            f"starts from {given!r} of shape {list(init.shape)}; one row of what it carries is {list(row)}",
            "Export the model for one row, or with an initial state that is expanded to the batch.",
        )
    tensor, spec = graph.state_like(f"{plain(node.name)}.{label}", dims, dtype, init)
    if kind == "static":  # computed from another input: it counts at the first timestep alone
        tensor = graph.op("Where", walk.has_seen(1 - min(offset, 0), dims), tensor, walk.operand(given))
    kept = graph.op("Where", walk.has_seen(-offset, dims), out, tensor) if offset < 0 else out
    graph.next_state_like(spec, kept, dims)
    return tensor


def _carry(
    walk: StreamingWalk, node: onnx.NodeProto, made: onnx.NodeProto, place: int, *, at: int, timed: str, offset: int
) -> None:
    """Carry one tensor of a Scan or Loop."""
    given, out = node.input[at], node.output[place]
    step = made.output[place] = made.output[place] or walk.graph.unique(f"{node.name}/carried_{place}")
    dims = walk.facts.dims(out or given)
    made.input[at] = carried(walk, node, f"state_{place}", dims, given=given, out=step, offset=offset)
    if out and timed:
        _give_final(walk, node, out, step, source=timed, offset=offset)
    elif out:
        walk.set_output(node, out, step, "final")


def _row(dims: Sequence[Dim]) -> tuple[int, ...]:
    """Return the shape for one row and one timestep."""
    return tuple(max(dim.at_one_step()) for dim in dims)


def _start(walk: StreamingWalk, names: Sequence[str]) -> int:
    """Return the offset at which a recurrence takes its inputs: it begins with their first element."""
    return min([0, *(offset for name in names if (offset := walk.tensors[name].offset) is not None)])


def _give_final(walk: StreamingWalk, node: onnx.NodeProto, name: str, step: str, *, source: str, offset: int) -> None:
    """Give what a recurrence carries at its end."""
    tensor = walk.tensors[source]
    extra = offset if tensor.offset is None else walk.facts.length_delta(source)
    if extra != offset and name in walk.used:
        raise walk.refuse(
            node,
            f"ends {abs(extra - offset)} timestep(s) {'after' if extra > offset else 'before'} the sequence, "
            "and its final state is used",
        )
    walk.set_output(node, name, step, "final")


def _check_lengths(walk: StreamingWalk, node: onnx.NodeProto, name: str, source: str) -> None:
    """Refuse sequences of different lengths."""
    if not name:
        return
    known = walk.known(name)
    axis = walk.facts.time_axis(source)
    assert axis is not None
    sizes = [value.shape[axis] for value in walk.facts.values(source)]
    if known is None or any((value != size).any() for value, size in zip(known, sizes, strict=True)):
        raise walk.refuse(
            node,
            "takes the length of every sequence (sequence_lens)",
            "A stream has no length: export without sequence_lens.",
        )


def _over_time(walk: StreamingWalk, name: str, axis: int) -> bool:
    return walk.tensors[name].kind == "per_step" and walk.facts.time_axis(name) == axis


def turns_with_time(walk: StreamingWalk, node: onnx.NodeProto) -> bool:
    """Whether the number of turns of a Loop, or what it compares it with, is the number of timesteps."""
    for name in uses(node):
        known = walk.known(name)
        if known is None or isinstance(known[0], list) or known[0].dtype.kind not in "iu":
            continue
        if any(walk.facts.affine(known)[2].reshape(-1)):
            return True
    return False


def _stays(walk: StreamingWalk, given: str, out: str) -> bool:
    """Whether a carried tensor starts anew at every step: it collects, counts, or decides whether to go on."""
    value = walk.facts.value(given)
    if isinstance(value, list) or value is None or walk.facts.time_axis(out or given) is not None:
        return True
    if value.dtype.kind == "f" or value.size != 1:
        return False
    if value.dtype.kind == "b":
        return True
    grown = walk.facts.affine(walk.facts.values(out))[2] if out else np.array([True])
    return walk.known(given) is not None and bool(grown.all())


def _unchanged(body: onnx.GraphProto, given: str, out: str) -> bool:
    """Whether a loop hands a tensor on as it is, as exporters do with weights."""
    makers = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Identity"}
    while out != given and out in makers:
        out = makers[out]
    return out == given


def _give_unchanged(walk: StreamingWalk, node: onnx.NodeProto, name: str, step: str) -> None:
    if name:
        walk.set_output(node, name, step, "static")


def _give_collected(walk: StreamingWalk, node: onnx.NodeProto, name: str, step: str) -> None:
    sequence = isinstance(walk.facts.value(name), list)
    over_time = sequence or walk.facts.time_axis(name) is not None
    walk.set_output(node, name, step, "per_step" if over_time else "final", 0 if over_time else None)
