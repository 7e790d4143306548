"""Writes the operator Attention out where it has a mask or is causal: its softmax then shows which timesteps count."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from model_export.errors import RefusedModelError
from model_export.graph.described import described, layer_of, set_layer
from model_export.graph.nodes import attributes, tensor_names

if TYPE_CHECKING:
    from model_export.graph.builder import NodeBuilder


def with_attention_written_out(model: Any) -> Any:
    """Return a graph with MatMul and Softmax in the place of every Attention that has a mask or is causal.

    Those with past keys or with a softcap stay as they are.
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
        if is_open:
            written = _written_out(node, types, taken, [heads.get(name, 0) for name in node.input[:2]])
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
    return not given.get("softcap") and not any(node.input[4:]) and not any(node.output[1:])


def _written_out(
    node: Any, types: dict[str, tuple[int, int]], taken: Collection[str], heads: Sequence[int]
) -> NodeBuilder:
    """Source: ONNX operator Attention.

    Args:
        node: The node.
        types: Type and number of axes by tensor.
        taken: Names that the graph has.
        heads: Those of the queries and of the keys, as far as shapes show them.
    """
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
        heads = [given["q_num_heads"], given.get("kv_num_heads", given["q_num_heads"])]
        query, key, value = (
            op("Transpose", op("Reshape", x, constant(np.array([0, 0, count, -1], np.int64))), perm=[0, 2, 1, 3])
            for x, count in zip((query, key, value), [*heads, heads[1]], strict=True)
        )
    if scale := given.get("scale"):
        factor = constant(real.type(scale))
    else:
        width = op("Gather", op("Shape", query), constant(np.int64(3)))
        factor = op("Reciprocal", op("Sqrt", op("Cast", width, to=kind)))
    shared = heads[0] // heads[1] if heads[1] else 1

    def reheaded(x: str, *sizes: int) -> list[str]:
        """Return the Reshape of a tensor with other axes in the place of its heads."""
        shape = op("Shape", x)
        rows = op("Slice", shape, constant(np.array([0])), constant(np.array([1])))
        rest = op("Slice", shape, constant(np.array([-2])), constant(np.array([2**31])))
        return ["Reshape", x, op("Concat", rows, constant(np.array(sizes, np.int64)), rest, axis=0)]

    if shared > 1:
        query = op(*reheaded(query, heads[1], shared))
        key, value = (op("Unsqueeze", x, constant(np.array([2]))) for x in (key, value))
    turned = [0, 1, 3, 2] if shared == 1 else [0, 1, 2, 4, 3]
    scores = op("Mul", op("MatMul", query, op("Transpose", key, perm=turned)), factor)
    scores = scores if shared == 1 else op(*reheaded(scores, heads[0]))
    lowest = constant(np.finfo(real).min)
    if given.get("is_causal"):
        both = op("Slice", op("Shape", scores), constant(np.array([2])), constant(np.array([4])))
        ones = op("ConstantOfShape", both, value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
        scores = op("Where", op("Cast", op("Trilu", ones, upper=0), to=TensorProto.BOOL), scores, lowest)
    if mask and types[mask][0] == TensorProto.BOOL:
        scores = op("Where", mask, scores, lowest)
    elif mask:
        scores = op("Add", scores, mask)
    weights = op("Softmax", scores, axis=-1)
    answer = ["MatMul", weights if shared == 1 else op(*reheaded(weights, heads[1], shared)), value]
    if shared > 1:
        answer = reheaded(op(*answer), heads[0])
    if rank == 3:
        answer = ["Reshape", op("Transpose", op(*answer), perm=[0, 2, 1, 3]), constant(np.array([0, 0, -1]))]
    graph.add(answer[0], answer[1:], [node.output[0]])
    for made in graph.nodes:
        made.name = made.output[0]  # states are named after it
    set_layer(graph.nodes, layer_of(node))
    return graph
