"""The body of a Scan, made of one copy of a loop's body and of the nodes that cut one timestep out of a sequence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stepwell_export.graph.nodes import attributes, constants, needed_nodes, renamed
from stepwell_export.runtime.manifest import Array

FEWEST = 4
"""Timesteps of a sequence that is cut into all of them: fewer may be the parts of a split."""


@dataclass(frozen=True, slots=True)
class TimeSlice:
    """One timestep of a sequence: its tensor, axis and place, and whether the axis is kept with length 1."""

    data: str
    axis: int
    at: int
    keeps: bool


def time_slices(nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array]) -> Iterator[tuple[str, TimeSlice]]:
    """Yield what is cut out of a sequence as one timestep of it, by name."""
    for node in nodes:
        attrs = attributes(node)
        if node.op_type == "Gather" and (place := constants.get(node.input[1])) is not None:
            if place.size == 1 and place.ndim <= 1 and place.min() >= 0:
                axis = int(attrs.get("axis", 0))
                yield node.output[0], TimeSlice(node.input[0], axis, int(place.reshape(())), place.ndim == 1)
        elif node.op_type == "Slice" and len(node.input) > 3:
            parts = [constants.get(name) for name in node.input[1:]]
            if all(part is not None and part.size == 1 for part in parts):
                start, end, axis, *step = (int(np.reshape(part, ())) for part in parts if part is not None)
                if end == start + 1 and start >= 0 and step in ([], [1]):
                    yield node.output[0], TimeSlice(node.input[0], axis, start, keeps=True)
        elif node.op_type == "Split" and len(node.output) >= FEWEST:
            sizes = constants.get(node.input[1]) if len(node.input) > 1 else None
            if sizes is not None and (sizes == 1).all():
                axis = int(attrs.get("axis", 0))
                yield from (
                    (name, TimeSlice(node.input[0], axis, at, keeps=True)) for at, name in enumerate(node.output)
                )


def live_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Return the nodes that the outputs depend on, in order."""
    return needed_nodes(list(graph.node), [value.name for value in graph.output])


class ScanBody:
    """The body of a Scan under construction; its tensors get names of their own."""

    def __init__(self, label: str, opset: int, model: onnx.ModelProto) -> None:
        self._label = label
        self._opset = opset
        self._model = model
        self._names: dict[str, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._takes: list[str] = []
        self._makers: dict[str, onnx.NodeProto] = {}

    def state(self, name: str) -> None:
        """Declare a carried tensor."""
        self._names[name] = f"{self._label}/in/{name}"
        self._takes.append(self._names[name])

    def element(self, name: str, cut: TimeSlice) -> None:
        """Declare one timestep of a sequence."""
        taken = f"{self._label}/element/{name}"
        self._takes.append(taken)
        self._names[name] = taken
        if cut.keeps:
            self._names[name] = f"{self._label}/{name}"
            self._reshaped("Unsqueeze", taken, self._names[name], cut.axis)

    def node(self, node: onnx.NodeProto) -> None:
        """Add a node of the copy."""
        made = {name: f"{self._label}/{name}" for name in node.output if name}
        self._names |= made
        self._nodes.append(renamed(node, self._names, name=f"{self._label}/{node.name}"))
        self._makers |= dict.fromkeys(made.values(), self._nodes[-1])

    def add(self, node: onnx.NodeProto) -> None:
        """Add a node on tensors of the body."""
        self._nodes.append(node)

    def rename(self, name: str, inner: str) -> None:
        """Let a tensor be another one of the body from now on."""
        self._names[name] = inner

    def inner_name(self, name: str) -> str:
        """Return what a tensor is called in the body; one from outside keeps its name."""
        return self._names.get(name, name)

    def without_axis(self, name: str, axis: int) -> str:
        """Return a result without the axis that the results of all timesteps are joined on."""
        inner = self.inner_name(name)
        maker = self._makers.get(inner)
        if maker is not None and maker.op_type == "Unsqueeze" and self._axes(maker) == [axis]:
            return str(maker.input[0])
        squeezed = f"{inner}/without_axis"
        self._reshaped("Squeeze", inner, squeezed, axis)
        return squeezed

    def graph(self, outs: list[str]) -> onnx.GraphProto:
        """Return the body; an output that is an input, or is there twice, is passed through an Identity."""
        given: list[str] = []
        for place, name in enumerate(outs):
            made = f"{self._label}/out/{place}"
            self._nodes.append(helper.make_node("Identity", [name], [made], name=made))
            given.append(made)
        takes, gives = ([onnx.ValueInfoProto(name=name) for name in names] for names in (self._takes, given))
        return helper.make_graph(self._nodes, self._label, takes, gives)

    def _axes(self, node: onnx.NodeProto) -> list[int] | None:
        axes = attributes(node).get("axes")
        if axes is not None:
            return [int(axis) for axis in axes]
        tensors = constants(self._model.graph)
        if len(node.input) < 2 or node.input[1] not in tensors:
            return None
        return [int(axis) for axis in numpy_helper.to_array(tensors[node.input[1]]).reshape(-1)]

    def _reshaped(self, kind: str, given: str, made: str, axis: int) -> None:
        if self._opset < 13:
            self._nodes.append(helper.make_node(kind, [given], [made], name=made, axes=[axis]))
            return
        axes = f"{made}/axes"
        self._model.graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), axes))
        self._nodes.append(helper.make_node(kind, [given, axes], [made], name=made))
