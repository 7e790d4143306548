"""Leaves one of several states that always hold the same: they begin alike and are computed alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from model_export.graph.dataflow import in_order
from model_export.graph.nodes import mapped, needed_nodes, renamed, replace_items, subgraphs
from model_export.manifest import StateSpec


def without_equal_states(
    model: onnx.ModelProto, states: Sequence[StateSpec]
) -> tuple[onnx.ModelProto, list[StateSpec]]:
    """Return a step graph with the states that it needs, and these.

    Args:
        model: The step graph; its nodes are changed in place.
        states: What it carries.
    """
    same: dict[str, str] = {}
    kept: list[StateSpec] = []
    nodes = in_order(model.graph.node)
    for state in states:
        if (first := next((one for one in kept if _are_equal(nodes, one, state, same)), None)) is None:
            kept.append(state)
        else:
            same[state.input] = first.input
    if not same:
        return model, kept
    graph, gone = model.graph, {state.output for state in states} - {state.output for state in kept}
    replace_items(graph.input, [value for value in graph.input if value.name not in same])
    replace_items(graph.output, [value for value in graph.output if value.name not in gone])
    left = needed_nodes(nodes, [value.name for value in graph.output])
    replace_items(graph.node, [renamed(node, mapped(same), name=node.name) for node in left])
    return model, kept


def _are_equal(nodes: Sequence[onnx.NodeProto], one: StateSpec, other: StateSpec, same: Mapping[str, str]) -> bool:
    """Whether two states stay the same if they are before a timestep."""
    begin = [(state.dtype, state.shape, state.batch_axis, state.init) for state in (one, other)]
    if begin[0] != begin[1]:
        return False
    numbers: dict[str, object] = {**same, other.input: one.input}
    for node in nodes:
        key: object = node.output[0]
        if not any(subgraphs(node)):
            kind = (node.op_type, node.domain, *sorted(a.SerializeToString() for a in node.attribute))
            key = (kind, *(numbers.get(name, name) for name in node.input))
        numbers.update({name: (key, place) for place, name in enumerate(node.output) if name})
    return numbers.get(one.output) == numbers.get(other.output)
