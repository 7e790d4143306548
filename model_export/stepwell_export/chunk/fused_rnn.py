r"""Loops of LSTM, GRU and RNN operators alone: a chunk runs each operator over all of its timesteps.

Before and after:

    x (B, 4)   h (B, 5)                    x (T, B, 4)   h (1, B, 5)
         \     /                                \       /
       GRU over one timestep          ->       GRU over T timesteps
         /     \                                /       \
    y (B, 5)   h                           y (T, B, 5)   h of the last timestep
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import onnx

from stepwell_export.chunk.analysis import Loop, StepGraphAnalysis
from stepwell_export.graph.decompose_rnn import DEFAULT_ACTIVATIONS
from stepwell_export.graph.nodes import attributes, renamed, uses
from stepwell_export.graph.operators import PICKING, RESHAPING, RNN, STATEFUL

if TYPE_CHECKING:
    from stepwell_export.chunk.vectorize import Vectorizer

_GLUE = (RESHAPING | PICKING | {"Concat"}) - {"Flatten"}

_EXACT: Final = {"Relu", "LeakyRelu", "Softsign", "HardSigmoid", "Affine"}
_ACTIVATIONS: Final = {
    "LSTM": [_EXACT | {"Sigmoid", "Tanh"}] * 3,
    "GRU": [_EXACT | {"Sigmoid", "Tanh"}, _EXACT | {"Tanh"}],
    "RNN": [_EXACT],
}
"""By operator, the activations at each place that onnxruntime computes in it as it does outside of it. RNN's Tanh is
off by 3e-8 near zero, which adds up over time; Softplus overflows at 89."""


def is_of_operators(reading: StepGraphAnalysis, loop: Loop) -> bool:
    """Return whether LSTM, GRU and RNN operators carry all states of a loop, which differ from theirs in layout alone.

    What is between two of them, such as a norm, takes answers of operators and no states.
    """
    inside = {*loop.made, *loop.states}
    before, answers, after = set(loop.states), set[str](), set[str]()
    for node in loop.nodes:
        taken, outputs = inside.intersection(uses(node)), set(filter(None, node.output))
        if node.op_type in RNN:
            first = _first_states(node)
            if not (_runs_forward(reading, node) and before.issuperset(first) and answers >= taken.difference(first)):
                return False
            answers.update(filter(None, node.output[:2]))
            after |= outputs
            continue
        if taken <= answers:
            answers |= outputs
        if node.op_type in _GLUE and reading.fixed.issuperset(set(uses(node)) - taken):
            before |= outputs if taken <= before else set()
            after |= outputs if taken <= after else set()
    return after.issuperset(reading.after[s] for s in loop.states) and answers.issuperset(reading.wanted_outside(loop))


def emit_operators(builder: Vectorizer, loop: Loop) -> bool:
    """Emit a loop of operators that run one timestep; return whether it is one."""
    if not is_of_operators(builder.reading, loop):
        return False
    operators = [node for node in loop.nodes if node.op_type in RNN]
    if any(builder.facts[node.input[0]].axis != 1 or builder.facts[node.input[0]].row[0] != 1 for node in operators):
        return False
    before = _once(builder, loop, {state: state for state in loop.states})
    after: dict[str, str] = {}
    for node in loop.nodes:
        if node.op_type in RNN:
            after |= _emit_operator(builder, node, [before[name] for name in _first_states(node)])
        elif all(builder.has_flat(name) for name in uses(node)):
            builder.emit(node)
    after = _once(builder, loop, after)
    builder.last.update({state: after[builder.reading.after[state]] for state in loop.states})
    return True


def _first_states(node: onnx.NodeProto) -> Sequence[str]:
    """Return the tensors that an operator's states start from; fewer than it has states where some are left out."""
    return list(node.input[5 : 5 + len(STATEFUL[node.op_type].states)])


