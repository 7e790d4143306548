"""Builds the step graph: nodes, constants and states, in the layout that the sequence graph has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from model_export.manifest import Array, InputSpec, OutputSpec, PackedTensor, StateSpec
from model_export.streaming.measured_shapes import Dim
from model_export.streaming.normalize import captures

BATCH = "batch"
COUNT = "timesteps"
_ROWS = Dim(Fraction(0), rows=Fraction(1))
_ONE = Dim(Fraction(1))


class StepGraph:
    """A step graph under construction.

    Attributes:
        states: What is carried, in order of emission.
    """

    def __init__(self, taken: Sequence[str]) -> None:
        self.states: list[StateSpec] = []
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._taken = set(taken)
        self._takes: list[onnx.ValueInfoProto] = []
        self._gives: list[onnx.ValueInfoProto] = []
        self._rows: str | None = None
        self._batched_input: tuple[str, int] | None = None
        self._count: str | None = None
        self._position: str | None = None

    # ---------------------------------------------------------------- the door

    def input(self, spec: InputSpec) -> None:
        """Declare an input of one timestep."""
        self._takes.append(_declared(spec.name, spec.dtype, spec.graph_row_shape, spec.batch_axis))
        if spec.batch_axis is not None and self._batched_input is None:
            self._batched_input = spec.name, spec.batch_axis

    def output(self, spec: OutputSpec, tensor: str) -> None:
        """Declare an output: a fresh tensor, so that one value may be output and state at once."""
        self.add("Identity", [tensor], [spec.name])
        self._gives.append(_declared(spec.name, spec.dtype, spec.graph_row_shape, spec.batch_axis))

    def state(self, name: str, dims: Sequence[Dim], dtype: str, init: Array | None) -> tuple[str, StateSpec]:
        """Declare a state; the caller owes `next_state` for it.

        Args:
            name: Of the state.
            dims: Of the tensor in the sequence graph's layout.
            dtype: NumPy name.
            init: The initial row in that layout; zeros by default.

        Returns:
            The tensor in that layout, and the spec. The state itself has its batch axis first.
        """
        name = self.unique(name)
        sizes = [dim.at_one_step() for dim in dims]
        batch = next((axis for axis, (_, per_row) in enumerate(sizes) if per_row), None)
        row = [fixed for axis, (fixed, _) in enumerate(sizes) if axis != batch]
        if batch is None:
            shape = row
        else:
            per_row = sizes[batch][1]
            shape = [per_row, *row] if per_row > 1 else row
            if init is not None:
                init = np.moveaxis(init, batch, 0).reshape(shape)
        if init is None or not init.any():
            packed: Any = "zeros"
        else:
            packed = PackedTensor.pack(init.astype(dtype).reshape(shape))
        spec = StateSpec(
            **{"in": name, "out": self.unique(f"{name}_next")},
            dtype=dtype,
            shape=shape,
            batch_axis=None if batch is None else 0,
            init=packed,
        )
        self.states.append(spec)
        self._takes.append(_declared(spec.input, dtype, shape, spec.batch_axis))
        self._gives.append(_declared(spec.output, dtype, shape, spec.batch_axis))
        return self._from_batch_first(name, sizes, batch), spec

    def next_state(self, spec: StateSpec, tensor: str, dims: Sequence[Dim]) -> None:
        """Say which tensor, in the layout of the sequence graph, the state becomes."""
        sizes = [dim.at_one_step() for dim in dims]
        batch = next((axis for axis, (_, per_row) in enumerate(sizes) if per_row), None)
        if batch is not None and batch:
            others = [axis for axis in range(len(dims)) if axis != batch]
            if sizes[batch][1] > 1:
                split = [fixed for fixed, _ in sizes]
                split[batch : batch + 1] = [-1, sizes[batch][1]]
                tensor = self.op("Reshape", tensor, self.ints(split))
                others = [axis + (axis > batch) for axis in others]
                tensor = self.op("Transpose", tensor, perm=[batch, batch + 1, *others])
            else:
                tensor = self.op("Transpose", tensor, perm=[batch, *others])
        elif batch == 0 and sizes[0][1] > 1:
            tensor = self.op("Reshape", tensor, self.ints([-1, *spec.shape]))
        self.add("Identity", [tensor], [spec.output])

    def count(self) -> str:
        """Return the number of timesteps consumed before this one, int64; shape `(batch,)`, or [1] without rows."""
        if self._count is None:
            batched = self._batched_input is not None
            tensor, spec = self.state(COUNT, [_ROWS if batched else _ONE], "int64", None)
            self.next_state(
                spec,
                self.op("Add", tensor, self.constant(np.array([1], np.int64))),
                [_ROWS if batched else _ONE],
            )
            self._count = tensor
        return self._count

    def position(self) -> str:
        """Return the number of timesteps consumed before this one, shape [1] int64, for a graph of one row."""
        if self._position is None:
            tensor, spec = self.state("position", [_ONE], "int64", None)
            self.next_state(spec, self.op("Add", tensor, self.constant(np.array([1], np.int64))), [_ONE])
            self._position = tensor
        return self._position

    def drop_unused_states(self) -> None:
        """Forget the states that no output needs, such as those of parts that were refused."""
        states = {spec.input: spec for spec in self.states}
        wanted = [value.name for value in self._gives if value.name not in {spec.output for spec in self.states}]
        kept: set[str] = set()
        while True:
            used = {name for node in self._in_order(wanted) for name in (*node.input, *captures(node))}
            fresh = (used & states.keys()) - kept
            if not fresh:
                break
            kept |= fresh
            wanted += [states[name].output for name in sorted(fresh)]
        self.states = [spec for spec in self.states if spec.input in kept]
        gone = {name for spec in states.values() if spec.input not in kept for name in (spec.input, spec.output)}
        self._takes = [value for value in self._takes if value.name not in gone]
        self._gives = [value for value in self._gives if value.name not in gone]

    # ---------------------------------------------------------------- inside

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attrs: Any) -> None:
        """Add a node whose outputs have names already."""
        self._nodes.append(helper.make_node(kind, list(inputs), list(outputs), **attrs))

    def add_node(self, node: onnx.NodeProto) -> None:
        """Add a node as it is."""
        self._nodes.append(node)

    def op(self, kind: str, *inputs: str, **attrs: Any) -> str:
        """Add a node with one output and return that tensor's name."""
        name = self.unique(f"step/{kind}")
        self.add(kind, inputs, [name], **attrs)
        return name

    def constant(self, array: Any, name: str = "step/constant") -> str:
        """Return the name of a constant tensor."""
        name = self.unique(name)
        self._initializers[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def ints(self, values: Sequence[int]) -> str:
        """Return a constant of axes, shapes or indices: one axis, int64."""
        return self.constant(np.asarray(list(values), np.int64))

    def keep(self, tensor: onnx.TensorProto) -> str:
        """Take over an initializer of the sequence graph under its own name."""
        self._initializers[tensor.name] = tensor
        return str(tensor.name)

    def rows(self) -> str:
        """Return the number of rows, shape [1] int64."""
        if self._rows is None:
            assert self._batched_input is not None, "a tensor grows with the rows, so an input has them"
            name, axis = self._batched_input
            self._rows = self.op("Gather", self.op("Shape", name), self.ints([axis]))
        return self._rows

    def unique(self, name: str) -> str:
        """Return `name`, or with a number behind it where it is taken."""
        number, fresh = 1, name
        while fresh in self._taken:
            number += 1
            fresh = f"{name}_{number}"
        self._taken.add(fresh)
        return fresh

    def proto(self, name: str, like: onnx.ModelProto) -> onnx.ModelProto:
        """Return the finished model, without nodes that nothing asks for."""
        nodes = self._in_order([value.name for value in self._gives])
        used = {name for node in nodes for name in (*node.input, *captures(node))}
        weights = [tensor for tensor in self._initializers.values() if tensor.name in used]
        graph = helper.make_graph(nodes, name, self._takes, self._gives, weights)
        return helper.make_model(
            graph,
            ir_version=max(like.ir_version, 4),  # 4: initializers that are no inputs
            opset_imports=list(like.opset_import),
            producer_name="stepwell",
        )

    def _in_order(self, tensors: list[str]) -> list[onnx.NodeProto]:
        """Return the nodes that these tensors need, each behind those that it needs itself."""
        makers = {name: node for node in self._nodes for name in node.output if name}
        done: dict[int, onnx.NodeProto] = {}
        waiting = [makers[name] for name in reversed(tensors) if name in makers]
        while waiting:
            node = waiting[-1]
            needs = [makers[name] for name in (*node.input, *captures(node)) if name in makers]
            open_ = [other for other in needs if id(other) not in done]
            waiting.extend(open_)
            if not open_:
                done[id(waiting.pop())] = node
        return list(done.values())

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
    return re.sub(r"[^A-Za-z0-9_-]+", ".", name).strip(".") or "node"


def _declared(name: str, dtype: str, row: Sequence[int], batch_axis: int | None) -> onnx.ValueInfoProto:
    shape: list[Any] = list(row)
    if batch_axis is not None:
        shape.insert(batch_axis, BATCH)
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
