"""Graphs that are a little wrong: nodes dropped, inputs swapped, attributes and weights and shapes changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Rng = np.random.Generator


def broken(model: onnx.ModelProto, rng: Rng) -> onnx.ModelProto:
    """Return a copy with one to three things changed."""
    found = onnx.ModelProto()
    found.CopyFrom(model)
    for _ in range(int(rng.integers(1, 4))):
        WAYS[int(rng.integers(len(WAYS)))](found, rng)
    return found


def drop_node(model: onnx.ModelProto, rng: Rng) -> None:
    """Take a node out."""
    if model.graph.node:
        del model.graph.node[int(rng.integers(len(model.graph.node)))]


def pass_by(model: onnx.ModelProto, rng: Rng) -> None:
    """Let a node hand on its first input."""
    node = _any(model.graph.node, rng)
    if node is not None and node.input and node.input[0]:
        kept = list(node.input)[:1], list(node.output)[:1]
        node.CopyFrom(helper.make_node("Identity", *kept, name=node.name))


def other_operator(model: onnx.ModelProto, rng: Rng) -> None:
    """Give a node another type."""
    node = _any(model.graph.node, rng)
    if node is not None:
        node.op_type = str(
            rng.choice(["Tanh", "GRU", "LSTM", "Conv", "Softmax", "Scan", "Loop", "Nothing", "CumSum", "If"])
        )


def swap_inputs(model: onnx.ModelProto, rng: Rng) -> None:
    """Swap two inputs of a node."""
    node = _any(model.graph.node, rng)
    if node is not None and len(node.input) > 1:
        i, j = (int(k) for k in rng.choice(len(node.input), 2, replace=False))
        node.input[i], node.input[j] = node.input[j], node.input[i]


def lose_input(model: onnx.ModelProto, rng: Rng) -> None:
    """Take an input of a node away, or name one that is not there."""
    node = _any(model.graph.node, rng)
    if node is not None and node.input:
        node.input[int(rng.integers(len(node.input)))] = str(rng.choice(["", "nowhere", node.input[0]]))


def lose_attribute(model: onnx.ModelProto, rng: Rng) -> None:
    """Take an attribute away."""
    node = _any([node for node in model.graph.node if node.attribute], rng)
    if node is not None:
        del node.attribute[int(rng.integers(len(node.attribute)))]


def other_attribute(model: onnx.ModelProto, rng: Rng) -> None:
    """Change a number in an attribute."""
    node = _any([node for node in model.graph.node if node.attribute], rng)
    if node is None:
        return
    attribute = node.attribute[int(rng.integers(len(node.attribute)))]
    if attribute.ints:
        attribute.ints[int(rng.integers(len(attribute.ints)))] += int(rng.integers(-3, 4))
    elif attribute.HasField("i"):
        attribute.i += int(rng.integers(-3, 4))
    elif attribute.HasField("s"):
        attribute.s = bytes(rng.choice([b"reverse", b"bidirectional", b"forward", b"no", b"SAME_UPPER"]))


def other_shape(model: onnx.ModelProto, rng: Rng) -> None:
    """Change what an input or output declares."""
    value = _any([*model.graph.input, *model.graph.output], rng)
    if value is None or not value.type.HasField("tensor_type"):
        return
    dims = value.type.tensor_type.shape.dim
    way = int(rng.integers(5))
    if way == 0 and len(dims):
        del dims[int(rng.integers(len(dims)))]
    elif way == 1:
        dims.add().dim_value = int(rng.integers(0, 6))
    elif way == 2 and len(dims):
        dims[int(rng.integers(len(dims)))].dim_value = int(rng.choice([0, 1, 2, 3, 5, 7]))
    elif way == 3 and len(dims):
        dims[int(rng.integers(len(dims)))].Clear()
    else:
        value.type.tensor_type.elem_type = int(rng.choice([1, 6, 7, 9, 10, 11, 8]))


def other_weight(model: onnx.ModelProto, rng: Rng) -> None:
    """Change the shape, the type or the values of a weight, or take it away."""
    weights = model.graph.initializer
    if not weights:
        return
    at = int(rng.integers(len(weights)))
    name, array = weights[at].name, numpy_helper.to_array(weights[at])
    way = int(rng.integers(6))
    if way == 0:
        del weights[at]
        return
    changed: list[Callable[[Any], Any]] = [
        lambda a: a.reshape(-1),
        lambda a: a[..., :-1] if a.ndim and a.shape[-1] > 1 else a,
        lambda a: a.astype(np.float64) if a.dtype.kind == "f" else a.astype(np.float32),
        lambda a: np.full_like(a, np.nan if a.dtype.kind == "f" else -1 if a.dtype.kind == "i" else 0),
        lambda a: np.concatenate([a, a]) if a.ndim else a,
    ]
    weights[at].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(changed[way - 1](array)), name))


def other_output(model: onnx.ModelProto, rng: Rng) -> None:
    """Let an output be another tensor, or take it away."""
    outputs = model.graph.output
    if not outputs:
        return
    if rng.integers(2):
        names = [name for node in model.graph.node for name in node.output if name]
        if names:
            outputs[int(rng.integers(len(outputs)))].name = str(rng.choice(names))
    else:
        del outputs[int(rng.integers(len(outputs)))]


def other_opset(model: onnx.ModelProto, rng: Rng) -> None:
    """Say another version of the operators."""
    if model.opset_import:
        model.opset_import[0].version = int(rng.choice([1, 6, 7, 9, 11, 13, 14, 17, 21, 99]))


def twice(model: onnx.ModelProto, rng: Rng) -> None:
    """Have a node twice, or a node's name."""
    node = _any(model.graph.node, rng)
    if node is not None:
        model.graph.node.append(copy.deepcopy(node))


def other_order(model: onnx.ModelProto, rng: Rng) -> None:
    """Put the nodes in another order."""
    nodes = [copy.deepcopy(node) for node in model.graph.node]
    rng.shuffle(nodes)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


WAYS: list[Callable[[onnx.ModelProto, Rng], None]] = [
    drop_node, pass_by, other_operator, swap_inputs, lose_input, lose_attribute, other_attribute, other_shape,
    other_weight, other_output, other_opset, twice, other_order,
]  # fmt: skip


def _any(things: Any, rng: Rng) -> Any:
    return things[int(rng.integers(len(things)))] if len(things) else None
