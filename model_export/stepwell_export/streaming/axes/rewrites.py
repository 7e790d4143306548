"""A rewrite of a sequence graph that its runs justify: axes of a Squeeze.

Before and after:

    Squeeze (z)   ->   Squeeze (z, axes of length 1 that are no rows and no timesteps)
"""

from __future__ import annotations

import copy
from collections.abc import Collection

import numpy as np
import onnx

from stepwell_export.graph.nodes import constants
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
        del node.input[1:]
        node.input.append(f"{node.name}/axes")
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), node.input[1]))
    return TensorRuns(made)


def _has_axes(node: onnx.NodeProto, empty: Collection[str]) -> bool:
    return any(node.input[1:2]) and node.input[1] not in empty
