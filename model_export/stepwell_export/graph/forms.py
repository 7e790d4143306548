"""Forms of a tensor of a step graph, with all its axes or without some of length 1; and which of them nodes need."""

from __future__ import annotations

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from stepwell_export.graph.builder import NodeBuilder
from stepwell_export.graph.nodes import attributes
from stepwell_export.graph.operators import RNN

Axes = tuple[int, ...]
Sizes = tuple[tuple[int, int], ...]
"""The length of each axis for two numbers of rows: what differs is the axis of the batch."""

LAYOUT = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}
ELEMENTWISE = {
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid",
    "HardSwish", "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod",
    "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign",
    "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
}  # fmt: skip
ALONG = {"Softmax": -1, "LogSoftmax": -1, "Concat": 0, "Gather": 0, "Split": 0, "LayerNormalization": -1}
"""Operators along an axis that is an attribute, and which it is where there is none."""

LIKE_FIRST = {"LayerNormalization", "LogSoftmax", "Softmax"}
"""Those of them whose output has the axes of the first input."""

OF_ONE = {"ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"}
"""Reductions that leave a single element as it is."""

AXES_INPUT = {"Slice": 3, **dict.fromkeys((*OF_ONE, "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare"), 1)}
"""Operators whose axes are an input, and which one."""


@dataclass(slots=True)
class FormedTensor:
    """A tensor of the step graph, and its forms.

    Attributes:
        sizes: Of its axes; None: they are not known.
        forms: Names by the axes that a form has; the others have length 1.
        source: The name and the sizes of a tensor that each form is made of by one node; None: there is a form.
    """

    sizes: Sizes | None
    forms: dict[Axes, str]
    source: tuple[str, Sizes] | None = None

    @property
    def rank(self) -> int:
        """How many axes it has."""
        return len(self.sizes or ())

    @property
    def wide(self) -> Axes:
        """The axes that are longer than 1."""
        return wide_axes(self.sizes or ())

    def sizes_of(self, axes: Axes) -> Sizes:
        """Return the sizes of some axes."""
        return tuple((self.sizes or ())[axis] for axis in axes)


class TensorForms:
    """All tensors of a step graph, with the nodes that make their forms.

    Attributes:
        build: Collects the nodes.
        constants: The graph's initializers, whose forms are constants, too.
        tensors: By name in the graph as it was.
    """

    def __init__(
        self, build: NodeBuilder, constants: Mapping[str, onnx.TensorProto], known: Mapping[str, Sizes]
    ) -> None:
        self.build = build
        self.constants = constants
        self.tensors: dict[str, FormedTensor] = {}
        self._known = known

    def add(self, name: str, axes: Axes | None = None) -> None:
        """Add a tensor that is there with some of its axes; None: with all."""
        sizes = self._known.get(name)
        self.tensors[name] = FormedTensor(sizes, {tuple(range(len(sizes or ()))) if axes is None else axes: name})

    def form(self, name: str, axes: Axes) -> str:
        """Return a tensor with some of its axes; those that it lacks have length 1."""
        tensor = self.tensors[name]
        if axes not in tensor.forms:
            sizes = tensor.sizes_of(axes)
            if name in self.constants:
                value = numpy_helper.to_array(self.constants[name]).reshape([size for size, _ in sizes])
                tensor.forms[axes] = self.build.constant(value, at=name)
            elif tensor.source is not None:
                tensor.forms[axes] = self._made_of(*tensor.source, sizes, name)
            elif same := [made for form, made in tensor.forms.items() if tensor.sizes_of(form) == sizes]:
                tensor.forms[axes] = same[0]  # other axes of length 1 at the same places
            else:
                nearest = min(tensor.forms, key=lambda form: len(set(form) ^ set(axes)))
                both = tensor.sizes_of(tuple(axis for axis in nearest if axis in axes))
                formed = self._made_of(tensor.forms[nearest], tensor.sizes_of(nearest), both, name)
                tensor.forms[axes] = self._made_of(formed, both, sizes, name)
        return tensor.forms[axes]

    def whole(self, name: str) -> str:
        """Return a tensor with all of its axes, as operators take it that are not known here."""
        tensor = self.tensors.get(name)
        if not name or tensor is None or tensor.sizes is None:
            return name
        return self.form(name, tuple(range(tensor.rank)))

    def cheapest(self, names: Iterable[str], rank: int, needed: Iterable[int], wanted: Collection[int]) -> Axes:
        """Return the axes on which a node runs: those needed, with others of length 1 where that saves nodes.

        Args:
            names: What it takes, aligned at the last axis as operators broadcast.
            rank: How many axes its output has.
            needed: Axes that it cannot do without.
            wanted: Axes that nodes behind it cannot do without.
        """
        tensors = [self.tensors[name] for name in names if name and name not in self.constants]
        forms = [
            (rank - tensor.rank, {tuple(axis + rank - tensor.rank for axis in form) for form in tensor.forms})
            for tensor in tensors if tensor.forms
        ]  # fmt: skip
        least = set(needed)
        options = {
            tuple(sorted(least.union(form))) for form in [(), wanted, *(f for _, existing in forms for f in existing)]
        }

        def cost(axes: Axes) -> tuple[int, int, Axes]:
            new = sum(tuple(axis for axis in axes if axis >= shift) not in existing for shift, existing in forms)
            return new + (not set(axes).issuperset(wanted)), len(axes), axes

        return min(options, key=cost)

    def _made_of(self, source: str, before: Sizes, sizes: Sizes, name: str) -> str:
        """Return a tensor of these sizes made of another one with the same numbers."""
        if before == sizes:
            return source
        if (places := matched_axes(sizes, before)) is not None:
            gone = [axis for axis in range(len(before)) if axis not in places]
            return self.build.op("Squeeze", source, self.build.ints(gone), at=name)
        if (places := matched_axes(before, sizes)) is not None:
            added = [axis for axis in range(len(sizes)) if axis not in places]
            return self.build.op("Unsqueeze", source, self.build.ints(added), at=name)
        shape = self.build.ints([-1 if size != other else size for size, other in sizes])
        return self.build.op("Reshape", source, shape, at=name)


