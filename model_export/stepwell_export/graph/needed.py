"""The part of a graph that one tensor follows from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepwell_export.graph.nodes import uses

if TYPE_CHECKING:
    import onnx


def only_needed(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """Return a copy of a model that gives one tensor, with the nodes and weights that it follows from alone.

    Its inputs stay as they are.
    """
    made, graph = type(model)(), model.graph
    made.ir_version, made.graph.name = model.ir_version, graph.name
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    needed, kept = {tensor}, []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(uses(node))
    made.graph.node.extend(reversed(kept))
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
