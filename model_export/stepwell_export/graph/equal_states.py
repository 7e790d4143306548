r"""Leaves one of several states that always hold the same, and of several nodes that compute the same.

Before and after:

    a.past   x     b.past                  a.past   x
        \   / \    /                           \   /
        Concat  Concat                ->       Concat
          |        |                            |   |
         Conv     Conv                        Conv  Conv
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence

import onnx

from stepwell_export.graph.nodes import in_order, needed_nodes, renamed, replace_items, subgraphs, uses
from stepwell_export.runtime.manifest import StateSpec


def without_equal_states(
    model: onnx.ModelProto, states: Sequence[StateSpec]
) -> tuple[onnx.ModelProto, list[StateSpec]]:
    """Return a step graph with the states that it needs, and these.

    Args:
        model: The step graph; its nodes are changed in place.
        states: What it carries.
    """
    nodes = in_order(model.graph.node)
    firsts: dict[int, StateSpec] = {}
    same: dict[str, str] = {}
    for state, number in zip(states, _numbers(nodes, states), strict=True):
        if (first := firsts.setdefault(number, state)) is not state:
            same[state.input] = first.input
    kept = [state for state in states if state.input not in same]
    graph, gone = model.graph, {state.output for state in states} - {state.output for state in kept}
    replace_items(graph.input, [value for value in graph.input if value.name not in same])
    replace_items(graph.output, [value for value in graph.output if value.name not in gone])
    outputs = [value.name for value in graph.output]
    replace_items(graph.node, _once(needed_nodes(nodes, outputs), same, outputs))
    return model, kept


def _once(
    nodes: Sequence[onnx.NodeProto], same: Mapping[str, str], outputs: Collection[str]
) -> Iterator[onnx.NodeProto]:
    """Yield nodes with equal tensors under one name, without those that compute what another one does."""
    names, firsts = dict(same), dict[Hashable, onnx.NodeProto]()
    for node in nodes:
        made = node if names.keys().isdisjoint(uses(node)) else renamed(node, names, name=node.name)
        first = firsts.setdefault((_kind(made), *made.input, *map(bool, made.output)), made)
        if first is made or not set(outputs).isdisjoint(made.output):
            yield made
        else:
            names |= zip(made.output, first.output, strict=True)


def _numbers(nodes: Sequence[onnx.NodeProto], states: Sequence[StateSpec]) -> list[int]:
    """Return a number for each state, the same for those that are equal at every timestep.

    All that begin alike get one number; those that are then computed in different ways are told apart, until all that
    have one number are computed alike.
    """
    kinds = [_kind(node) for node in nodes]
    numbers = _numbered([repr((state.dtype, state.shape, state.batch_axis, state.init)) for state in states])
    before = 0
    while (count := len(set(numbers))) > before:
        before = count
        values: dict[str, Hashable] = {state.input: number for state, number in zip(states, numbers, strict=True)}
        seen: dict[Hashable, int] = {}
        for node, kind in zip(nodes, kinds, strict=True):
            number = seen.setdefault((kind, *(values.get(name, name) for name in node.input)), len(seen))
            values.update({name: (number, place) for place, name in enumerate(node.output) if name})
        numbers = _numbered(
            [(number, values.get(carried.output)) for number, carried in zip(numbers, states, strict=True)]
        )
    return numbers


def _kind(node: onnx.NodeProto) -> Hashable:
    """Return what two nodes have in common that give the same for the same inputs."""
    if any(subgraphs(node)):
        return tuple(node.output)
    return (node.op_type, node.domain, *sorted(a.SerializeToString() for a in node.attribute))


def _numbered(keys: Sequence[Hashable]) -> list[int]:
    """Return the place of each key's first occurrence."""
    firsts: dict[Hashable, int] = {}
    return [firsts.setdefault(key, place) for place, key in enumerate(keys)]