def _runs_forward(reading: StepGraphAnalysis, node: onnx.NodeProto) -> bool:
    """Return whether an operator has weights, states from elsewhere and all of its timesteps, in order, exactly."""
    first, lengths = _first_states(node), "".join(node.input[4:5])
    weights = {*node.input[1:4], *node.input[7:8]} - {""}
    has_states = len(first) == len(STATEFUL[node.op_type].states) and all(first)
    one_way = attributes(node).get("direction", "forward") == "forward"
    return has_states and one_way and not lengths and weights <= reading.fixed and _is_exact(node)


def _is_exact(node: onnx.NodeProto) -> bool:
    """Return whether an operator's activations give what they give alone."""
    kinds = attributes(node).get("activations") or DEFAULT_ACTIVATIONS[node.op_type]
    return all(kind in exact for kind, exact in zip(kinds, _ACTIVATIONS[node.op_type], strict=True))


def _emit_operator(builder: Vectorizer, node: onnx.NodeProto, first: Sequence[str]) -> Mapping[str, str]:
    """Emit an operator over all timesteps; return its outputs after the last one, shaped as in the step graph."""
    emitter, x = builder.emitter, node.input[0]
    maker = builder.reading.maker.get(x)
    rows = maker.input[0] if maker is not None and maker.op_type == "Unsqueeze" else x
    if rows != x and builder.facts[rows].axis == 0 and len(builder.facts[rows].row) == 1:
        timed_rows = builder.sequence(rows)
    else:  # (1, rows, T, features)
        timed_rows = emitter.op("Squeeze", builder.sequence(x), emitter.ints([0]))
    sequence = emitter.op("Transpose", timed_rows, perm=[1, 0, 2])
    given = [sequence, *node.input[1:4], "", *first, *node.input[7:8]]
    y, *last = emitter.split_op(node.op_type, *given, outputs=1 + len(first), **attributes(node))
    if builder.reading.may_give_nan:
        y, *last = _with_nan(builder, sequence, y, last)
    names = [*node.output, "", ""][: 1 + len(first)]
    timed = emitter.op("Transpose", y, perm=[1, 2, 0, 3])  # (1, rows, T, units)
    for name, axis in zip(names[:2], (2, 1), strict=True):
        if name:
            builder.set_flat(name, emitter.flat(timed, axis, builder.facts[name].row))
    after = dict(zip(names, [emitter.op("Unsqueeze", last[0], emitter.ints([0])), *last], strict=True))
    return {name: tensor for name, tensor in after.items() if name}


def _with_nan(builder: Vectorizer, sequence: str, y: str, last: Sequence[str]) -> list[str]:
    """Return an operator's outputs, NaN from the first NaN of its input on; onnxruntime gives numbers there.

    A root of a negative number is one, as what a table has behind its last position: a chunk gives what steps do.
    """
    emitter = builder.emitter
    signs = emitter.op("Sign", sequence)  # of infinities, too: these are none
    marked = emitter.op("Where", emitter.op("IsNaN", sequence), sequence, emitter.op("Sub", signs, signs))
    zero = emitter.op("ReduceSum", marked, emitter.ints([2]))
    so_far = emitter.op("CumSum", zero, emitter.ints([0]))  # (T, rows, 1)
    end = emitter.op("Gather", so_far, emitter.ints([-1]), axis=0)
    timed = emitter.op("Add", y, emitter.op("Unsqueeze", so_far, emitter.ints([1])))
    return [timed, *(emitter.op("Add", state, end) for state in last)]


def _once(builder: Vectorizer, loop: Loop, known: Mapping[str, str]) -> dict[str, str]:
    """Emit, for one timestep alone, the layout of what is known; return all that is known then."""
    names, made = dict(known), {*loop.made, *loop.states}
    place = builder.emitter.fresh("once")
    for node in loop.nodes:
        if node.op_type in _GLUE and names.keys() >= made.intersection(uses(node)):
            names |= {name: f"{place}/{name}" for name in node.output if name}
            builder.emitter.nodes.append(renamed(node, names))
    return names
