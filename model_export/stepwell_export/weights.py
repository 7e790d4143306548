"""Weights in fewer bits: a model file of half or a quarter of the size."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stepwell_export.graph.nodes import all_graphs, replace_items
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.outside_weights import to_array

if TYPE_CHECKING:
    import onnx

Weights = Literal["fp16", "int8"]

ATOL: dict[Weights, float] = {"fp16": 5e-3, "int8": 1e-1}
"""Default absolute tolerance of the parity check, from what the page "Exporting models" of the documentation has."""

SMALLEST = 256
"""Numbers in a weight; below that the nodes that expand it take about the room they save."""

_LARGEST = np.finfo(np.float32).max / 2
"""Tables of masks hold the lowest number of float32, which rounding to int8 would make infinite."""

_SLICE = 16  # elements that share a scale, at least; a matrix of SMALLEST elements always has an axis for it


def compress_weights(model: onnx.ModelProto, weights: Weights, *, kept: Collection[str] = ()) -> onnx.ModelProto:
    """Return a copy whose float32 weights are stored in fewer bits and expanded when the file is loaded.

    `fp16` rounds each weight to float16. `int8` rounds each matrix to int8 with one scale for each slice along the
    axis that loses least by it; vectors stay as they are. onnxruntime folds the nodes that expand them, so that
    a step is computed in float32 at the same speed as before, and every row by itself. (Dynamic quantisation has one
    scale for the activations of a whole batch: what a stream is answered would depend on who is served with it.)

    Weights that a format cannot hold, because they are not finite or too big for float16, stay as they are.

    Args:
        model: Any model; its weights are the float32 initializers and Constant nodes, subgraphs included.
        weights: The format.
        kept: Names of weights that stay as they are.
    """
    shrunk = copy.deepcopy(model)
    shrunk.ir_version = max(shrunk.ir_version, 4)  # before, every initializer had to be an input as well
    for graph in reversed(list(all_graphs(shrunk.graph))):  # the inner ones first: nodes are copied
        _shrink_graph(graph, weights, kept)
    return shrunk


def _shrink_graph(graph: Any, weights: Weights, left: Collection[str]) -> None:
    _constants_to_initializers(graph)
    given = {*left, *(value.name for value in graph.input)}  # a caller may give these another value
    kept, expanding = [], []
    for tensor in graph.initializer:
        values = to_array(tensor)
        parts = None
        if values.dtype == np.float32 and values.size >= SMALLEST and tensor.name not in given:
            parts = _half(tensor.name, values) if weights == "fp16" else _int8(tensor.name, values)
        stored, nodes = parts or ([tensor], [])
        kept += stored
        expanding += nodes
    replace_items(graph.initializer, kept)
    replace_items(graph.node, [*expanding, *graph.node])


def _constants_to_initializers(graph: Any) -> None:
    for node in [node for node in graph.node if node.op_type == "Constant" and node.attribute[0].name == "value"]:
        tensor = graph.initializer.add()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        graph.node.remove(node)


def _half(name: str, values: Array) -> tuple[list[Any], list[Any]] | None:
    from onnx import TensorProto, helper, numpy_helper

    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        return None
    stored = numpy_helper.from_array(half, f"{name}.float16")
    return [stored], [helper.make_node("Cast", [stored.name], [name], to=TensorProto.FLOAT)]


def _int8(name: str, values: Array) -> tuple[list[Any], list[Any]] | None:
    from onnx import TensorProto, helper, numpy_helper

    is_vector = max(values.shape) == values.size  # such as the biases of an LSTM, (1, 8 * units)
    if is_vector or not np.abs(values).max() < _LARGEST:
        return None
    scales = [_scale(values, axis) for axis in range(values.ndim) if values.size >= _SLICE * values.shape[axis]]
    scale = min(scales, key=lambda scale: float(np.square(np.rint(values / scale) * scale - values).sum(dtype=float)))
    stored = numpy_helper.from_array(np.rint(values / scale).astype(np.int8), f"{name}.int8")
    factor = numpy_helper.from_array(scale, f"{name}.scale")
    unscaled = f"{name}.unscaled"
    return [stored, factor], [
        helper.make_node("Cast", [stored.name], [unscaled], to=TensorProto.FLOAT),
        helper.make_node("Mul", [unscaled, factor.name], [name]),
    ]


def _scale(values: Array, axis: int) -> Array:
    """Return the scale of int8, one for each slice along an axis."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    largest = np.abs(values).max(axis=others, keepdims=True)
    return np.where(largest == 0, np.float32(1), largest / np.float32(127)).astype(np.float32)
