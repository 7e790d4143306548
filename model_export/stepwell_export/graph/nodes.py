"""What nodes take, give and are called; the part of a graph that is needed; what reaches what in it.

The bodies of a node are the branches of an If, and the body of a Loop or Scan. Needs no onnx package.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Final

from stepwell_export.graph.operators import PICKING, RESHAPING, STATEFUL

if TYPE_CHECKING:
    import onnx


def read_opset(model: Any) -> int:
    """Return the version of ONNX' own operators that a model uses; 1 where it declares none."""
    return next((int(entry.version) for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 1)


def attributes(node: Any) -> dict[str, Any]:
    """Return a node's attributes by name; text as `str`."""
    import onnx

    values = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: _text(value) for name, value in values.items()}


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield a node's bodies."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def constants(graph: Any) -> dict[str, Any]:
    """Return the constant tensors of a graph by name: its initializers, and the values of its Constant nodes."""
    nodes = [node for node in graph.node if node.op_type == "Constant"]
    made = {node.output[0]: attribute.t for node in nodes for attribute in node.attribute if attribute.name == "value"}
    return {tensor.name: tensor for tensor in graph.initializer} | made


def all_graphs(graph: Any) -> Iterator[Any]:
    """Yield a graph and all graphs inside it."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: Any) -> Iterator[Any]:
    """Yield the nodes of a graph and of all graphs inside it."""
    return (node for inner in all_graphs(graph) for node in inner.node)


def tensor_names(graph: Any) -> set[str]:
    """Return the names of all tensors of a graph and of the graphs inside it."""
    names = {value.name for value in (*graph.input, *graph.output)}
    for inner in all_graphs(graph):
        names |= {tensor.name for tensor in inner.initializer}
        names |= {name for node in inner.node for name in (*node.input, *node.output) if name}
    return names


def captures(node: Any) -> list[str]:
    """Return the outer tensors that a node's bodies take, each once, in order of use."""
    captured: dict[str, None] = {}
    for graph in subgraphs(node):
        own = _own_names(graph)
        used = [name for inner in graph.node for name in uses(inner)] + [value.name for value in graph.output]
        captured.update(dict.fromkeys(name for name in used if name not in own))
    return list(captured)


def uses(node: Any) -> list[str]:
    """Return the tensors that a node takes, those that its bodies take included, each once."""
    return [name for name in dict.fromkeys((*node.input, *captures(node))) if name]


def rename_captures(node: Any, names: Mapping[str, str]) -> None:
    """Let a node's bodies take other outer tensors, in place; those without a new name stay."""
    for graph in subgraphs(node):
        own = _own_names(graph)
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in graph.node:
            inner.input[:] = [outer.get(name, name) for name in inner.input]
            rename_captures(inner, outer)
        for value in graph.output:
            value.name = outer.get(value.name, value.name)


def renamed(node: Any, names: Mapping[str, str], *, name: str = "") -> Any:
    """Return a copy of a node with other names of tensors, in its bodies too.

    Args:
        node: The node.
        names: New names by old ones; other tensors keep theirs.
        name: The copy's own name.
    """
    copy = type(node)()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(tensor, tensor) for tensor in node.input]
    copy.output[:] = [names.get(tensor, tensor) for tensor in node.output]
    copy.name = name
    rename_captures(copy, names)
    return copy


def needed_nodes(nodes: Sequence[Any], outputs: Iterable[str]) -> list[Any]:
    """Return the nodes that these tensors need, in order.

    Args:
        nodes: Each behind those that it needs.
        outputs: Names of tensors.
    """
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(uses(node))
    return kept[::-1]


def without_copies(nodes: Sequence[Any], outputs: Collection[str]) -> list[Any]:
    """Return nodes that give the outputs themselves, without an Identity behind them where that is possible.

    Args:
        nodes: Of a graph or a body, each behind those that it needs.
        outputs: Names of tensors. One that an input, a constant or another output has the value of stays a copy.
    """
    made = {name for node in nodes for name in node.output}
    names: dict[str, str] = {}
    kept = []
    for node in reversed(nodes):
        if node.op_type == "Identity":
            copied, copy = node.input[0], names.get(node.output[0], node.output[0])
            if copy in outputs and copied in made and copied not in outputs and copied not in names:
                names[copied] = copy
                continue
        kept.append(node)
    return [renamed(node, names, name=node.name) for node in reversed(kept)]


def replace_items(field: Any, values: Iterable[Any]) -> None:
    """Replace the items of a repeated field of messages."""
    fresh = list(values)
    del field[:]
    for value in fresh:
        field.add().CopyFrom(value)  # `extend` writes each to bytes and reads these: four times as long for weights


def _own_names(graph: Any) -> set[str]:
    own = {value.name for value in (*graph.input, *graph.initializer)}
    return own.union(*(node.output for node in graph.node))


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return [_text(item) for item in value] if isinstance(value, list) else value


