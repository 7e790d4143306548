"""Brings a sequence graph from anywhere into one plain form, which means the same.

The operator Attention is written out where it has a mask or is causal: its softmax then shows which timesteps count.

Before and after:

    q, k, v, mask                          q    k transposed
       |                                     MatMul
    Attention <is_causal = 1>         ->       | Mul by the scale, Where: the mask
       |                                       | Softmax    v
    y                                          MatMul: y
"""

from __future__ import annotations

import copy
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.nodes import (
    all_graphs,
    all_nodes,
    attributes,
    constants,
    described,
    in_order,
    layer_of,
    numbered,
    read_opset,
    renamed,
    replace_items,
    set_layer,
    tensor_names,
)
from stepwell_export.graph.onnx_file import (
    Declared,
    declared_sizes,
    forget_shapes,
    infer_types,
    read_model,
    with_opset,
    without_functions,
    without_weights,
)
from stepwell_export.graph.operators import RNN, STATEFUL
from stepwell_export.graph.unit_axes import OLDEST_OPSET
from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import METADATA_KEY, Array
from stepwell_export.runtime.outside_weights import to_array

_OLDEST_SCAN = 9


class PlainForm(NamedTuple):
    """A sequence graph in its plain form.

    Attributes:
        graph: Functions inlined, operators of opset 18 or later, every node named, recurrent operators in the layout
            that onnxruntime runs (time, batch, features), the ranks of the inputs alone declared: shapes may lie.
        declared: What was declared.
        only_length: The declared number of timesteps, which the graph answers alone; None: it may answer others.
    """

    graph: onnx.ModelProto
    declared: Declared
    only_length: int | None = None


def load_graph(source: Any, given: Mapping[str, Array]) -> PlainForm:
    """Return a sequence graph without functions, declared shapes or batch-first recurrences.

    Args:
        source: An ONNX file, or an `onnx.ModelProto`, which is left alone.
        given: Inputs that are given once and for all.

    Raises:
        FileError: There is no such file.
        ModelLoadError: The file is no ONNX model, or onnx cannot convert its operators to those of opset 18.
        RefusedModelError: It is a step graph that was exported already, or has the Scan of opset 8.
        UnclearModelError: A constant is no input.
    """
    is_file = isinstance(source, str | Path)
    plain = read_model(Path(source), weights=True) if is_file else without_functions(copy.deepcopy(source))
    if any(entry.key == METADATA_KEY for entry in plain.metadata_props):
        raise RefusedModelError(
            f"{plain.graph.name!r} is a step graph with its manifest already; expected a graph over whole sequences.",
            fix="Serve it as it is, or export the model that it was made of; `stepwell inspect` shows it.",
        )
    _give(plain.graph, given)
    weights = {tensor.name for tensor in plain.graph.initializer}
    inputs = [value for value in plain.graph.input if value.name not in weights]
    replace_items(plain.graph.input, inputs)
    plain = with_attention_written_out(plain)
    _sort_nodes(plain.graph)
    _check_names(plain.graph)
    _name_nodes(plain.graph)
    _name_states(plain.graph)
    replace_items(plain.graph.node, _time_first(plain.graph.node))
    only_length = _drop_idle_inputs(plain)
    _skip_copies(plain.graph)
    declared = declared_sizes(plain.graph)
    forget_shapes(plain.graph)
    if read_opset(plain) < OLDEST_OPSET:
        _check_scans(plain)
        plain = with_opset(plain, OLDEST_OPSET)
    return PlainForm(plain, declared, only_length)


def _give(graph: onnx.GraphProto, given: Mapping[str, Array]) -> None:
    """Make inputs weights."""
    inputs = {value.name: value for value in graph.input}
    for name, value in given.items():
        if name not in inputs:
            raise UnclearModelError(
                f"The graph has no input {name!r}; its inputs are {sorted(inputs)}.", fix="Check the name."
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(inputs[name].type.tensor_type.elem_type)
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))


