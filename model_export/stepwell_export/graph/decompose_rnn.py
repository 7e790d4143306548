r"""Writes LSTM, GRU and RNN operators that run over one timestep as matrix products and elementwise operators.

Every row of a batch then comes out bit for bit as it does alone, which the operators do not promise, and small networks
run up to twice as fast in batches. Source of the formulas: the operators' specifications.

Before and after:

    x (1, B, 4)   h, c (1, B, 5)           x (B, 4)       h (B, 5)
         \        /                           | Gemm        | MatMul
          LSTM                        ->        \___ Add ___/
         /        \                                | Split: Sigmoid, Tanh, Mul, Add with c
    y (1, 1, B, 5)  h, c                   h, c of the next timestep
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import onnx
from onnx import numpy_helper

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.nodes import (
    attributes,
    constants,
    in_order,
    needed_nodes,
    read_opset,
    renamed,
    replace_items,
    tensor_names,
    uses,
)
from stepwell_export.graph.onnx_file import infer_types, without_weights
from stepwell_export.graph.operators import RNN, STATEFUL

OLDEST_OPSET = 13
"""The first one in which axes and parts are inputs."""

_ACTIVATIONS: dict[str, dict[str, float]] = {
    "Tanh": {}, "Sigmoid": {}, "Relu": {}, "Softsign": {}, "Softplus": {}, "HardSigmoid": {"alpha": 0.2, "beta": 0.5},
    "Elu": {"alpha": 1.0}, "LeakyRelu": {"alpha": 0.01}, "Affine": {"alpha": 0.0, "beta": 0.0},
}  # fmt: skip
"""Activations that are written out, with their numbers where the operator gives none, as onnxruntime has them."""

DEFAULT_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}

_Activations = list[tuple[str, dict[str, float]]]


def decompose_rnn(model: onnx.ModelProto, keep: Collection[str] = (), *, flat: bool = True) -> onnx.ModelProto:
    """Return a model without the operators that run over one timestep; the model itself where it has none.

    Args:
        model: Any model. Operators over several timesteps stay as they are, and those without an initial state.
        keep: Outputs of operators that stay.
        flat: Whether weights that are used so alone are stored without their axis of directions.
    """
    operators = [node for node in _one_timestep_operators(model) if not set(keep).intersection(node.output)]
    if not operators:
        return model
    outputs = [value.name for value in model.graph.output]
    writing = _Writing(model, {_key(node) for node in operators})
    known = constants(model.graph) | {tensor.name: tensor for tensor in writing.constants}
    nodes = needed_nodes(in_order(_without_detours(writing.nodes, known, outputs)), outputs)
    flattened = _used_flat(model, writing.squeezed, nodes) if flat else {}
    rename = {node.output[0]: weight for weight, node in flattened.items()}
    nodes = [renamed(node, rename, name=node.name) for node in nodes if rename.keys().isdisjoint(node.output)]
    made = copy.deepcopy(model)
    replace_items(made.graph.node, nodes)
    used = {name for node in nodes for name in uses(node)}.union(outputs, (value.name for value in model.graph.input))
    weights = [tensor for tensor in (*model.graph.initializer, *writing.constants) if tensor.name in used]
    replace_items(made.graph.initializer, weights)
    for tensor in made.graph.initializer:
        if tensor.name in flattened:
            del tensor.dims[0]
    return made


def _used_flat(
    model: onnx.ModelProto, squeezed: Iterable[onnx.NodeProto], nodes: Iterable[onnx.NodeProto]
) -> dict[str, onnx.NodeProto]:
    """Return the weights that are used without their axis of directions alone, with the nodes that take it away."""
    stored = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.output}
    count = Counter(name for node in nodes for name in uses(node))
    return {node.input[0]: node for node in squeezed if node.input[0] in stored and count[node.input[0]] == 1}


class _Writing:
    """A model's nodes with operators written out.

    Attributes:
        nodes: All of them.
        constants: Those of the new nodes.
        squeezed: The nodes that take the axis of directions from weights.
    """

    def __init__(self, model: onnx.ModelProto, operators: Collection[str]) -> None:
        self._opset = read_opset(model)
        self._at = ""
        self._build = NodeBuilder("rnn", tensor_names(model.graph))
        self.nodes, self.constants = self._build.nodes, self._build.constants
        self.squeezed: list[onnx.NodeProto] = []
        for node in model.graph.node:
            if _key(node) in operators:
                self._at = _key(node).rpartition("/")[0] or node.name
                self._write(node)
            else:
                self.nodes.append(node)

    # ---------------------------------------------------------------- one operator

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self._build.op(kind, *inputs, at=self._at, **attributes)

    def _split(self, tensor: str, count: int, axis: int, *parts: str) -> list[str]:
        more = {"num_outputs": count} if self._opset >= 18 and not parts else {}
        return self._build.split_op("Split", tensor, *parts, outputs=count, at=self._at, axis=axis, **more)

    def _prepared(self, node: onnx.NodeProto) -> list[list[str]]:
        """Emit the weights of an operator without their axis of directions; return W, the parts of R and of B."""
        attrs, ints = attributes(node), self._build.ints
        resets_before = node.op_type == "GRU" and not attrs.get("linear_before_reset")
        given = [name for name in node.input[1:4] if name]
        w, r, *b = (self._op("Squeeze", name, ints([0])) for name in given)
        self.squeezed += self.nodes[-len(given) :]
        biases = self._split(b[0], 2, 0) if b else []
        if biases and (node.op_type != "GRU" or resets_before):  # both are added at one place
            biases = [self._op("Add", *biases)]
        units = attrs["hidden_size"]
        return [[w], self._split(r, 2, 0, ints([2 * units, units])) if resets_before else [r], biases]

    def _write(self, node: onnx.NodeProto) -> None:
        (w,), r, b = self._prepared(node)
        x, h, *c = (
            self._op("Squeeze", name, self._build.ints([0])) for name in (node.input[0], *node.input[5:7]) if name
        )
        of_input = self._product(x, w, *b[:1])
        kinds = _activations(node)
        if node.op_type == "GRU":
            after = [self._gru(of_input, h, r, b[1:], kinds)]
        else:
            total = self._product(h, *r, of_input)
            after = self._lstm(total, c[0], kinds) if c else [self._activated(kinds[0], total)]
        for place, name in enumerate(node.output):
            if name:
                axes = self._build.ints([0] if place else [0, 1])
                self._build.add("Unsqueeze", [after[max(place - 1, 0)], axes], [name])

    def _product(self, x: str, weight: str, *added: str) -> str:
        return self._op("Gemm", x, weight, *added, transB=1)

    def _activated(self, activation: tuple[str, dict[str, float]], x: str) -> str:
        kind, numbers = activation
        if kind != "Affine":
            return self._op(kind, x, **numbers)
        for operator, value, nothing in (("Mul", numbers["alpha"], 1), ("Add", numbers["beta"], 0)):
            x = x if value == nothing else self._op(operator, x, self._build.constant(value, "float32"))
        return x

    def _lstm(self, total: str, c: str, kinds: _Activations) -> list[str]:
        i, o, f, new = self._split(total, 4, 1)
        i, o, f = (self._activated(kinds[0], gate) for gate in (i, o, f))
        added = self._op("Mul", i, self._activated(kinds[1], new))
        cell = self._op("Add", self._op("Mul", f, c), added)
        return [self._op("Mul", o, self._activated(kinds[2], cell)), cell]

    def _gru(self, of_input: str, h: str, r: list[str], b: list[str], kinds: _Activations) -> str:
        x_z, x_r, x_h = self._split(of_input, 3, 1)
        resets_before = len(r) > 1
        h_z, h_r, *h_h = self._split(self._product(h, r[0], *b), 2 if resets_before else 3, 1)
        update, reset = (self._activated(kinds[0], self._op("Add", *pair)) for pair in ((x_z, h_z), (x_r, h_r)))
        if resets_before:
            mixed = self._product(self._op("Mul", reset, h), r[1], x_h)
        else:
            mixed = self._op("Add", x_h, self._op("Mul", reset, *h_h))
        rest = self._op("Sub", self._build.constant(1.0, "float32"), update)
        new = self._op("Mul", rest, self._activated(kinds[1], mixed))
        return self._op("Add", self._op("Mul", update, h), new)


# ---------------------------------------------------------------- which operators


def _one_timestep_operators(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the operators that can be written out: over one timestep, float32, with weights that are constant."""
    operators = [node for node in model.graph.node if node.op_type in RNN and _is_plain(node)]
    if not operators or read_opset(model) < OLDEST_OPSET:
        return []
    sequences = _sequences(model, {node.input[0] for node in operators})
    constant = {tensor.name for tensor in model.graph.initializer} - {value.name for value in model.graph.input}
    for node in in_order(model.graph.node):
        used = uses(node)
        if constant.issuperset(used) and (used or node.op_type == "Constant"):
            constant.update(node.output)
    return [n for n in operators if n.input[0] in sequences and constant.issuperset(filter(None, n.input[1:4]))]


