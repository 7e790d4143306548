"""Leaves one of several states that always hold the same: they begin alike and are computed alike."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import onnx

from model_export.graph.dataflow import in_order
from model_export.graph.nodes import mapped, renamed, replace_items, subgraphs
from model_export.manifest import StateSpec


def without_equal_states(
    model: onnx.ModelProto, states: Sequence[StateSpec]
) -> tuple[onnx.ModelProto, list[StateSpec]]:
    """Return a step graph with the states that it needs, and these.

    Args:
        model: The step graph; its nodes are changed in place.
        states: What it carries.
    """
    nodes = in_order(model.graph.node)
    classes = _numbered({s.input: (s.dtype, tuple(s.shape), s.batch_axis, str(s.init)) for s in states})
    while True:
        after = _numbers(nodes, classes)
        split = _numbered({s.input: (classes[s.input], after[s.output]) for s in states})
        if split == classes:
            break
        classes = split
    firsts: dict[int, str] = {}
    same = {state.input: firsts.setdefault(classes[state.input], state.input) for state in states}
    kept = [state for state in states if same[state.input] == state.input]
    if len(kept) == len(states):
        return model, kept
    graph, gone = model.graph, {state.output for state in states} - {state.output for state in kept}
    left = [node for node in nodes if gone.isdisjoint(node.output)]
    replace_items(graph.node, [renamed(node, mapped(same), name=node.name) for node in left])
    replace_items(graph.input, [value for value in graph.input if same.get(value.name, value.name) == value.name])
    replace_items(graph.output, [value for value in graph.output if value.name not in gone])
    return model, kept


def _numbers(nodes: Sequence[onnx.NodeProto], states: Mapping[str, int]) -> dict[str, Hashable]:
    """Return equal numbers for tensors that are computed alike, where states of one number are the same."""
    numbers: dict[str, Hashable] = {**states}
    made: dict[Hashable, int] = {}
    for at, node in enumerate(nodes):
        alike: Hashable = at  # a node with bodies is like no other
        if not any(subgraphs(node)):
            kind = (node.op_type, node.domain, *sorted(a.SerializeToString() for a in node.attribute))
            alike = kind, *(numbers.get(name, name) for name in node.input)
        number = made.setdefault(alike, len(made))
        numbers.update({name: (number, place) for place, name in enumerate(node.output) if name})
    return numbers


def _numbered(keys: Mapping[str, Hashable]) -> dict[str, int]:
    """Return the place of each key among the different ones."""
    places = {key: place for place, key in enumerate(dict.fromkeys(keys.values()))}
    return {name: places[key] for name, key in keys.items()}
