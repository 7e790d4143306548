"""The first copy of a loop that was written out, where it differs from the others: there was no state yet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stepwell_export.runtime.manifest import Array
from stepwell_export.streaming.normal_form.scan_body import ScanBody, TimeSlice

_OF_ZERO = {
    "Abs", "Ceil", "Erf", "Floor", "Gelu", "Identity", "LeakyRelu", "Neg", "Relu", "Reshape", "Sin", "Squeeze", "Sqrt",
    "Tanh", "Transpose", "Unsqueeze", "Cast", "Div", "Expand", "Slice", "Gather",
}  # fmt: skip
"""Operators that make zeros of a first operand of zeros."""


class FirstCopy:
    """Compares the first copy of a loop with what another copy makes of states that are zero."""

    def __init__(
        self,
        nodes: Sequence[onnx.NodeProto],
        makers: Mapping[str, int],
        constants: Mapping[str, Array],
        slices: Mapping[str, TimeSlice],
    ) -> None:
        self._nodes, self._makers, self._constants, self._slices = nodes, makers, constants, slices

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
            node, other_node = self._maker(one), self._maker(two)
            if node is None or other_node is None:
                return False
            if node.op_type == "Add" and not zero.isdisjoint(node.input):
                return equal(node.input[0] if node.input[1] in zero else node.input[1], two)
            if node.op_type == "Sub" and node.input[1] in zero:
                return equal(node.input[0], two)
            same = node.op_type == other_node.op_type and len(node.input) == len(other_node.input)
            attributes = [sorted(a.SerializeToString() for a in each.attribute) for each in (node, other_node)]
            at = [list(each.output).index(name) for each, name in ((node, one), (other_node, two))]
            return (
                same
                and attributes[0] == attributes[1]
                and at[0] == at[1]
                and all(
                    a == b or (bool(a and b) and equal(a, b)) for a, b in zip(node.input, other_node.input, strict=True)
                )
            )

        return equal(ours, theirs)

    def _zeros(self, root: str, carried: Collection[str], is_source: Callable[[str], bool]) -> set[str]:
        """Return what is zero of all that a tensor is made of, where these states are."""
        known: dict[str, bool] = {}

        def visit(name: str) -> bool:
            if name in known:
                return known[name]
            known[name] = name in carried or self._is_zero(name)
            node = None if known[name] or is_source(name) else self._maker(name)
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

    def _maker(self, name: str) -> onnx.NodeProto | None:
        return self._nodes[self._makers[name]] if name in self._makers else None

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

    def filled(self, like: str, kind: onnx.TypeProto.Tensor | None, value: float = 0.0) -> str:
        """Return a value in the shape of a tensor in front of the Scan, and of its type; float32 where it has none."""
        name = f"{self._label}/{like}/start/{len(self.nodes)}"
        element = TensorProto.FLOAT if kind is None else kind.elem_type
        fill = helper.make_tensor("value", element, [1], [value])
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
