"""The branch of a chunk under construction: nodes on many timesteps at once, and the shapes that go with them.

Tensors live in two forms. *Flat*: the step graph's own shape with rows times timesteps in place of the batch, so
that the step graph's nodes run on all timesteps at once. *Timed*: with the time axis behind the batch axis.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper

from stepwell_export.chunk.analysis import TensorFact
from stepwell_export.graph.builder import NodeBuilder

PREFIX = "chunk/of/"
"""Before the name of a step graph's tensor, of its flat form."""

LENGTHS = "chunk/lengths"
"""Tensor: rows and timesteps, int64[2]."""


class ChunkBuilder(NodeBuilder):
    """Collects the nodes of a branch."""

    def __init__(self) -> None:
        super().__init__("chunk")
        self._shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], str] = {}

    def timed_shape(self, before: tuple[int, ...], behind: tuple[int, ...]) -> str:
        """Return a shape with rows and timesteps between the given lengths."""
        key = (before, behind)
        if key not in self._shapes:
            parts = [*([self.ints(before)] if before else []), LENGTHS, *([self.ints(behind)] if behind else [])]
            self._shapes[key] = LENGTHS if len(parts) == 1 else self.op("Concat", *parts, axis=0)
        return self._shapes[key]

    def timed(self, flat: str, axis: int, row: tuple[int, ...]) -> str:
        """Return a flat tensor with the time axis behind its batch axis."""
        return self.op("Reshape", flat, self.timed_shape(row[:axis], row[axis:]))

    def flat(self, timed: str, axis: int, row: tuple[int, ...]) -> str:
        """Undo `timed`."""
        return self.op("Reshape", timed, self.ints([*row[:axis], -1, *row[axis:]]))

    def last(self, timed: str, axis: int) -> str:
        """Return a timed tensor's last timestep, shaped as in the step graph."""
        return self.op("Gather", timed, self.ints(-1), axis=axis + 1)

    def delayed(self, first: str, timed: str, axis: int) -> str:
        """Return a timed tensor one timestep later, with `first`, shaped as in the step graph, in front."""
        ints, time = self.ints, axis + 1
        before = self.op("Slice", timed, ints([0]), ints([-1]), ints([time]))
        return self.op("Concat", self.op("Unsqueeze", first, ints([time])), before, axis=time)

    def sequence(self, flat: str, fact: TensorFact) -> str:
        """Return a flat tensor as `timed`.

        Args:
            flat: The tensor.
            fact: What it is in the step graph; it has a batch axis.
        """
        assert fact.axis is not None
        return self.timed(flat, fact.axis, fact.row)


def tensors(names: Iterable[str], kinds: Iterable[int]) -> list[onnx.ValueInfoProto]:
    """Return declarations without shapes."""
    return [helper.make_tensor_value_info(name, kind, None) for name, kind in zip(names, kinds, strict=True)]


def ranked(names: Iterable[str], facts: Iterable[TensorFact]) -> list[onnx.ValueInfoProto]:
    """Return declarations with the number of axes alone, which onnxruntime needs of a Scan's body."""
    return [
        helper.make_tensor_value_info(name, fact.kind, [None] * (len(fact.row) + (fact.axis is not None)))
        for name, fact in zip(names, facts, strict=True)
    ]