def wide_axes(sizes: Sizes) -> Axes:
    """Return the axes that are longer than 1."""
    return tuple(axis for axis, size in enumerate(sizes) if size != (1, 1))


def matched_axes(form: Sizes, out: Sizes) -> Axes | None:
    """Return the axes of `out` that have the sizes of a form, in order, so that all others have length 1."""
    matched: list[int] = []
    axis = len(out)
    for size in reversed(form):
        axis -= 1
        while axis >= 0 and size != out[axis] == (1, 1):
            axis -= 1
        if axis < 0 or out[axis] != size:
            return None
        matched.append(axis)
    return None if wide_axes(out[:axis]) else tuple(matched[::-1])


def needed_axes(
    nodes: Sequence[onnx.NodeProto], constants: Container[str], known: Mapping[str, Sizes]
) -> dict[str, set[int]]:
    """Return the axes of each tensor that the nodes which take it need, or nodes behind these.

    Args:
        nodes: In order.
        constants: Names of tensors that have each form without a node.
        known: The sizes of tensors.
    """
    needed: dict[str, set[int]] = {}
    for node in reversed(nodes):
        for name in filter(None, node.input):
            if name not in constants and known.get(name) is not None:
                needed.setdefault(name, set()).update(_needed(node, name, needed, known))
    return needed


def is_joint(node: onnx.NodeProto, known: Mapping[str, Sizes]) -> bool:
    """Whether several products of one row each, as of heads that share their keys, are one product of several rows."""
    left, right = (known.get(name) or () for name in node.input)
    if not len(left) == len(right) > 3 or left[-2] != (1, 1) or right[-3] != (1, 1):
        return False
    heads, same = left[-3]
    return heads == same > 1  # and not the rows, each of which has to come out as it does alone


def _needed(node: onnx.NodeProto, name: str, needed: Mapping[str, set[int]], known: Mapping[str, Sizes]) -> set[int]:
    """Return the axes of an operand that a node and those behind it need."""
    out, rank = known.get(node.output[0]), len(known[name])
    if out is None or node.domain not in {"", "ai.onnx"}:
        return set(range(rank))
    behind = needed.get(node.output[0], set()).union(wide_axes(out))
    if node.op_type in ELEMENTWISE or (node.op_type in LIKE_FIRST and name == node.input[0]):
        own = [attributes(node).get("axis", -1)] if node.op_type in LIKE_FIRST else []
        return {axis + rank - len(out) for axis in behind if axis + rank >= len(out)} | {axis % rank for axis in own}
    if node.op_type == "Transpose":
        perm = attributes(node).get("perm") or range(rank)[::-1]
        places = [perm[axis] for axis in sorted(behind)]
        return set(places if places == sorted(places) else (perm[axis] for axis in wide_axes(out)))
    if node.op_type == "Concat":
        return behind | {attributes(node)["axis"] % rank}
    if node.op_type == "MatMul":
        if name == node.input[0] and is_joint(node, known):
            return {rank - 3, rank - 1}
        return {rank - 2, rank - 1} if len(known.get(node.input[1]) or ()) > 2 else {rank - 1}
    if node.op_type in RNN:
        return {rank - 2, rank - 1}  # of rows and features: they are written out without the others
    is_free = node.op_type in {*LAYOUT, *ALONG, *AXES_INPUT}
    return set() if is_free else set(range(rank))
