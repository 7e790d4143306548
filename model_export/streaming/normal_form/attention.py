"""Writes the operator Attention out where it has a mask or is causal: its softmax then shows which timesteps count."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from model_export.errors import RefusedModelError
from model_export.graph.described import described, layer_of, set_layer
from model_export.graph.nodes import attributes, tensor_names

if TYPE_CHECKING:
    from model_export.graph.builder import NodeBuilder


def with_attention_written_out(model: Any) -> Any:
    """Return a graph with MatMul and Softmax in the place of every Attention that has a mask or is causal.

    Those with past keys, with a softcap, or with fewer heads for keys than for queries stay as they are.
    """
    import onnx
    import onnx.shape_inference

    nodes, taken = list(model.graph.node), tensor_names(model.graph)
    if not any(_is_masked(node) for node in nodes):
        return model
    graph = onnx.shape_inference.infer_shapes(model).graph
    values = {value.name: value.type.tensor_type for value in (*graph.input, *graph.value_info, *graph.output)}
    types = {name: (kind.elem_type, len(kind.shape.dim)) for name, kind in values.items() if kind.HasField("shape")}
    heads = {name: kind.shape.dim[1].dim_value for name, kind in values.items() if len(kind.shape.dim) == 4}
    types |= {tensor.name: (tensor.data_type, len(tensor.dims)) for tensor in graph.initializer}
    del model.graph.node[:]
    for node in nodes:
        is_open = _is_masked(node) and all(name in types for name in (node.input[0], *filter(None, node.input[3:4])))
        is_open = is_open and len({heads.get(name) for name in node.input[:3]}) == 1
        if is_open:
            written = _written_out(node, types, taken)
            taken |= {name for made in written.nodes for name in made.output} | {t.name for t in written.constants}
            model.graph.node.extend(written.nodes)
            model.graph.initializer.extend(written.constants)
        else:
            model.graph.node.append(node)
    return model


def _is_masked(node: Any) -> bool:
    if node.op_type != "Attention" or node.domain not in {"", "ai.onnx"}:
        return False
    given = attributes(node)
    if not any(node.input[3:4]) and not given.get("is_causal"):
        return False
    heads = {given[name] for name in ("q_num_heads", "kv_num_heads") if name in given}
    return len(heads) < 2 and not given.get("softcap") and not any(node.input[4:]) and not any(node.output[1:])


def _written_out(node: Any, types: dict[str, tuple[int, int]], taken: Collection[str]) -> NodeBuilder:
    """Source: ONNX operator Attention."""
    from onnx import TensorProto, helper

    from model_export.graph.builder import NodeBuilder

    given = attributes(node)
    query, key, value, mask = [*node.input, ""][:4]
    kind, rank = types[query]
    real = helper.tensor_dtype_to_np_dtype(kind)
    stem = node.name or node.output[0]
    graph = NodeBuilder(stem, taken)
    op, constant = graph.op, graph.constant

    if rank == 3:  # the heads side by side
        if "q_num_heads" not in given:
            raise RefusedModelError(
                f"{described(node)} has inputs of three axes and no attribute q_num_heads.",
                fix="Export it again; `onnx.checker` finds what else is missing.",
            )
        apart = constant(np.array([0, 0, given["q_num_heads"], -1], np.int64))
        query, key, value = (op("Transpose", op("Reshape", x, apart), perm=[0, 2, 1, 3]) for x in (query, key, value))
    if scale := given.get("scale"):
        factor = constant(real.type(scale))
    else:
        width = op("Gather", op("Shape", query), constant(np.int64(3)))
        factor = op("Reciprocal", op("Sqrt", op("Cast", width, to=kind)))
    scores = op("Mul", op("MatMul", query, op("Transpose", key, perm=[0, 1, 3, 2])), factor)
    lowest = constant(np.finfo(real).min)
    if given.get("is_causal"):
        both = op("Slice", op("Shape", scores), constant(np.array([2])), constant(np.array([4])))
        ones = op("ConstantOfShape", both, value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
        scores = op("Where", op("Cast", op("Trilu", ones, upper=0), to=TensorProto.BOOL), scores, lowest)
    if mask and types[mask][0] == TensorProto.BOOL:
        scores = op("Where", mask, scores, lowest)
    elif mask:
        scores = op("Add", scores, mask)
    answer = ["MatMul", op("Softmax", scores, axis=-1), value]
    if rank == 3:
        answer = ["Reshape", op("Transpose", op(*answer), perm=[0, 2, 1, 3]), constant(np.array([0, 0, -1]))]
    graph.add(answer[0], answer[1:], [node.output[0]])
    for made in graph.nodes:
        made.name = made.output[0]  # states are named after it
    set_layer(graph.nodes, layer_of(node))
    return graph
