"""How many ids an input of a sequence graph may have: the size of the tables that it is looked up in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from stepwell_export.graph.nodes import constants
from stepwell_export.graph.operators import RESHAPING
from stepwell_export.runtime.manifest import Array

_SAME_NUMBERS = RESHAPING | {"Cast", "Clip"}
_LOOKUPS = {"Gather": (1, 0), "OneHot": (0, 1)}
"""By operator: the places of the ids and of their number."""


def vocabularies(graph: onnx.GraphProto) -> dict[str, int]:
    """Return the number of ids by input, for those inputs that are looked up in a table as they are.

    An input that is looked up in several tables has the ids of the smallest.
    """
    weights = {name: numpy_helper.to_array(tensor) for name, tensor in constants(graph).items()}
    origin = {value.name: value.name for value in graph.input}
    sizes: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in _SAME_NUMBERS and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        size = _size_of_table(node, origin, weights)
        if size:
            name = origin[node.input[_LOOKUPS[node.op_type][0]]]
            sizes[name] = min(size, sizes.get(name, size))
    return sizes


def _size_of_table(node: onnx.NodeProto, origin: Mapping[str, str], weights: Mapping[str, Array]) -> int:
    """Return how many ids a node looks up among; 0 where it looks up nothing that an input gives."""
    ids, table = _LOOKUPS.get(node.op_type, (0, 0))
    if ids == table or len(node.input) <= max(ids, table):
        return 0
    table_weights = weights.get(node.input[table])
    if node.input[ids] not in origin or table_weights is None:
        return 0
    if node.op_type == "OneHot":
        return int(np.reshape(table_weights, -1)[0]) if table_weights.size == 1 else 0
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
    return int(table_weights.shape[axis]) if -table_weights.ndim <= axis < table_weights.ndim else 0
