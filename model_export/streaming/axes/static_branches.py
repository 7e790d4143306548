"""Writes into a graph what follows from its sizes: the branch that an `If` takes, the axes that a Squeeze drops."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx

from model_export.graph.described import layer_of, set_layer
from model_export.graph.nodes import read_opset, renamed, replace_items, uses
from model_export.streaming.axes.inputs import SequenceInputs
from model_export.streaming.axes.runs import TensorRuns


def without_known_branches(runs: TensorRuns, inputs: SequenceInputs) -> TensorRuns:
    """Return the graph with the branch that is taken in the place of each such `If`."""
    while True:
        graph = runs.graph.graph
        known = _from_sizes(graph, inputs)
        found = [node for node in graph.node if node.op_type == "If" and node.input[0] in known]
        taken = _decided(runs, inputs, [node.input[0] for node in found])
        if not taken:
            return runs
        runs = TensorRuns(_inlined(runs.graph, taken))


def with_squeeze_axes(runs: TensorRuns, inputs: SequenceInputs) -> TensorRuns:
    """Return the graph with axes for each Squeeze without: it would drop the batch of one row, or one timestep."""
    model = runs.graph
    bare = [node for node in model.graph.node if node.op_type == "Squeeze" and not _axes(node)]
    if not bare:
        return runs
    made, values = copy.deepcopy(model), runs.at(inputs)
    for node in made.graph.node:
        if node.op_type != "Squeeze" or _axes(node):
            continue
        axes = [axis for axis, size in enumerate(np.shape(values[node.input[0]])) if size == 1]
        if read_opset(model) < 13:
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
        else:
            del node.input[1:]
            node.input.append(f"{node.name}/axes")
            made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), node.input[1]))
    return TensorRuns(made)


def _axes(node: onnx.NodeProto) -> bool:
    return len(node.attribute) > 0 or (len(node.input) > 1 and bool(node.input[1]))


def _from_sizes(graph: onnx.GraphProto, inputs: SequenceInputs) -> set[str]:
    """Return the tensors that follow from weights and sizes."""
    known = {tensor.name for tensor in graph.initializer}
    known |= {one.name for one in inputs.inputs if one.role != "external"}
    for node in graph.node:
        if known.issuperset(uses(node)) or node.op_type in {"Shape", "Size"}:
            known |= set(node.output)
    return known


def _decided(runs: TensorRuns, inputs: SequenceInputs, conditions: list[str]) -> dict[str, bool]:
    """Return the conditions that are the same for all sizes."""
    if not conditions:
        return {}
    given, counts = runs.load().weights, range(1 if inputs.only_rows else 2)
    every = [{**given, **runs.at(inputs, rows, length)} for rows in counts for length in range(2)]
    found = {name: {bool(np.reshape(values[name], ())) for values in every} for name in conditions}
    return {name: seen.pop() for name, seen in found.items() if len(seen) == 1}


def _inlined(model: onnx.ModelProto, taken: dict[str, bool]) -> onnx.ModelProto:
    nodes: list[Any] = []
    for node in model.graph.node:
        if node.op_type != "If" or node.input[0] not in taken:
            nodes.append(node)
            continue
        wanted = "then_branch" if taken[node.input[0]] else "else_branch"
        body = next(attribute.g for attribute in node.attribute if attribute.name == wanted)
        nodes += _body(model.graph, node, body)
    made = copy.deepcopy(model)
    replace_items(made.graph.node, nodes)
    made.graph.initializer.extend(model.graph.initializer[len(made.graph.initializer) :])
    return made


def _body(graph: onnx.GraphProto, node: onnx.NodeProto, body: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return a branch's nodes under names of their own, with the outputs of the `If`."""
    names: dict[str, str] = {}
    for tensor in body.initializer:
        names[tensor.name] = f"{node.name}/{tensor.name}"
        graph.initializer.append(tensor)  # a copy
        graph.initializer[-1].name = names[tensor.name]
    nodes = []
    for index, inner in enumerate(body.node):
        names |= {name: f"{node.name}/{name}" for name in inner.output if name}
        own = inner.name or f"{inner.op_type}_{index}"
        nodes.append(renamed(inner, names, name=f"{node.name}/{own}"))
    for value, outer in zip(body.output, node.output, strict=True):
        nodes.append(
            onnx.helper.make_node("Identity", [names.get(value.name, value.name)], [outer], name=f"{node.name}/{outer}")
        )
    set_layer(nodes, layer_of(node))
    return nodes