def _is_plain(node: onnx.NodeProto) -> bool:
    attrs, given = attributes(node), [*node.input, *[""] * 8]
    return (
        "hidden_size" in attrs
        and attrs.get("direction", "forward") == "forward"
        and not {name for name in ("clip", "layout", "input_forget") if attrs.get(name)}
        and not (given[4] or given[7])
        and all(given[5 : 5 + len(STATEFUL[node.op_type].states)])
        and set(attrs.get("activations", ())) <= _ACTIVATIONS.keys()
    )


def _activations(node: onnx.NodeProto) -> _Activations:
    """Return each activation with its numbers; the operator lists these for those alone that have any."""
    attrs = attributes(node)
    given = {name: iter(attrs.get(f"activation_{name}", ())) for name in ("alpha", "beta")}
    kinds = attrs.get("activations") or DEFAULT_ACTIVATIONS[node.op_type]
    return [(kind, {name: next(given[name], usual) for name, usual in _ACTIVATIONS[kind].items()}) for kind in kinds]


def _sequences(model: onnx.ModelProto, names: Collection[str]) -> set[str]:
    """Return which of these tensors are float32 and have a first axis of length 1, by what the graph declares."""
    types = infer_types(without_weights(model))
    return {
        name for name in names & types.keys()
        if types[name].elem_type == onnx.TensorProto.FLOAT
        and [dim.dim_value for dim in types[name].shape.dim][:1] == [1]  # there are none where the rank is not inferred
    }  # fmt: skip


def _key(node: onnx.NodeProto) -> str:
    """Return the first output of an LSTM, GRU or RNN, which identifies it; empty for other operators."""
    return next(filter(None, node.output), "") if node.op_type in RNN else ""


def _without_detours(
    nodes: Iterable[onnx.NodeProto], known: Mapping[str, onnx.TensorProto], outputs: Collection[str]
) -> list[onnx.NodeProto]:
    """Return nodes without those that take away an axis which was just put in."""
    put_in: dict[tuple[str, str], str] = {}
    names: dict[str, str] = {}
    kept = []
    for node in nodes:
        made = renamed(node, names, name=node.name) if names.keys() & set(uses(node)) else node
        if made.op_type in {"Squeeze", "Unsqueeze"} and len(made.input) > 1 and made.input[1] in known:
            axes = str(numpy_helper.to_array(known[made.input[1]]).tolist())
            if made.op_type == "Unsqueeze":
                put_in[made.output[0], axes] = made.input[0]
            elif made.output[0] not in outputs and (made.input[0], axes) in put_in:
                names[made.output[0]] = put_in[made.input[0], axes]
                continue
        kept.append(made)
    return kept
