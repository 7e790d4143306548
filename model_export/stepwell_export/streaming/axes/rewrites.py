"""Rewrites of a sequence graph that its runs justify: axes of a Squeeze, a newer opset.

Before and after:

    Squeeze (z)                       ->   Squeeze (z, axes of length 1 that are no rows and no timesteps)
    ReduceSum <axes = [1]> (opset 11) ->   ReduceSum (x, [1]), if no bit of the outputs changes
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx

from stepwell_export.graph.nodes import constants, read_opset
from stepwell_export.graph.onnx_file import with_opset
from stepwell_export.graph.unit_axes import OLDEST_OPSET
from stepwell_export.runtime.errors import ModelLoadError
from stepwell_export.streaming.axes.inputs import SequenceInputs
from stepwell_export.streaming.axes.measured_shapes import TensorRuns


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
