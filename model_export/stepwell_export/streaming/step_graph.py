"""The step graph of a sequence graph under construction: its tensors have the layout that the sequence graph has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import onnx

from stepwell_export.graph.builder import GraphBuilder
from stepwell_export.graph.nodes import forget_layers, shared_name, uses
from stepwell_export.runtime.manifest import Array, StateSpec
from stepwell_export.streaming.axes.measured_shapes import Dim

COUNT = "timesteps"
_ROWS = Dim(Fraction(0), rows=Fraction(1))
_ONE = Dim(Fraction(1))


class StreamingGraph(GraphBuilder):
    """A step graph whose states may have rows on any axis, or folded with another axis."""

    def __init__(self, taken: Iterable[str]) -> None:
        super().__init__("step", taken)
        self._rows: str | None = None
        self._counters: dict[str, str] = {}

    def state_like(
        self, name: str, dims: Sequence[Dim], dtype: str, init: Array | None = None
    ) -> tuple[str, StateSpec]:
        """Declare a state; the caller owes `next_state_like` for it.

        Args:
            name: Of the state.
            dims: Of the tensor in the sequence graph's layout.
            dtype: NumPy name.
            init: The initial row in that layout; zeros by default.

        Returns:
            The tensor in that layout, and the spec. The state itself has its batch axis first.
        """
        layout = _state_layout(dims)
        row = layout.row
        init = None if init is None else init.reshape(np.abs(layout.split)).transpose(layout.order).reshape(row)
        spec = self.state(name, row, dtype, init, batch_axis=layout.batch_axis)
        tensor = spec.input
        if layout.is_moved:
            tensor = self.op("Transpose", tensor, perm=[int(axis) for axis in np.argsort(layout.order)])
        if layout.split != layout.tensor:
            tensor = self.op("Reshape", tensor, self.ints(layout.tensor))
        return tensor, spec

    def next_state_like(self, spec: StateSpec, tensor: str, dims: Sequence[Dim]) -> None:
        """Set the tensor, in the layout of the sequence graph, that the state becomes."""
        layout = _state_layout(dims)
        if layout.split != layout.tensor:
            tensor = self.op("Reshape", tensor, self.ints(layout.split))
        if layout.is_moved:
            tensor = self.op("Transpose", tensor, perm=layout.order)
        self.next_state(spec, tensor)

    def count(self) -> str:
        """Return the number of timesteps consumed before this one, int64; shape `(batch,)`, or [1] without rows."""
        has_rows = any(spec.batch_axis is not None for spec in self.inputs)
        return self._counter(COUNT, _ROWS if has_rows else _ONE)

    def count_like(self, dims: Sequence[Dim], more: int = 0) -> str:
        """Return how many timesteps came before this one, in a shape that broadcasts to a tensor's rows.

        Args:
            dims: The tensor's axes.
            more: What is added to it: 1 for this timestep too.
        """
        count = self.count()
        count = self.op("Add", count, self.ints([more])) if more else count
        sizes = [dim.at_one_step() for dim in dims]
        batch = next((axis for axis, (_, per_row) in enumerate(sizes) if per_row), None)
        if batch is not None and sizes[batch][1] > 1:  # rows folded with another axis: each row's count, repeated
            per_row = sizes[batch][1]
            count = self.op("Expand", self.op("Reshape", count, self.ints([-1, 1])), self.ints([1, per_row]))
        shape = [1] * len(dims)
        if batch is not None:
            shape[batch] = -1
        return self.op("Reshape", count, self.ints(shape))

    def position(self) -> str:
        """Return the number of timesteps consumed before this one, shape [1] int64, for a graph of one row."""
        return self._counter("position", _ONE)

    def _counter(self, name: str, dim: Dim) -> str:
        if name not in self._counters:
            self._counters[name], spec = self.state_like(name, [dim], "int64", None)
            self.next_state(spec, self.op("Add", self._counters[name], self.ints([1])))
        return self._counters[name]

    def drop_unused_states(self) -> None:
        """Forget the states that no output needs, such as those of parts that were refused."""
        after = {spec.input: spec.output for spec in self.states}
        wanted, kept = {spec.name for spec in self.outputs}, set[str]()
        while fresh := {name for node in self.needed_nodes(wanted) for name in uses(node)} & after.keys() - kept:
            kept |= fresh
            wanted |= {after[name] for name in fresh}
        self.states = [spec for spec in self.states if spec.input in kept]

    def keep(self, tensor: onnx.TensorProto) -> str:
        """Take over an initializer of the sequence graph under its own name."""
        self.constants.append(tensor)
        return str(tensor.name)

    def rows(self) -> str:
        """Return the number of rows, shape [1] int64."""
        if self._rows is None:
            name, axis = next((i.name, i.batch_axis) for i in self.inputs if i.batch_axis is not None)
            self._rows = self.op("Gather", self.op("Shape", name), self.ints([axis]))
        return self._rows

    def step_proto(self, name: str, like: onnx.ModelProto) -> onnx.ModelProto:
        """Return the finished model, with the operators' versions of the sequence graph."""
        opsets = {entry.domain: entry.version for entry in like.opset_import}
        made = self.proto(name, opsets, ir_version=max(like.ir_version, 4))  # 4: initializers that are no inputs
        forget_layers(made.graph)
        return made


