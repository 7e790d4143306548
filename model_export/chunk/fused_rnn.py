"""Loops that are one LSTM, GRU or RNN operator: a chunk runs the operator over all of its timesteps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx

from model_export.chunk.analysis import Loop, StepGraphAnalysis
from model_export.chunk.builder import PREFIX
from model_export.graph.nodes import attributes, mapped, renamed, uses
from model_export.graph.operators import PICKING, RESHAPING, RNN, STATEFUL

if TYPE_CHECKING:
    from model_export.chunk.vectorize import Vectorizer

_GLUE = (RESHAPING | PICKING | {"Concat"}) - {"Flatten"}


def is_one_operator(reading: StepGraphAnalysis, loop: Loop) -> bool:
    """Return whether a loop is one LSTM, GRU or RNN operator with its states, but for their layout."""
    found = [node for node in loop.nodes if node.op_type in RNN]
    if len(found) != 1 or any(node.op_type not in _GLUE for node in loop.nodes if node is not found[0]):
        return False
    node = found[0]
    inputs = [*node.input, *[""] * 8][:8]
    first = inputs[5 : 5 + len(STATEFUL[node.op_type].states)]
    one_way = all(a.s == b"forward" for a in node.attribute if a.name == "direction")
    weights = {*inputs[1:4], inputs[7]} - {""}
    if inputs[4] or not all(first) or not one_way or inputs[0] in loop.made or not weights <= reading.fixed:
        return False
    return not _mixes(reading, loop, node)


def emit_operator(builder: Vectorizer, loop: Loop) -> bool:
    """Emit a loop of one LSTM, GRU or RNN operator that runs one timestep; return whether it is one."""
    if not is_one_operator(builder.reading, loop):
        return False
    node = next(node for node in loop.nodes if node.op_type in RNN)
    inputs = [*node.input, *[""] * 8][:8]
    x, first = inputs[0], inputs[5 : 5 + len(STATEFUL[node.op_type].states)]
    peepholes = [inputs[7]] if node.op_type == "LSTM" else []
    if builder.facts[x].axis != 1 or builder.facts[x].row[0] != 1:
        return False
    emitter = builder.emitter
    before = _once(builder, loop, first, {})
    maker = builder.reading.maker.get(x)
    rows = maker.input[0] if maker is not None and maker.op_type == "Unsqueeze" else x
    if rows != x and builder.facts[rows].axis == 0 and len(builder.facts[rows].row) == 1:
        timed_rows = builder.sequence(rows)
    else:  # (1, rows, T, features)
        timed_rows = emitter.op("Squeeze", builder.sequence(x), emitter.ints([0]))
    sequence = emitter.op("Transpose", timed_rows, perm=[1, 0, 2])
    given = [sequence, *inputs[1:4], "", *before, *peepholes]
    y, *last = emitter.split_op(node.op_type, *given, outputs=1 + len(first), **attributes(node))
    outputs = [*node.output, *[""] * 3][: 1 + len(first)]
    timed = emitter.op("Transpose", y, perm=[1, 2, 0, 3])  # (1, rows, T, units)
    after = {}
    if outputs[0]:
        builder.set_flat(outputs[0], emitter.flat(timed, 2, builder.facts[outputs[0]].row))
        after[outputs[0]] = emitter.op("Unsqueeze", last[0], emitter.ints([0]))
    if outputs[1]:
        builder.set_flat(outputs[1], emitter.flat(timed, 1, builder.facts[outputs[1]].row))
    after |= {name: tensor for name, tensor in zip(outputs[1:], last, strict=True) if name}
    ends = _once(builder, loop, [builder.reading.after[state] for state in loop.states], after)
    builder.last.update(zip(loop.states, ends, strict=True))
    _glue_of_all_timesteps(builder, loop)
    return True


def _mixes(reading: StepGraphAnalysis, loop: Loop, node: onnx.NodeProto) -> bool:
    """Whether the glue joins anything but states, or what is wanted outside does not follow from the answers h."""
    made = set(loop.made)
    for inner in loop.nodes:
        others = {name for name in uses(inner) if name not in made and name not in loop.states}
        if inner is not node and not others <= reading.fixed:
            return True
    from_h = set(filter(None, node.output[:2]))
    for inner in loop.nodes:
        if from_h.intersection(inner.input) and not (made - from_h).intersection(inner.input):
            from_h.update(inner.output)
    return not set(reading.wanted_outside(loop)) <= from_h


def _once(builder: Vectorizer, loop: Loop, names: Sequence[str], known: dict[str, str]) -> list[str]:
    """Emit the glue that leads to these tensors, for one timestep alone, from the states or from `known`."""
    known, made = dict(known), set(loop.made)
    place = builder.emitter.fresh("once")
    for node in loop.nodes:
        if node.op_type in _GLUE and all(name in known or name not in made for name in node.input):
            new = {name: f"{place}/{name}" for name in node.output if name not in known}
            names_of = {**known, **new}
            builder.emitter.nodes.append(renamed(node, mapped(names_of)))
            known |= new
    return [known.get(name, name) for name in names]


def _glue_of_all_timesteps(builder: Vectorizer, loop: Loop) -> None:
    """Emit the glue behind the operator for all timesteps, as far as something outside uses it."""
    wanted = set(builder.reading.wanted_outside(loop))
    for node in loop.nodes:
        if node.op_type in _GLUE and all(builder.has_flat(name) for name in node.input if name):
            names = {name: builder.flat(name) for name in node.input if name}
            for name in node.output:
                names[name] = f"{PREFIX}{name}"
                builder.set_flat(name, names[name])
            builder.emitter.nodes.append(renamed(node, mapped(names)))
    assert all(builder.has_flat(name) for name in wanted)
