"""Writes the operator Attention out where it has a mask or is causal: its softmax then shows which timesteps count.

Before and after:

    q, k, v, mask                          q    k transposed
       |                                     MatMul
    Attention <is_causal = 1>         ->       | Mul by the scale, Where: the mask
       |                                       | Softmax    v
    y                                          MatMul: y
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.nodes import attributes, described, layer_of, replace_items, set_layer, tensor_names
from stepwell_export.graph.onnx_file import infer_types, without_weights
from stepwell_export.runtime.errors import RefusedModelError

_Types = dict[str, onnx.TypeProto.Tensor]


def with_attention_written_out(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a graph with MatMul and Softmax in the place of every Attention that has a mask or is causal.

    Those with past keys or with a softcap stay as they are.
    """
    if not any(_is_masked(node) for node in model.graph.node):
        return model
    types = {name: kind for name, kind in infer_types(without_weights(model)).items() if kind.HasField("shape")}
    taken, nodes = tensor_names(model.graph), list[onnx.NodeProto]()
    for node in model.graph.node:
        if _is_masked(node) and types.keys() >= {node.input[0], *filter(None, node.input[3:4])}:
            written = NodeBuilder(node.name or node.output[0], taken)
            _write(written, node, types)
            taken |= {name for made in written.nodes for name in made.output} | {t.name for t in written.constants}
            nodes += written.nodes
            model.graph.initializer.extend(written.constants)
        else:
            nodes.append(node)
    replace_items(model.graph.node, nodes)
    return model


def _is_masked(node: onnx.NodeProto) -> bool:
    if node.op_type != "Attention" or node.domain not in {"", "ai.onnx"}:
        return False
    given = attributes(node)
    if not any(node.input[3:4]) and not given.get("is_causal"):
        return False
    return not given.get("softcap") and not any(node.input[4:]) and not any(node.output[1:])


def _write(graph: NodeBuilder, node: onnx.NodeProto, types: _Types) -> None:
    """Emit the nodes of an Attention; source: ONNX operator Attention.

    Args:
        graph: Takes the nodes.
        node: The Attention.
        types: Types of tensors, as far as they are known.
    """
    op, ints, given = graph.op, graph.ints, attributes(node)
    query, key, value, mask = [*node.input, ""][:4]
    kind, is_flat = types[query].elem_type, len(types[query].shape.dim) == 3  # flat: the heads side by side
    heads, key_heads = _heads(node, types)
    if is_flat:
        query, key, value = (
            op("Transpose", op("Reshape", x, ints([0, 0, count, -1])), perm=[0, 2, 1, 3])
            for x, count in ((query, heads), (key, key_heads), (value, key_heads))
        )
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if scale := given.get("scale"):
        factor = graph.constant(dtype.type(scale))
    else:
        width = op("Gather", op("Shape", query), ints(3))
        factor = op("Reciprocal", op("Sqrt", op("Cast", width, to=kind)))
    shared = heads // key_heads if key_heads else 1

    def reheaded(x: str, *sizes: int) -> list[str]:
        """Return the Reshape of a tensor with other axes in the place of its heads."""
        shape = op("Shape", x)
        rows, rest = op("Slice", shape, ints([0]), ints([1])), op("Slice", shape, ints([-2]), ints([2**31]))
        return ["Reshape", x, op("Concat", rows, ints(sizes), rest, axis=0)]

    if shared > 1:
        query = op(*reheaded(query, key_heads, shared))
        key, value = (op("Unsqueeze", x, ints([2])) for x in (key, value))
    turned = [0, 1, 3, 2] if shared == 1 else [0, 1, 2, 4, 3]
    scores = op("Mul", op("MatMul", query, op("Transpose", key, perm=turned)), factor)
    scores = scores if shared == 1 else op(*reheaded(scores, heads))
    lowest = graph.constant(np.finfo(dtype).min)
    if given.get("is_causal"):
        both = op("Slice", op("Shape", scores), ints([2]), ints([4]))
        ones = op("ConstantOfShape", both, value=helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]))
        scores = op("Where", op("Cast", op("Trilu", ones, upper=0), to=TensorProto.BOOL), scores, lowest)
    if mask:
        is_choice = types[mask].elem_type == TensorProto.BOOL
        scores = op("Where", mask, scores, lowest) if is_choice else op("Add", scores, mask)
    weights = op("Softmax", scores, axis=-1)
    answer = ["MatMul", weights if shared == 1 else op(*reheaded(weights, key_heads, shared)), value]
    if shared > 1:
        answer = reheaded(op(*answer), heads)
    if is_flat:
        answer = ["Reshape", op("Transpose", op(*answer), perm=[0, 2, 1, 3]), ints([0, 0, -1])]
    graph.add(answer[0], answer[1:], [node.output[0]])
    for made in graph.nodes:
        made.name = made.output[0]  # states are named after it
    set_layer(graph.nodes, layer_of(node))


def _heads(node: onnx.NodeProto, types: _Types) -> list[int]:
    """Return how many heads the queries and the keys have, 0 where it is not known.

    Raises:
        RefusedModelError: They are side by side, and their number is missing.
    """
    given = attributes(node)
    if len(types[node.input[0]].shape.dim) == 4:
        shapes = [list(types[name].shape.dim) if name in types else [] for name in node.input[:2]]
        return [shape[1].dim_value if len(shape) == 4 else 0 for shape in shapes]
    if "q_num_heads" not in given:
        raise RefusedModelError(
            f"{described(node)} has inputs of three axes and no attribute q_num_heads.",
            fix="Export it again; `onnx.checker` finds what else is missing.",
        )
    return [given["q_num_heads"], given.get("kv_num_heads", given["q_num_heads"])]
