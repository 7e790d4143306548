r"""Recurrent operators: LSTM, GRU, RNN, running sums and others with states, and how a state is carried.

Before and after:

    x (T, B, 4)   h0 (1, B, 5)             x (1, B, 4)   lstm.h, lstm.c
          \       /                              \        /
           LSTM over T timesteps      ->          LSTM over one timestep
          /       \                              /        \
    y (T, B, 5)   h of the last            y (1, B, 5)   lstm.h, lstm.c of the next timestep
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx

from stepwell_export.graph.nodes import attributes
from stepwell_export.graph.operators import RUNNING, STATEFUL
from stepwell_export.runtime.manifest import Array, StateSpec
from stepwell_export.streaming.axes.measured_shapes import Dim
from stepwell_export.streaming.known_values import initial_row
from stepwell_export.streaming.rules.elementwise import pointwise
from stepwell_export.streaming.step_graph import plain
from stepwell_export.streaming.walk import BACKWARDS_FIX, AtEnd, Known, PerStep, Static, StreamingWalk

_ONE = Dim(Fraction(1))


@dataclass(frozen=True, slots=True)
class Carried:
    """A state for what a recurrence carries.

    Attributes:
        tensor: What a timestep starts from, in the layout of the sequence graph.
        spec: The state.
        dims: Of the tensor.
    """

    tensor: str
    spec: StateSpec
    dims: Sequence[Dim]


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
        raise walk.refuse(node, f"is {direction} over time", BACKWARDS_FIX)
    if operator.lengths is not None and len(node.input) > operator.lengths:
        check_lengths(walk, node, node.input[operator.lengths], timed[0])
    offset = first_offset(walk, names)
    made = walk.emit_like(node, offset)
    made.input.extend([""] * (max(operator.states) + 1 - len(made.input)))
    if operator.lengths is not None:
        made.input[operator.lengths] = ""
    for label, (past, after) in zip(operator.labels, operator.states.items(), strict=True):
        dims, out = walk.facts.dims(node.output[after]), made.output[after]
        if all(dim.fixed or dim.has_batch for dim in dims):  # a kernel of one timestep looks at nothing before
            given = node.input[past] if len(node.input) > past else ""
            dtype = walk.dtype(node.output[after])
            state = carried(walk, node, label, dims, given=given, offset=offset, dtype=dtype)
            hand_on(walk, state, out, offset)
            made.input[past] = state.tensor
        give_final(walk, node, node.output[after], out, source=timed[0], offset=offset)
    if node.output[0]:
        walk.set_per_step(node, node.output[0], made.output[0], offset)


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
        raise walk.refuse(node, "runs from the end of the sequence (reverse)", BACKWARDS_FIX)
    offset = walk.offset(name) or 0
    dims = list(walk.facts.dims(name))
    dims[axis] = _ONE
    init: Array | None = np.full(_row(dims), operator.start, walk.dtype(name)) if operator.start else None
    if offset > 0:
        init = walk.before_start(out, offset - (not attrs.get("exclusive")), 1, made_of=[name])
        if init is None:
            raise walk.refuse(node, "takes what stands before the first timestep, which depends on the input")
    state, spec = walk.graph.state_like(f"{plain(node.name)}.{operator.label}", dims, walk.dtype(name), init)
    value = walk.started(walk.operand(name, offset, node), name, offset, operator.start)
    total = walk.graph.op(operator.combine, state, value)
    walk.graph.next_state_like(spec, total, dims)
    walk.set_per_step(node, out, state if attrs.get("exclusive") else total, offset)


def carried(
    walk: StreamingWalk,
    node: onnx.NodeProto,
    label: str,
    dims: Sequence[Dim],
    *,
    given: str,
    offset: int,
    dtype: str = "",
) -> Carried:
    """Declare a state for what a recurrence carries; the caller owes `hand_on` for it.

    Args:
        walk: The walk.
        node: The recurrence.
        label: The state's name behind the node's.
        dims: Of the carried tensor.
        given: What it starts from in the sequence graph; empty: zeros.
        offset: Below 0 the first timesteps are not consumed.
        dtype: NumPy name; that of the first input by default.
    """
    graph = walk.graph
    dtype = dtype or walk.dtype(given or node.input[0])
    start = walk.tensors[given] if given else Known()
    if isinstance(start, PerStep | AtEnd):
        raise walk.refuse(node, f"starts from {given!r}, which the sequence decides")
    init = initial_row(walk, given, node) if given and isinstance(start, Known) else None
    if init is not None and init.shape != (row := _row(dims)):
        raise walk.refuse(
            node,
            f"starts from {given!r} of shape {list(init.shape)}; one row of what it carries is {list(row)}",
            "Export the model for one row, or with an initial state that is expanded to the batch.",
        )
    tensor, spec = graph.state_like(f"{plain(node.name)}.{label}", dims, dtype, init)
    if isinstance(start, Static):  # computed from another input: it counts at the first timestep alone
        tensor = graph.op("Where", walk.has_seen(1 - min(offset, 0), dims), tensor, walk.operand(given))
    return Carried(tensor, spec, dims)


def hand_on(walk: StreamingWalk, state: Carried, out: str, offset: int) -> None:
    """Set the tensor of the step graph that a carried one becomes; below offset 0 the first timesteps do not count."""
    if offset < 0:
        out = walk.graph.op("Where", walk.has_seen(-offset, state.dims), out, state.tensor)
    walk.graph.next_state_like(state.spec, out, state.dims)


def _row(dims: Sequence[Dim]) -> tuple[int, ...]:
    """Return the shape for one row and one timestep."""
    return tuple(max(dim.at_one_step()) for dim in dims)


def first_offset(walk: StreamingWalk, names: Sequence[str]) -> int:
    """Return the offset at which a recurrence takes its inputs: it begins with their first element."""
    return min([0, *(offset for name in names if (offset := walk.offset(name)) is not None)])


def give_final(walk: StreamingWalk, node: onnx.NodeProto, name: str, step: str, *, source: str, offset: int) -> None:
    """Give what a recurrence carries at its end."""
    extra = offset if walk.offset(source) is None else walk.facts.length_delta(source)
    if extra != offset and name in walk.used:
        raise walk.refuse(
            node,
            f"ends {abs(extra - offset)} timestep(s) {'after' if extra > offset else 'before'} the sequence, "
            "and its final state is used",
        )
    walk.set_at_end(node, name, step)


def check_lengths(walk: StreamingWalk, node: onnx.NodeProto, name: str, source: str) -> None:
    """Refuse sequences of different lengths."""
    if not name:
        return
    known = walk.known(name)
    axis = walk.facts.time_axis(source)
    assert axis is not None
    sizes = [value.shape[axis] for value in walk.facts.values(source)]
    is_even = walk.facts.depends(name).is_even
    if not is_even or known is None or any((value != size).any() for value, size in zip(known, sizes, strict=True)):
        raise walk.refuse(
            node,
            "takes the length of every sequence (sequence_lens)",
            "A stream has no length: export without sequence_lens.",
        )
