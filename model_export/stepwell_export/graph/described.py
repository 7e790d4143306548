"""What messages and states call a node: its layer, where a front end has written one into it, or its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from stepwell_export.graph.nodes import all_nodes, replace_items

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
