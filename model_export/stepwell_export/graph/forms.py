"""The forms that a tensor of a step graph has: with all of its axes, or without some that have length 1."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import onnx
from onnx import numpy_helper

from stepwell_export.graph.builder import NodeBuilder

Axes = tuple[int, ...]
Sizes = tuple[tuple[int, int], ...]
"""The length of each axis for two numbers of rows: what differs is the axis of the batch."""


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
