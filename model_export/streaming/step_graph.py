"""The step graph of a sequence graph under construction: its tensors have the layout that the sequence graph has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fractions import Fraction

import numpy as np
import onnx

from model_export.graph.builder import GraphBuilder
from model_export.graph.described import forget_layers, shared_name
from model_export.graph.nodes import uses
from model_export.manifest import Array, StateSpec
from model_export.streaming.axes.measured_shapes import Dim

COUNT = "timesteps"
_ROWS = Dim(Fraction(0), rows=Fraction(1))
_ONE = Dim(Fraction(1))


class StreamingGraph(GraphBuilder):
    """A step graph whose states may have rows on any axis, or folded with another axis."""

    def __init__(self, taken: Iterable[str]) -> None:
        super().__init__("step", taken)
        self._rows: str | None = None
        self._count: str | None = None
        self._position: str | None = None

    def state_like(
        self, name: str, dims: Sequence[Dim], dtype: str, init: Array | None = None, *, whole: bool = False
    ) -> tuple[str, StateSpec]:
        """Declare a state; the caller owes `next_state_like` for it.

        Args:
            name: Of the state.
            dims: Of the tensor in the sequence graph's layout.
            dtype: NumPy name.
            init: The initial row in that layout; zeros by default.
            whole: It has the axes of length 1 as well.

        Returns:
            The tensor in that layout, and the spec. The state itself has its batch axis first.
        """
        every, rows = _sizes(dims)
        kept = _kept(every, rows) if not whole else list(range(len(every)))
        sizes, batch = [every[axis] for axis in kept], None if rows is None else kept.index(rows)
        shape = [fixed for axis, (fixed, _) in enumerate(sizes) if axis != batch]
        if batch is not None:
            per_row = sizes[batch][1]
            shape = [per_row, *shape] if per_row > 1 else shape
            init = None if init is None or rows is None else np.moveaxis(init, rows, 0)
        init = None if init is None else init.reshape(shape)
        spec = self.state(name, shape, dtype, init, batch_axis=None if batch is None else 0)
        tensor = self._from_batch_first(spec.input, sizes, batch)
        if len(kept) < len(every):
            tensor = self.op("Reshape", tensor, self.ints([-1 if per_row else fixed for fixed, per_row in every]))
        return tensor, spec

    def next_state_like(self, spec: StateSpec, tensor: str, dims: Sequence[Dim]) -> None:
        """Set the tensor, in the layout of the sequence graph, that the state becomes."""
        sizes, batch = _sizes(dims)
        if batch is not None and len(spec.shape) + 1 < len(sizes):
            kept = _kept(sizes, batch)
            sizes, batch = [sizes[axis] for axis in kept], kept.index(batch)
            tensor = self.op("Reshape", tensor, self.ints([-1 if per_row else fixed for fixed, per_row in sizes]))
        if batch is not None and batch:
            others = [axis for axis in range(len(sizes)) if axis != batch]
            if sizes[batch][1] > 1:
                split = [fixed for fixed, _ in sizes]
                split[batch : batch + 1] = [-1, sizes[batch][1]]
                tensor = self.op("Reshape", tensor, self.ints(split))
                others = [axis + (axis > batch) for axis in others]
                tensor = self.op("Transpose", tensor, perm=[batch, batch + 1, *others])
            else:
                tensor = self.op("Transpose", tensor, perm=[batch, *others])
        elif batch == 0 and sizes[0][1] > 1:
            tensor = self.reshape(tensor, spec.shape)
        self.next_state(spec, tensor)

    def count(self) -> str:
        """Return the number of timesteps consumed before this one, int64; shape `(batch,)`, or [1] without rows."""
        if self._count is None:
            has_rows = any(spec.batch_axis is not None for spec in self.inputs)
            self._count = self._counter(COUNT, _ROWS if has_rows else _ONE)
        return self._count

    def position(self) -> str:
        """Return the number of timesteps consumed before this one, shape [1] int64, for a graph of one row."""
        if self._position is None:
            self._position = self._counter("position", _ONE)
        return self._position

    def _counter(self, name: str, dim: Dim) -> str:
        tensor, spec = self.state_like(name, [dim], "int64", None)
        self.next_state(spec, self.op("Add", tensor, self.ints([1])))
        return tensor

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

    def _from_batch_first(self, tensor: str, sizes: list[tuple[int, int]], batch: int | None) -> str:
        if batch is None:
            return tensor
        per_row = sizes[batch][1]
        if batch:
            axes = list(range(1 + (per_row > 1), len(sizes) + (per_row > 1)))
            lead = [0, 1] if per_row > 1 else [0]
            tensor = self.op("Transpose", tensor, perm=[*axes[:batch], *lead, *axes[batch:]])
        if per_row > 1:
            merged = [fixed for fixed, _ in sizes]
            merged[batch] = -1
            tensor = self.op("Reshape", tensor, self.ints(merged))
        return tensor


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


def _sizes(dims: Sequence[Dim]) -> tuple[list[tuple[int, int]], int | None]:
    """Return each axis' length at one timestep, `(fixed, per row)`, and the axis that has the rows."""
    sizes = [dim.at_one_step() for dim in dims]
    return sizes, next((axis for axis, (_, per_row) in enumerate(sizes) if per_row), None)


def _kept(sizes: list[tuple[int, int]], batch: int | None) -> list[int]:
    """Return the axes of a tensor that a state of it has: those of length 1 are left out, if rows have an axis."""
    if batch is None or sizes[batch][1] > 1:
        return list(range(len(sizes)))
    return [axis for axis, size in enumerate(sizes) if size != (1, 0)]
