r"""How a loop is run over a chunk: as a window, a sum or by operators where it is that, else by Scan.

Before and after:

    h (B, 5)   x (B, 4)                    h (B, 5)   x (T, B, 4)
        \      /                               \      /
    the nodes of the loop             ->   Scan { the nodes of the loop }
        /      \                               /      \
    h           y (B, 5)                   h           y (T, B, 5)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper

from stepwell_export.chunk.analysis import Loop, NoChunkError
from stepwell_export.chunk.branch import ranked
from stepwell_export.chunk.fused_rnn import emit_operators
from stepwell_export.chunk.ring_buffers import emit_window
from stepwell_export.chunk.running_sums import emit_sum
from stepwell_export.graph.nodes import renamed, uses

if TYPE_CHECKING:
    from stepwell_export.chunk.vectorize import Vectorizer


def emit_loop(builder: Vectorizer, loop: Loop) -> None:
    """Emit a loop in the first way that fits."""
    if not loop.nodes:
        for state in loop.states:
            _emit_delay(builder, state)
        return
    if loop.is_whole or not any(emit(builder, loop) for emit in (emit_window, emit_sum, emit_operators)):
        _emit_scan(builder, loop)


def _emit_delay(builder: Vectorizer, state: str) -> None:
    """A state that remembers something of the last timestep: the same sequence, one timestep later."""
    emitter, after = builder.emitter, builder.reading.after[state]
    fact = builder.facts[state]
    if after in builder.reading.fixed or builder.facts[after].axis != fact.axis or fact.axis is None:
        raise NoChunkError(f"state {state!r} becomes something that has no rows")
    timed = builder.sequence(after)
    builder.last[state] = emitter.last(timed, fact.axis)
    builder.set_flat(state, emitter.flat(emitter.delayed(state, timed, fact.axis), fact.axis, fact.row))


def _emit_scan(builder: Vectorizer, loop: Loop) -> None:
    """The nodes of a loop, timestep by timestep; what it takes and gives has been, or will be, run for all."""
    reading, emitter, facts = builder.reading, builder.emitter, builder.facts
    nodes, sliced = _body(builder, loop)
    sliced = sliced or reading.inputs[:1]
    place = emitter.fresh("scan")
    names = {name: f"{place}/{name}" for node in nodes for name in node.output if name}
    names |= {name: f"{place}/{name}" for name in [*loop.states, *sliced]}
    body = [renamed(node, names) for node in nodes]
    wanted = reading.wanted_outside(loop)
    if any(facts[name].axis is None for name in wanted):
        raise NoChunkError("something behind the state has no batch axis")
    gives = []
    for name in [*(reading.after[state] for state in loop.states), *wanted]:
        gives.append(emitter.fresh("give"))  # an answer and a state may be one tensor; a graph gives each once
        body.append(helper.make_node("Identity", [names[name]], [gives[-1]]))
    graph = helper.make_graph(
        body,
        place,
        ranked([names[name] for name in [*loop.states, *sliced]], [facts[name] for name in [*loop.states, *sliced]]),
        ranked(gives, [facts[name] for name in [*loop.states, *wanted]]),
    )
    ends = [emitter.fresh("end") for _ in loop.states]
    timed = [emitter.fresh("all") for _ in wanted]
    node = helper.make_node("Scan", [*loop.states, *(builder.sequence(name) for name in sliced)], [*ends, *timed],
                            body=graph, num_scan_inputs=len(sliced))  # fmt: skip
    node.attribute.append(helper.make_attribute("scan_input_axes", [_axis(builder, name) + 1 for name in sliced]))
    if wanted:
        node.attribute.append(helper.make_attribute("scan_output_axes", [_axis(builder, name) + 1 for name in wanted]))
    emitter.nodes.append(node)
    builder.last.update(zip(loop.states, ends, strict=True))
    for name, tensor in zip(wanted, timed, strict=True):
        builder.set_flat(name, emitter.flat(tensor, _axis(builder, name), facts[name].row))


def _body(builder: Vectorizer, loop: Loop) -> tuple[list[onnx.NodeProto], list[str]]:
    """Return the nodes to run in each timestep, and the tensors that are cut into timesteps for them.

    What has no batch axis, such as a shape computed from one, is computed in the loop again.

    Raises:
        NoChunkError: Such a thing depends on another loop.
    """
    reading = builder.reading
    inside = {id(node): node for node in loop.nodes}
    others = {name for other in builder.loops if other is not loop for name in other.made}
    others |= {state for state in reading.after if state not in loop.states}
    while True:
        made = {name for node in inside.values() for name in node.output} | set(loop.states)
        taken = {name for node in inside.values() for name in uses(node)} - made - reading.fixed
        without = [name for name in taken if builder.facts[name].axis is None]
        if not without:
            order = [node for node in reading.nodes if id(node) in inside]
            return order, sorted(taken)
        for name in without:
            if name in others or name not in reading.maker:
                raise NoChunkError(f"tensor {name!r} has no batch axis")
            inside[id(reading.maker[name])] = reading.maker[name]


def _axis(builder: Vectorizer, name: str) -> int:
    axis = builder.facts[name].axis
    assert axis is not None
    return axis
