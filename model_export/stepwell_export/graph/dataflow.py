"""What reaches what in a graph: a walk from marked tensors to all that depends on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from stepwell_export.graph.nodes import subgraphs, uses
from stepwell_export.graph.operators import PICKING, RESHAPING, STATEFUL

Marks = frozenset[str]

_LAYOUT = RESHAPING | PICKING | {"Concat", "Cast"}
_SAME = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}


def propagate_labels(
    graph: Any, outside: Mapping[str, Marks], *, own: Callable[[Any], str | None] = lambda node: None
) -> dict[str, Marks]:
    """Return the marks that reach each tensor of a graph.

    A node with a subgraph (If, Loop, Scan) is reached as a whole by whatever reaches anything in it.

    Args:
        graph: The graph.
        outside: Marks of tensors that the graph is given: its inputs, and what an outer graph has.
        own: The mark that a node sets by itself.
    """
    reached = dict(outside)
    for node in in_order(graph.node):
        marks: set[str] = {mark for mark in [own(node)] if mark}
        for name in node.input:
            marks |= reached.get(name, frozenset())
        for subgraph in subgraphs(node):
            inner = propagate_labels(subgraph, reached, own=own)
            used = [name for inside in subgraph.node for name in inside.input]
            made = [name for inside in subgraph.node for name in inside.output]
            for name in (*used, *made, *(output.name for output in subgraph.output)):
                marks |= inner.get(name, frozenset())
        if marks:
            reached.update(dict.fromkeys(filter(None, node.output), frozenset(marks)))
    return reached


def in_order(nodes: Iterable[Any]) -> list[Any]:
    """Return nodes, each after those whose outputs it uses; a file may have them in any order.

    Those of a graph with a cycle are returned as they are: onnxruntime refuses it.
    """
    nodes = list(nodes)
    makers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    needs = {at: {makers[name] for name in uses(node) if name in makers} for at, node in enumerate(nodes)}
    if all(other < at for at, others in needs.items() for other in others):
        return nodes
    with suppress(CycleError):
        return [nodes[at] for at in TopologicalSorter(needs).static_order()]
    return nodes


@dataclass(frozen=True, slots=True)
class Flow:
    """What a graph's nodes show about its states.

    Attributes:
        reached: For each graph output, the graph inputs that it depends on.
        carried: For each graph input that an operator takes as a state, the outputs that are, but for their layout,
            that state's next value. Where states of several layers are packed into one tensor, it is that of all.
        copied: For each graph output that has the values of a graph input, unchanged and in the same order, that input.
    """

    reached: dict[str, Marks] = field(default_factory=dict)
    carried: dict[str, list[str]] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)


def read_flow(graph: Any) -> Flow:
    """Follow every input of a graph to the outputs."""
    reached = propagate_labels(graph, {value.name: frozenset([value.name]) for value in graph.input})
    before, after = _states_in(graph), _states_out(graph)
    return Flow(
        {output.name: reached.get(output.name, frozenset()) for output in graph.output},
        {
            name: [output for output, slots_there in after.items() if slots_there == slots]
            for name, slots in before.items()
        },
        _copies(graph),
    )


def _copies(graph: Any) -> dict[str, str]:
    origins = {value.name: value.name for value in graph.input}
    for node in in_order(graph.node):
        if node.op_type in _SAME and node.input[0] in origins:
            origins[node.output[0]] = origins[node.input[0]]
    return {output.name: origins[output.name] for output in graph.output if output.name in origins}


def laid_out_from(graph: Any, name: str) -> set[str]:
    """Return the tensors that one is made of by layout alone, itself included."""
    names = {name}
    for node in reversed(graph.node):
        if node.op_type in _LAYOUT and names.intersection(node.output):
            names.update(filter(None, node.input))
    return names


def _carried_slots(node: Any) -> Mapping[int, int]:
    if node.op_type == "Loop":
        return {2 + k: k for k in range(len(node.input) - 2)}
    if node.op_type == "Scan":
        scanned = next(attribute.i for attribute in node.attribute if attribute.name == "num_scan_inputs")
        return {k: k for k in range(len(node.input) - scanned)}
    operator = STATEFUL.get(node.op_type)
    return operator.states if operator else {}


def _states_in(graph: Any) -> dict[str, Marks]:
    """Return, for each graph input that becomes the state of an operator by layout alone, whose state it is."""
    origins = {value.name: frozenset([value.name]) for value in graph.input}
    marks: dict[str, Marks] = {}
    for at, node in enumerate(graph.node):
        _pass_layout(node, origins)
        for before, after in _carried_slots(node).items():
            if len(node.input) > before and len(node.output) > after:
                for name in origins.get(node.input[before], ()):
                    marks[name] = marks.get(name, frozenset()) | {f"{at}/{after}"}
    return marks


def _states_out(graph: Any) -> dict[str, Marks]:
    """Return, for each graph output that is made of next states by layout alone, whose states they are."""
    marks: dict[str, Marks] = {}
    for at, node in enumerate(graph.node):
        _pass_layout(node, marks)
        for after in _carried_slots(node).values():
            if len(node.output) > after:
                marks[node.output[after]] = frozenset([f"{at}/{after}"])
    return {output.name: marks[output.name] for output in graph.output if output.name in marks}


def _pass_layout(node: Any, marks: dict[str, Marks]) -> None:
    if node.op_type in _LAYOUT and (passed := frozenset[str]().union(*(marks.get(name, ()) for name in node.input))):
        marks.update(dict.fromkeys(node.output, passed))