def _time_first(nodes: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Give recurrent operators with `layout` 1, which onnxruntime refuses, layout 0 between transpositions."""
    done: list[onnx.NodeProto] = []

    def turned(source: str, target: str, perm: Sequence[int]) -> str:
        done.append(onnx.helper.make_node("Transpose", [source], [target], perm=perm, name=f"{target}/layout"))
        return target

    for node in nodes:
        if node.op_type not in RNN or not attributes(node).get("layout"):
            done.append(node)
            continue
        replace_items(node.attribute, [attribute for attribute in node.attribute if attribute.name != "layout"])
        stem = node.name or node.output[0] or node.output[1]
        for place in (0, 5, 6):
            if place < len(node.input) and node.input[place]:
                node.input[place] = turned(node.input[place], f"{stem}/time_first_{place}", (1, 0, 2))
        done.append(node)
        for place, perm in enumerate([(2, 0, 1, 3), (1, 0, 2), (1, 0, 2)][: len(node.output)]):
            if name := node.output[place]:
                node.output[place] = f"{stem}/time_first_out_{place}"
                turned(node.output[place], name, perm)
    return done


def _drop_idle_inputs(plain: onnx.ModelProto) -> int | None:
    """Leave out initial states of zeros, and lengths that are the declared length of what the recurrence runs over.

    They often fix the exporter's batch size. A length that equals another declared size is a length: timesteps after
    it give zeros.

    Returns:
        The length that was left out; None: there was none.
    """
    only_length = None
    fixed = constants(plain.graph)
    types: dict[str, onnx.TypeProto.Tensor] = {}
    for node in plain.graph.node:
        for place in range(4, min(len(node.input), 7)) if node.op_type in RNN else ():
            if node.input[place] in fixed:
                values = set(to_array(fixed[node.input[place]]).reshape(-1).tolist())
                if place == 4:
                    types = types or infer_types(without_weights(plain))
                    dims = types[node.input[0]].shape.dim if node.input[0] in types else []
                    is_idle = bool(dims) and values == {dims[0].dim_value}
                    only_length = dims[0].dim_value if is_idle else only_length
                else:
                    is_idle = not any(values)
                if is_idle:
                    node.input[place] = ""
    return only_length


def _skip_copies(graph: onnx.GraphProto) -> None:
    """Use weights by their own names: exporters give those of a layer that is called twice a second one by Identity."""
    weights, outputs = {tensor.name for tensor in graph.initializer}, {value.name for value in graph.output}
    copies: dict[str, str] = {}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in weights and node.output[0] not in outputs:
            copies[node.output[0]] = node.input[0]
    if copies:
        kept = [node for node in graph.node if node.output[0] not in copies]
        replace_items(graph.node, [renamed(node, copies, name=node.name) for node in kept])


def _sort_nodes(graph: onnx.GraphProto) -> None:
    """Put each node behind those that it needs, in the bodies too; a graph with a circle is left to onnxruntime."""
    for inner in all_graphs(graph):
        replace_items(inner.node, in_order(inner.node))


def _check_names(graph: onnx.GraphProto) -> None:
    """Refuse a graph that gives one name to two inputs or two outputs.

    Raises:
        RefusedModelError: It names the tensor.
    """
    for what, values in (("input", graph.input), ("output", graph.output)):
        for name, times in Counter(value.name for value in values).items():
            if times > 1:
                raise RefusedModelError(
                    f"The graph declares {what} {name!r} {times} times; expected once.",
                    fix="Export it again with a name for each.",
                )


def _check_scans(model: onnx.ModelProto) -> None:
    """Refuse a Scan that no newer one computes.

    Raises:
        RefusedModelError: It names the node.
    """
    for node in filter(lambda node: node.op_type == "Scan", all_nodes(model.graph)):
        if read_opset(model) < _OLDEST_SCAN:
            raise RefusedModelError(
                f"{described(node)} is the Scan of opset 8, which has a batch axis and lengths.",
                fix="Export the model again with opset 9 or later; 18 is best.",
                layer=described(node),
            )


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give every node a name of its own, as onnxruntime requires; states are named after nodes."""
    for index, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    for inner in all_graphs(graph):
        taken = set[str]()
        for node in filter(lambda node: node.name, inner.node):
            names = (numbered(node.name, number) for number in itertools.count(1))
            node.name = next(name for name in names if name not in taken)
            taken.add(node.name)


def _name_states(graph: onnx.GraphProto) -> None:
    """Give operators an output for a state that they have along time: its shape is measured there."""
    for node in graph.node:
        operator = STATEFUL.get(node.op_type)
        for place in operator.states.values() if operator is not None and operator.time_axis is not None else ():
            node.output.extend([""] * (place + 1 - len(node.output)))
            node.output[place] = node.output[place] or f"{node.name}/state_{place}"


# ---------------------------------------------------------------- the operator Attention, written out

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
