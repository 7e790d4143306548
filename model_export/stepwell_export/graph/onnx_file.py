"""Reads an ONNX file without running it; the onnx package is imported when it is needed."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell_export.graph.nodes import all_graphs, all_nodes, replace_items
from stepwell_export.runtime.errors import FileError, MissingExtraError, ModelLoadError
from stepwell_export.runtime.outside_weights import without_initializers

if TYPE_CHECKING:
    import onnx

_SMALL = 64
"""Numbers in a constant that may be axes or a shape; a larger one is a weight."""


def read_model(path: Path, *, weights: bool = False) -> onnx.ModelProto:
    """Return a file's model, its local functions put in place of their calls.

    Args:
        path: The ONNX file.
        weights: Whether to read weights that lie beside the file, too.

    Raises:
        MissingExtraError: The onnx package is not installed.
        FileError: There is no such file.
        ModelLoadError: The file is no ONNX model.
    """
    onnx = require_onnx()
    if not path.is_file():
        raise FileError(f"{path} is not there; expected an ONNX file.", fix="Check the path.")
    try:
        model = onnx.load(str(path), load_external_data=weights)
    except Exception as exc:
        raise ModelLoadError(f"{path} is not an ONNX model: {exc}.", fix="Give the path of an .onnx file.") from exc
    return without_functions(model)


def require_onnx() -> Any:
    """Return the onnx package.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import onnx
    except ImportError as exc:
        raise MissingExtraError(
            f"Reading the nodes of a graph needs the onnx package, which cannot be imported: {exc}.",
            fix="Install it: pip install 'stepwell[onnx]'; from a clone: STEPWELL_EXTRAS=onnx ./stepwell ...",
        ) from exc
    return onnx


def without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model with its local functions in the place of their calls."""
    import onnx.inliner

    return onnx.inliner.inline_local_functions(model) if model.functions else model


Declared = dict[str, list[int | str | None]]
"""The declared size of every axis of every input: a number, a name or nothing."""


def declared_sizes(graph: onnx.GraphProto) -> Declared:
    """Return what a graph declares of its inputs."""
    return {
        value.name: [
            int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else str(dim.dim_param) or None
            for dim in value.type.tensor_type.shape.dim
        ]
        for value in graph.input
    }


def forget_shapes(graph: onnx.GraphProto) -> None:
    """Keep types and ranks: onnxruntime has to see that a Loop's counter is a scalar. Ranks of outputs are measured."""
    for value in graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for inner in all_graphs(graph):
        del inner.value_info[:]
        for value in (*inner.input, *inner.output):
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model whose initializers are inputs; those of more than 64 numbers are inputs alone."""
    import onnx

    lean = without_initializers(model)
    lean.ir_version, graph = max(model.ir_version, 4), lean.graph
    graph.name = graph.name or "graph"
    del graph.value_info[:], graph.sparse_initializer[:]
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        if tensor.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return lean


def infer_types(lean: onnx.ModelProto) -> dict[str, onnx.TypeProto.Tensor]:
    """Return the types of a model's tensors as far as onnx infers them; none where it cannot follow the graph.

    Args:
        lean: As `without_weights` returns it.
    """
    import onnx.shape_inference

    try:
        graph = onnx.shape_inference.infer_shapes(lean, data_prop=True).graph
    except Exception:  # noqa: BLE001  # whatever onnx raises; what needs a type is left as it is then
        return {}
    return {value.name: value.type.tensor_type for value in (*graph.value_info, *graph.input, *graph.output)}


def with_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """Return a model with the operators of a later version.

    Raises:
        ModelLoadError: onnx has no conversion for one of them, or cannot infer a type that the conversion needs.
    """
    import onnx.version_converter

    try:
        converted = onnx.version_converter.convert_version(without_weights(model), opset)
    except Exception as exc:  # onnx raises RuntimeError, and errors of its own that are none
        raise ModelLoadError(
            f"onnx cannot convert the graph to opset {opset}: {str(exc).strip()[:200]}.",
            fix=f"Export it with opset {opset} or later.",
        ) from exc
    notes = {node.name: node.metadata_props for node in all_nodes(model.graph) if node.metadata_props}
    for node in all_nodes(converted.graph):
        replace_items(node.metadata_props, notes.get(node.name, ()))  # the conversion leaves them out
    made = copy.deepcopy(model)
    made.ir_version = max(model.ir_version, 8)
    replace_items(made.opset_import, converted.opset_import)
    replace_items(made.graph.node, converted.graph.node)
    known = {tensor.name for tensor in model.graph.initializer}
    made.graph.initializer.extend(tensor for tensor in converted.graph.initializer if tensor.name not in known)
    return made
