"""The branch of a chunk under construction: nodes on many timesteps at once, and the shapes that go with them.

Tensors live in two forms. *Flat*: the step graph's own shape with rows times timesteps in place of the batch, so
that the step graph's nodes run on all timesteps at once. *Timed*: with the time axis behind the batch axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from model_export.chunk.analysis import TensorFact, subgraphs, uses

PREFIX = "chunk/of/"
"""Before the name of a step graph's tensor, of its flat form."""

LENGTHS = "chunk/lengths"
"""Tensor: rows and timesteps, int64[2]."""


class ChunkBuilder:
    """Collects the nodes of a branch.

    Attributes:
        nodes: The branch's nodes, in order.
        front: Nodes that make weights; they stand before the branches.
        constants: Weights that the branch has besides the step graph's.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.front: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: dict[tuple[Any, ...], str] = {}
        self._count = 0

    def fresh(self, what: str) -> str:
        """Return a name that is not taken."""
        self._count += 1
        return f"chunk/{self._count}/{what}"

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return that tensor's name."""
        name = self.fresh(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def ints(self, values: int | Sequence[int]) -> str:
        """Return a constant of int64: a list, or a single number."""
        array = np.asarray(values, np.int64)
        key = ("ints", array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.fresh("ints")
            self.constants.append(numpy_helper.from_array(array, self._known[key]))
        return self._known[key]

    def timed_shape(self, before: tuple[int, ...], behind: tuple[int, ...]) -> str:
        """Return a shape with rows and timesteps between the given lengths."""
        key = ("shape", before, behind)
        if key not in self._known:
            parts = [*([self.ints(before)] if before else []), LENGTHS, *([self.ints(behind)] if behind else [])]
            self._known[key] = LENGTHS if len(parts) == 1 else self.op("Concat", *parts, axis=0)
        return self._known[key]

    def timed(self, flat: str, axis: int, row: tuple[int, ...]) -> str:
        """Return a flat tensor with the time axis behind its batch axis."""
        return self.op("Reshape", flat, self.timed_shape(row[:axis], row[axis:]))

    def flat(self, timed: str, axis: int, row: tuple[int, ...]) -> str:
        """Undo `timed`."""
        return self.op("Reshape", timed, self.ints([*row[:axis], -1, *row[axis:]]))

    def last(self, timed: str, axis: int) -> str:
        """Return a timed tensor's last timestep, shaped as in the step graph."""
        return self.op("Gather", timed, self.ints(-1), axis=axis + 1)

    def sequence(self, flat: str, fact: TensorFact) -> str:
        """Return a flat tensor as `timed`.

        Args:
            flat: The tensor.
            fact: What it is in the step graph; it has a batch axis.
        """
        assert fact.axis is not None
        return self.timed(flat, fact.axis, fact.row)


def renamed(node: onnx.NodeProto, name: Callable[[str], str]) -> onnx.NodeProto:
    """Return a copy of a node with other tensor names, in its subgraphs too."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [name(tensor) if tensor else "" for tensor in node.input]
    copy.output[:] = [name(tensor) if tensor else "" for tensor in node.output]
    copy.name = ""
    for graph in subgraphs(copy):
        _rename_captured(graph, name)
    return copy


def _rename_captured(graph: onnx.GraphProto, name: Callable[[str], str]) -> None:
    own = {tensor for node in graph.node for tensor in node.output}
    own |= {given.name for given in graph.input} | {init.name for init in graph.initializer}

    def outer(tensor: str) -> str:
        return tensor if tensor in own else name(tensor)

    for node in graph.node:
        node.input[:] = [outer(tensor) if tensor else "" for tensor in node.input]
        for inner in subgraphs(node):
            _rename_captured(inner, outer)
    for output in graph.output:
        output.name = outer(output.name)


def mapped(names: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that gives a name its new one, and leaves others as they are."""
    return lambda tensor: names.get(tensor, tensor)


def tensors(names: Iterable[str], kinds: Iterable[int]) -> list[onnx.ValueInfoProto]:
    """Return declarations without shapes."""
    return [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]


def ranked(names: Iterable[str], facts: Iterable[TensorFact]) -> list[onnx.ValueInfoProto]:
    """Return declarations with the number of axes alone, which onnxruntime wants of a Scan's body."""
    return [
        helper.make_tensor_value_info(name, fact.kind, [None] * (len(fact.row) + (fact.axis is not None)))
        for name, fact in zip(names, facts, strict=True)
    ]


def wanted(nodes: Sequence[onnx.NodeProto], outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """Return the nodes that these outputs need, in order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(uses(node))
    return kept[::-1]
