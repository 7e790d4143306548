"""A graph whose length its exporter wrote into shapes, for another length."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from stepwell_export.graph.nodes import subgraphs
from stepwell_export.runtime.manifest import Array

_MOST = 8
"""Numbers in the longest tensor that is taken for a shape."""


def with_length(model: onnx.ModelProto, *, old: int, new: int, rows: int) -> onnx.ModelProto:
    """Return the model with `new` timesteps in its shapes, wherever there were `old`."""
    made = copy.deepcopy(model)
    _change(made.graph, {old: new, **({old * rows: new * rows} if rows > 1 else {})}, {old - 1: new - 1})
    return made


def _change(graph: Any, sizes: dict[int, int], places: dict[int, int]) -> None:
    """Change shapes by `sizes` and places to gather from by `places`; changed weights become Constant nodes."""
    gathered = {node.input[1] for node in graph.node if node.op_type == "Gather"}
    changed = {}
    for tensor in list(graph.initializer):
        value = _changed(tensor, places if tensor.name in gathered else sizes)
        if value is not None:
            changed[tensor.name] = value
            graph.initializer.remove(tensor)
    for node in graph.node:
        if node.op_type == "Constant":
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    value = _changed(attribute.t, places if node.output[0] in gathered else sizes)
                    if value is not None:
                        attribute.t.CopyFrom(numpy_helper.from_array(value))
        for body in subgraphs(node):
            _change(body, sizes, places)
    for name, value in changed.items():
        tensor = numpy_helper.from_array(value)
        graph.node.insert(0, onnx.helper.make_node("Constant", [], [name], value=tensor, name=f"{name}/length"))


def _changed(tensor: onnx.TensorProto, changes: dict[int, int]) -> Array | None:
    if tensor.data_type not in {onnx.TensorProto.INT64, onnx.TensorProto.INT32} or np.prod(tensor.dims) > _MOST:
        return None
    value = numpy_helper.to_array(tensor)
    if not np.isin(value, list(changes)).any():
        return None
    changed: Array = np.vectorize(lambda size: changes.get(int(size), int(size)), otypes=[value.dtype])(value)
    return changed
