"""Rewrites of a sequence graph that its runs justify: branches of an `If`, axes of a Squeeze, a newer opset.

Before and after:

    c = Equal (Shape (x)[2], 4)            the nodes of g, since all sequences have 4 features
    y = If (c) { g } { h }            ->
    Squeeze (z)                       ->   Squeeze (z, axes of length 1 that are no rows and no timesteps)
    ReduceSum <axes = [1]> (opset 11) ->   ReduceSum (x, [1]), if no bit of the outputs changes
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import constants, layer_of, read_opset, renamed, replace_items, set_layer
from stepwell_export.graph.onnx_file import with_opset
from stepwell_export.graph.unit_axes import OLDEST_OPSET
from stepwell_export.graph_session import GraphSession
from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.streaming.axes.dependence import BATCH, DATA, TIME
from stepwell_export.streaming.axes.inputs import ROWS, SequenceInputs
from stepwell_export.streaming.axes.measured_shapes import TensorRuns, measure_shapes


def without_known_branches(runs: TensorRuns, inputs: SequenceInputs) -> TensorRuns:
    """Return the graph with the branch that is taken in the place of each such `If`.

    One branch is taken for all sequences only where the condition follows from sizes that are neither the number of
    timesteps nor that of rows. Where the length is declared, sequences of that length alone are proven.
    """
    while True:
        graph = runs.graph.graph
        conditions = {node.input[0] for node in graph.node if node.op_type == "If"}
        taken = _decided(runs, inputs, sorted(conditions))
        if not taken:
            return runs
        runs = TensorRuns(_inlined(runs.graph, taken))


def with_squeeze_axes(runs: TensorRuns, inputs: SequenceInputs) -> TensorRuns:
    """Return the graph with axes for each Squeeze without: it would drop the batch of one row, or one timestep.

    onnxruntime takes an empty list of axes for none.
    """
    model = runs.graph
    empty = {name for name, tensor in constants(model.graph).items() if list(tensor.dims) == [0]}
    bare = [node for node in model.graph.node if node.op_type == "Squeeze" and not _has_axes(node, empty)]
    if not bare:
        return runs
    made, values = copy.deepcopy(model), runs.at(inputs)
    for node in made.graph.node:
        if node.op_type != "Squeeze" or _has_axes(node, empty):
            continue
        axes = [axis for axis, size in enumerate(np.shape(values[node.input[0]])) if size == 1]
        if read_opset(model) < 13:
            del node.attribute[:]
            node.attribute.append(onnx.helper.make_attribute("axes", axes))
        else:
            del node.input[1:]
            node.input.append(f"{node.name}/axes")
            made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), node.input[1]))
    return TensorRuns(made)


def _has_axes(node: onnx.NodeProto, empty: Collection[str]) -> bool:
    if len(node.input) > 1:
        return bool(node.input[1]) and node.input[1] not in empty
    return any(attribute.ints for attribute in node.attribute)


def _decided(runs: TensorRuns, inputs: SequenceInputs, conditions: list[str]) -> dict[str, bool]:
    """Return the conditions that follow from the weights, and from sizes that are the same for all sequences."""
    if not conditions:
        return {}
    free = set() if inputs.length is not None else {TIME}
    free |= {BATCH, DATA} if inputs.only_rows is None else {DATA}
    facts = measure_shapes(runs, inputs)
    conditions = [name for name in conditions if not (facts.depends(name).value | facts.depends(name).shape) & free]
    given, counts = runs.loaded.weights, range(1 if inputs.only_rows else 2)
    every = [{**given, **runs.at(inputs, rows, length)} for rows in counts for length in range(2)]
    if inputs.length is not None:
        feeds = inputs.feeds(inputs.only_rows or ROWS[0], inputs.length, 0)
        every.append(
            {**given, **GraphSession(runs.graph, [name for name in conditions if name not in given]).run(feeds)}
        )
    decisions = {name: {bool(np.reshape(values[name], ())) for values in every} for name in conditions}
    return {name: seen.pop() for name, seen in decisions.items() if len(seen) == 1}


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


def with_newer_operators(runs: TensorRuns, inputs: SequenceInputs) -> TensorRuns:
    """Return the graph with operators that take their axes as inputs, if it gives the same bits; else as it is.

    A step graph of such operators has no axes of length 1, and chunks.
    """
    if read_opset(runs.graph) >= OLDEST_OPSET:
        return runs
    try:
        made = TensorRuns(with_opset(runs.graph, OLDEST_OPSET))
        pairs = [(runs.at(inputs, place, place), made.at(inputs, place, place)) for place in (0, 1)]
    except ModelLoadError:  # what onnx does not convert, or onnxruntime does not run
        return runs
    outputs = [value.name for value in runs.graph.graph.output]
    same = all(_are_equal(before[name], other[name]) for before, other in pairs for name in outputs)
    return made if same else runs


def _are_equal(left: Any, other: Any) -> bool:
    """Whether two tensors are the same, NaN included; lists of tensors are not compared."""
    return isinstance(left, np.ndarray) and np.array_equal(left, other, equal_nan=left.dtype.kind == "f")
