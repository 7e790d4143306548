"""Builds a step graph in ONNX, tensor by tensor; knows nothing of Keras."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from model_export.chunk.fused_rnn import FusedCell
from model_export.manifest import Array, InputSpec, OutputSpec, PackedTensor, StateSpec

OPSET = 20  # the first one with Gelu; onnxruntime runs it since 1.17
IR_VERSION = 10
BATCH = "batch"


@dataclass(frozen=True, slots=True, eq=False)
class TimePadding:
    """Timesteps that the original has beside those of the stream, of padding over time.

    Attributes:
        front: How many come before the first timestep of the stream; negative: it has no place for so many of the
            stream's first, and what the step graph says there is nobody's.
        back: How many come after the newest one; nobody may look at them.
        fill: What each of those in front is, one row.
        refusal: The error to raise where something needs the timesteps that are cut off in front.
    """

    front: int
    back: int
    pad_value: Array
    refusal: Exception | None = None


@dataclass(frozen=True, slots=True, eq=False)
class DeferredSum:
    """What the original's tensor has besides what is in the step graph.

    Attributes:
        refusal: The error to raise where something needs the tensor as it will be.
        weight: What each timestep is weighed by, as a value of each timestep: scores of a softmax over time, or an
            answer for the timesteps so far; None: nothing.
        kind: `softmax`, or `Mul` or `Div` of an answer.
        order: For each axis of the original which one of `(batch, time, *row)` it is; empty: these, as they stand.
    """

    refusal: Exception
    weight: Value | None = None
    kind: str = ""
    order: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor of the step graph, and what the original has in its place.

    Attributes:
        name: The tensor's name in the graph; its shape there is `(batch, *row)`.
        row: One row, without batch axis and without time axis.
        dtype: NumPy name.
        time: Whether the original carries a time axis (axis 1) here.
        mask: Tensor of shape `(batch,)` bool: False where this timestep is masked; None: never masked.
        margin: Timesteps that the original has in front and behind; None: exactly those of the stream.
        pending: What a sum over time, or another order of axes, has to settle first; None: nothing.
        even: The row's first axis has the same in all its places; beside a sequence it can stand for every timestep.
    """

    name: str
    row: tuple[int, ...]
    dtype: str = "float32"
    time: bool = False
    mask: str | None = None
    padding: TimePadding | None = None
    deferred: DeferredSum | None = None
    constant_over_time: bool = False

    @property
    def rank(self) -> int:
        """Axes of the original tensor: batch, time if it carries it, and the row."""
        return 1 + self.time + len(self.row)

    def like(self, name: str, **changes: Any) -> Value:
        """Return another tensor with the same row, dtype and time axis, and nothing else of this one."""
        return replace(
            self, name=name, **{"mask": None, "padding": None, "deferred": None, "constant_over_time": False, **changes}
        )