def only_needed(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """Return a copy of a model that gives one tensor, with the nodes and weights that it follows from alone.

    Its inputs stay as they are.
    """
    made, graph = type(model)(), model.graph
    made.ir_version, made.graph.name = model.ir_version, graph.name
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    kept = needed_nodes(graph.node, [tensor])
    needed = {name for node in kept for name in uses(node)} | {tensor}
    made.graph.node.extend(kept)
    made.graph.input.extend(graph.input)
    for value in graph.initializer:
        if value.name in needed:
            made.graph.initializer.add().CopyFrom(value)
    made.graph.sparse_initializer.extend(sparse for sparse in graph.sparse_initializer if sparse.values.name in needed)
    own = {value.name: value for value in graph.output}
    made.graph.output.extend([own[tensor]] if tensor in own else [])
    if tensor not in own:
        made.graph.output.add(name=tensor)
    return made


# ---------------------------------------------------------------- what reaches what

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
        carried: For each graph input that an operator takes as a state, the outputs that are, but for their layout,
            that state's next value. Where states of several layers are packed into one tensor, it is that of all.
        copied: For each graph output that has the values of a graph input, unchanged and in the same order, that input.
    """

    carried: dict[str, list[str]] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)


def read_flow(graph: Any) -> Flow:
    """Follow every input of a graph to the outputs, and to the states of operators."""
    inputs, outputs = ([value.name for value in values] for values in (graph.input, graph.output))
    origins = {name: frozenset([name]) for name in inputs}  # by layout: inputs, and states that operators give
    copies = {name: name for name in inputs}
    taken: dict[str, Marks] = {}
    for at, node in enumerate(in_order(graph.node)):
        if node.op_type in _LAYOUT:
            passed = frozenset[str]().union(*(origins.get(name, ()) for name in node.input))
            origins.update(dict.fromkeys(node.output, passed))
        if node.op_type in _SAME and node.input[0] in copies:
            copies[node.output[0]] = copies[node.input[0]]
        for before, after in _carried_slots(node).items():
            if len(node.output) > after:
                for name in origins.get(node.input[before], ()) if len(node.input) > before else ():
                    taken[name] = taken.get(name, frozenset()) | {f"{at}/{after}"}
                origins[node.output[after]] = frozenset([f"{at}/{after}"])
    given = {name: origins.get(name, frozenset()).difference(inputs) for name in outputs}
    return Flow(
        {name: [output for output in outputs if given[output] == taken[name]] for name in inputs if name in taken},
        {name: copies[name] for name in outputs if name in copies},
    )


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


# ---------------------------------------------------------------- what nodes are called

LAYER: Final = "stepwell.layer"
"""The key in a node's metadata (`NodeProto.metadata_props`, ONNX IR version 10) of its layer: a noun, then the name."""


def set_layer(nodes: Iterable[Any], layer: str) -> None:
    """Write into nodes that have none their layer, for example `Layer 'conv1d' (Conv1D)`; nothing where it is empty."""
    for node in nodes if layer else ():
        if not layer_of(node):
            node.metadata_props.add(key=LAYER, value=layer)


def take_layer(node: Any, nodes: Iterable[Any]) -> None:
    """Give a node the layer of those that it takes the place of, and their name, where they are of one layer."""
    names = {(layer_of(other), shared_name(other.name)): other.name for other in nodes}
    layers = {layer for layer, _ in names}
    if len(layers) == 1:
        set_layer([node], *layers)
    if len(names) == 1 and layer_of(node):
        node.name = next(iter(names.values()))


def layer_of(node: Any) -> str:
    """Return what is written into a node; empty: nothing."""
    return next((str(entry.value) for entry in node.metadata_props if entry.key == LAYER), "")


def described(node: Any) -> str:
    """Return what a message calls a node at its beginning, for example `Node 'conv' (Conv)`."""
    name = f"Node {shared_name(node.name)!r}" if node.name else "A node without name"
    return layer_of(node) or f"{name} ({node.op_type})"


def mentioned(node: Any) -> str:
    """Return the same for the middle of a sentence."""
    text = described(node)
    return text[:1].lower() + text[1:]


def numbered(name: str, number: int) -> str:
    """Return the name of one of several nodes of one name, counted from 1: onnxruntime requires unique ones."""
    return f"{name}~{number}" if number > 1 else name


def shared_name(name: str) -> str:
    """Return the name that `numbered` was given."""
    return re.sub(r"~\d+$", "", name)


def forget_layers(graph: Any) -> None:
    """Remove what is written into the nodes of a graph and of all graphs inside it."""
    for node in all_nodes(graph):
        if layer_of(node):
            replace_items(node.metadata_props, [entry for entry in node.metadata_props if entry.key != LAYER])