@dataclass(frozen=True, slots=True)
class _StateLayout:
    """How a state holds a tensor: with its rows in front.

    Attributes:
        tensor: The shape of the tensor at one timestep; -1 for the rows.
        split: The same with an axis for the rows alone.
        order: The axes of `split` in the state.
        batch_axis: That of the state; None: the tensor has no rows.
    """

    tensor: list[int]
    split: list[int]
    order: list[int]
    batch_axis: int | None

    @property
    def row(self) -> list[int]:
        """The state's shape without batch axis."""
        return [self.split[axis] for axis in self.order if self.split[axis] != -1]

    @property
    def is_moved(self) -> bool:
        """Whether the axes are in another order than those of the tensor."""
        return self.order != sorted(self.order)


def _state_layout(dims: Sequence[Dim]) -> _StateLayout:
    sizes = [dim.at_one_step() for dim in dims]
    per_row = next((rows for _, rows in sizes if rows), None)
    split: list[int] = []
    for fixed, rows in sizes:
        split += [fixed] if not rows else [-1] if rows == 1 else [-1, rows]
    front = [] if per_row is None else [split.index(-1) + place for place in range(min(per_row, 2))]
    order = [*front, *(axis for axis in range(len(split)) if axis not in front)]
    tensor = [-1 if rows else fixed for fixed, rows in sizes]
    return _StateLayout(tensor, split, order, None if per_row is None else 0)


def plain(name: str) -> str:
    """Return a node's name as a state's name has it, without characters that are awkward in URLs and JSON paths."""
    return re.sub(r"[^A-Za-z0-9_-]+", ".", shared_name(name)).strip(".") or "node"


def window_order(rank: int, batch: int | None, time: int, *, is_moved: bool) -> list[int]:
    """Return the axes of a tensor in the order in which a window of it is kept.

    Args:
        rank: How many axes the tensor has.
        batch: The axis of the rows; None: it has none, and its axes stay as they are.
        time: The axis of the timesteps.
        is_moved: They come right behind the batch: chunks run such a window of a convolution fastest. Otherwise they
            stay where they are, as those of values by heads; of keys, which have them last, they come before the last
            axis, since onnxruntime turns that order within the product.
    """
    if batch in {None, time}:
        return list(range(rank))
    if is_moved:
        return [axis for axis in (batch, time) if axis is not None] + [a for a in range(rank) if a not in {batch, time}]
    order = list(range(rank))
    if time == rank - 1 and time - 1 != batch:
        order[-2:] = order[:-3:-1]
    return order