class GraphBuilder:
    """A step graph under construction.

    Attributes:
        inputs: What the caller sends.
        states: What is carried, in order of emission.
        outputs: What the caller gets.
        cells: Recurrent cells that one operator can run over a whole chunk.
        fills: Tensors that are one number everywhere, with that number.
    """

    def __init__(self) -> None:
        self.inputs: list[InputSpec] = []
        self.states: list[StateSpec] = []
        self.outputs: list[OutputSpec] = []
        self.cells: list[FusedCell] = []
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[tuple[Any, ...], str] = {}
        self._initializers: list[onnx.TensorProto] = []
        self._taken: dict[str, int] = {}
        self.uniform_values: dict[str, float] = {}
        self._static: set[str] = set()
        self._held: set[str] = set()
        self._started = ""

    # ---------------------------------------------------------------- the door of the graph

    def input(self, name: str, row: tuple[int, ...], dtype: str, *, time: bool) -> Value:
        """Declare an input of one timestep."""
        name = self.unique(name)
        self.inputs.append(InputSpec(name=name, dtype=dtype, shape=list(row)))
        if not time:
            self._static.add(name)
        return Value(name, row, dtype, time)

    def state(self, name: str, row: tuple[int, ...], dtype: str = "float32", init: Array | None = None) -> StateSpec:
        """Declare a state; the emitter owes `next_state` for it.

        Args:
            name: Its name in the graph; one with a number where it is taken.
            row: Its shape without batch axis.
            dtype: NumPy name.
            init: The row before the first timestep; None: zeros.
        """
        name = self.unique(name)
        spec = StateSpec(input=name, output=self.unique(f"{name}_next"), dtype=dtype, shape=list(row))
        if init is not None and np.any(init):
            spec.init = PackedTensor.pack(np.broadcast_to(np.asarray(init, dtype), row))
        self.states.append(spec)
        return spec

    def has_started(self) -> str:
        """Return whether a stream is past its first timestep, shape `(batch, 1)` bool."""
        if not self._started:
            spec = self.state("started", (1,), "bool")
            self.next_state(spec, self.op("Expand", self.constant(True, "bool"), self.op("Shape", spec.input)))
            self._started = spec.input
        return self._started

    def next_state(self, state: StateSpec, tensor: str) -> None:
        """Say which tensor the state becomes."""
        self._nodes.append(helper.make_node("Identity", [tensor], [state.output]))

    def output(self, name: str, value: Value) -> OutputSpec:
        """Declare an output; a fresh tensor, so that one value may be output, state and input at once."""
        spec = OutputSpec(name=self.unique(name), dtype=value.dtype, shape=list(value.row))
        self._nodes.append(helper.make_node("Identity", [value.name], [spec.name]))
        self.outputs.append(spec)
        return spec

    # ---------------------------------------------------------------- inside

    def op(self, kind: str, *inputs: str, at: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that tensor's name.

        Args:
            kind: The ONNX operator.
            inputs: Tensor names.
            at: Where it comes from, say a layer's name; the tensor is named after it.
            attributes: The operator's attributes.
        """
        return self.split_op(kind, *inputs, at=at, outputs=1, **attributes)[0]

    def split_op(self, kind: str, *inputs: str, outputs: int, at: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        names = [self.unique(f"{at}/{kind}" if at else kind) for _ in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), names, **attributes))
        return names

    def constant(self, array: Any, dtype: str = "float32", *, at: str = "const") -> str:
        """Return the name of a constant tensor; equal constants are stored once."""
        value = np.ascontiguousarray(np.asarray(array, dtype)).reshape(np.shape(array))
        key = (value.dtype.name, value.shape, hashlib.blake2b(value.tobytes()).digest())
        if key not in self._constants:
            self._constants[key] = self.unique(at)
            self._initializers.append(numpy_helper.from_array(value, self._constants[key]))
        return self._constants[key]

    def ints(self, values: Sequence[int]) -> str:
        """Return a constant of axes, shapes or indices: one axis, int64."""
        return self.constant(list(values), "int64", at="ints")

    def reshape(self, tensor: str, row: Sequence[int], *, at: str = "") -> str:
        """Give each row another shape."""
        return self.op("Reshape", tensor, self.ints([-1, *row]), at=at)

    def cast(self, tensor: str, dtype: str, *, at: str = "") -> str:
        """Change the dtype."""
        return self.op("Cast", tensor, at=at, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def mark_static(self, tensor: str) -> None:
        """Say that a tensor never changes after the first timestep, whatever it is computed from."""
        self._held.add(tensor)

    def is_static(self, tensor: str) -> bool:
        """Return whether a tensor never changes: computed from inputs without time axis and from what is held."""
        used = {tensor}
        for node in reversed(self._nodes):
            if used.intersection(node.output) and not self._held.intersection(node.output):
                used |= set(node.input)
        moving = {i.name for i in self.inputs} - self._static | {s.input for s in self.states}
        return not used & moving

    def unique(self, name: str) -> str:
        """Return `name`, or with a number behind it where it is taken; odd characters become `_`."""
        clean = re.sub(r"[^A-Za-z0-9._/-]", "_", name)
        number = self._taken[clean] = self._taken.get(clean, 0) + 1
        return clean if number == 1 else self.unique(f"{clean}_{number}")

    def proto(self, name: str, *, opset: int = OPSET) -> onnx.ModelProto:
        """Return the finished model, without nodes that no output needs.

        Args:
            name: The graph's name.
            opset: The version of ONNX's operators that is declared.
        """

        def declare(tensor: str, dtype: str, row: Sequence[int]) -> onnx.ValueInfoProto:
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            return helper.make_tensor_value_info(tensor, kind, [BATCH, *row])

        takes = [declare(i.name, i.dtype, i.shape) for i in self.inputs]
        takes += [declare(s.input, s.dtype, s.shape) for s in self.states]
        gives = [declare(o.name, o.dtype, o.shape) for o in self.outputs]
        gives += [declare(s.output, s.dtype, s.shape) for s in self.states]
        nodes, initializers = self._wanted({value.name for value in gives})
        graph = helper.make_graph(nodes, name, takes, gives, initializers)
        return helper.make_model(
            graph,
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", opset)],
            producer_name="stepwell",
        )

    def _wanted(self, tensors: set[str]) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
        """Return the nodes and constants that these tensors need, in order."""
        nodes = []
        for node in reversed(self._nodes):
            if tensors.intersection(node.output):
                nodes.append(node)
                tensors |= set(node.input)
        return nodes[::-1], [constant for constant in self._initializers if constant.name in tensors]
