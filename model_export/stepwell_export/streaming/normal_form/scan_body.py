"""The body of a Scan, made of one copy of a loop's body and of the nodes that cut one timestep out of a sequence.

A first copy may differ from the others, as there was no state yet.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stepwell_export.graph.nodes import attributes, captures, constants, needed_nodes, renamed
from stepwell_export.runtime.manifest import Array

FEWEST = 4
"""Timesteps of a sequence that is cut into all of them: fewer may be the parts of a split."""

_SMALL = 64
"""Numbers in a weight that may be axes, a shape or places."""


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


class SearchedGraph:
    """A graph in which loops are searched for.

    Attributes:
        model: The model.
        nodes: Those that its outputs depend on, in order.
        makers: The index of the node that makes each tensor.
        constants: The values of Constant nodes, and of small weights.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = live_nodes(model.graph)
        self.makers = {name: at for at, node in enumerate(self.nodes) for name in node.output if name}
        self.constants: dict[str, Array] = {
            name: numpy_helper.to_array(tensor)
            for name, tensor in constants(model.graph).items()
            if name in self.makers or np.prod(tensor.dims) < _SMALL
        }

    def maker(self, name: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor."""
        return self.nodes[self.makers[name]] if name in self.makers else None


def are_copies(ours: str, left: onnx.NodeProto, theirs: str, right: onnx.NodeProto) -> bool:
    """Whether two tensors are the same output of the same operation, whatever that uses.

    Nodes with bodies that use outer tensors are not the same.

    Args:
        ours: The one tensor.
        left: Its node.
        theirs: The other tensor.
        right: Its node.
    """
    first, other = (sorted(attribute.SerializeToString() for attribute in node.attribute) for node in (left, right))
    same_operator = left.op_type == right.op_type and len(left.input) == len(right.input) and first == other
    return same_operator and not captures(left) and list(left.output).index(ours) == list(right.output).index(theirs)


class ScanBody:
    """The body of a Scan under construction; its tensors get names of their own."""

    def __init__(self, label: str, model: onnx.ModelProto) -> None:
        self._label = label
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
        tensors = constants(self._model.graph)
        if len(node.input) < 2 or node.input[1] not in tensors:
            return None
        return [int(axis) for axis in numpy_helper.to_array(tensors[node.input[1]]).reshape(-1)]

    def _reshaped(self, kind: str, given: str, made: str, axis: int) -> None:
        axes = f"{made}/axes"
        self._model.graph.initializer.append(numpy_helper.from_array(np.array([axis], np.int64), axes))
        self._nodes.append(helper.make_node(kind, [given, axes], [made], name=made))


# ---------------------------------------------------------------- a first copy that differs from the others

_OF_ZERO = {
    "Abs", "Ceil", "Erf", "Floor", "Gelu", "Identity", "LeakyRelu", "Neg", "Relu", "Reshape", "Sin", "Squeeze", "Sqrt",
    "Tanh", "Transpose", "Unsqueeze", "Cast", "Div", "Expand", "Slice", "Gather",
}  # fmt: skip
"""Operators that make zeros of a first operand of zeros."""


class FirstCopy:
    """Compares the first copy of a loop with what another copy makes of states that are zero."""

    def __init__(self, graph: SearchedGraph, slices: Mapping[str, TimeSlice]) -> None:
        self._graph, self._constants, self._slices = graph, graph.constants, slices

    def is_from_zeros(self, ours: str, theirs: str, carried: Collection[str], is_source: Callable[[str], bool]) -> bool:
        """Whether a tensor of the first copy is what the same of another copy is where all states are zero.

        Args:
            ours: The tensor of the other copy.
            theirs: That of the first copy.
            carried: What the other copy uses of the one before.
            is_source: Whether a tensor is one timestep of a sequence.
        """
        zero = self._zeros(ours, carried, is_source)

        def equal(one: str, two: str) -> bool:
            if one == two:
                return True
            if one in zero:
                return self._is_zero(two)
            if is_source(one):
                cut, other = self._slices[one], self._slices.get(two)
                return other is not None and (cut.data, cut.axis, cut.keeps) == (other.data, other.axis, other.keeps)
            if one in self._constants and two in self._constants:
                return np.array_equal(self._constants[one], self._constants[two])
            node, other_node = self._graph.maker(one), self._graph.maker(two)
            if node is None or other_node is None:
                return False
            if node.op_type == "Add" and not zero.isdisjoint(node.input):
                return equal(node.input[0] if node.input[1] in zero else node.input[1], two)
            if node.op_type == "Sub" and node.input[1] in zero:
                return equal(node.input[0], two)
            return are_copies(one, node, two, other_node) and all(
                a == b or (bool(a and b) and equal(a, b)) for a, b in zip(node.input, other_node.input, strict=True)
            )

        return equal(ours, theirs)

    def _zeros(self, root: str, carried: Collection[str], is_source: Callable[[str], bool]) -> set[str]:
        """Return what is zero of all that a tensor is made of, where these states are."""
        known: dict[str, bool] = {}

        def visit(name: str) -> bool:
            if name in known:
                return known[name]
            known[name] = name in carried or self._is_zero(name)
            node = None if known[name] or is_source(name) else self._graph.maker(name)
            if node is not None:
                given = [visit(used) for used in node.input if used]
                operator = node.op_type
                if operator in {"Mul", "MatMul"}:
                    known[name] = any(given)
                elif operator in {"Add", "Sub", "Concat", "Sum"}:
                    known[name] = all(given)
                elif operator == "Gemm":
                    known[name] = any(given[:2]) and all(given[2:])
                else:
                    known[name] = operator in _OF_ZERO and given[:1] == [True]
            return known[name]

        visit(root)
        return {name for name, is_zero in known.items() if is_zero}

    def _is_zero(self, name: str) -> bool:
        return name in self._constants and not np.any(self._constants[name])


class Begun:
    """Chooses in the body of a Scan between the first copy and the others: a state that is 1 after the first timestep.

    Attributes:
        first: What the first copy makes, by what the others do.
        before: Initial values of the states.
        after: What they become.
        nodes: Nodes in front of the Scan.
    """

    def __init__(self, scan: ScanBody, model: onnx.ModelProto, label: str, first: Mapping[str, str]) -> None:
        """Declare the states of the body; those of the loop come before."""
        self._scan, self._model, self._label = scan, model, label
        self.first = first
        self.before: list[str] = []
        self.after: list[str] = []
        self.nodes: list[onnx.NodeProto] = []
        self._flags: dict[str, str] = {}
        for ours, theirs in first.items():
            self._flags[ours] = self.filled(theirs, None)
            self.before.append(self._flags[ours])
            scan.state(self._flags[ours])

    def filled(self, like: str, kind: onnx.TypeProto.Tensor | None) -> str:
        """Return zeros in the shape of a tensor in front of the Scan, and of its type; float32 where it has none."""
        name = f"{self._label}/{like}/start/{len(self.nodes)}"
        element = TensorProto.FLOAT if kind is None else kind.elem_type
        fill = helper.make_tensor("value", element, [1], [0.0])
        self.nodes.append(helper.make_node("Shape", [like], [f"{name}/shape"], name=f"{name}/shape"))
        self.nodes.append(helper.make_node("ConstantOfShape", [f"{name}/shape"], [name], name=name, value=fill))
        return name

    def choose(self) -> None:
        """Let the body give what the first copy makes at the first timestep."""
        for ours, theirs in self.first.items():
            flag = self._scan.inner_name(self._flags[ours])
            name = f"{self._flags[ours]}/chosen"
            one = f"{name}/one"
            self._model.graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), one))
            self._scan.add(helper.make_node("Cast", [flag], [f"{name}/is"], name=f"{name}/is", to=TensorProto.BOOL))
            both = [self._scan.inner_name(ours), self._scan.inner_name(theirs)]
            self._scan.add(helper.make_node("Where", [f"{name}/is", *both], [name], name=name))
            self._scan.add(helper.make_node("Max", [flag, one], [f"{name}/next"], name=f"{name}/next"))
            self._scan.rename(ours, name)
            self.after.append(f"{name}/next")
