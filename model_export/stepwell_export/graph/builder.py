"""Builds ONNX graphs node by node: names, constants and, for a step graph, inputs, states and outputs.

Every front end, every stage and the chunks emit through these two classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stepwell_export.graph.nodes import in_order, needed_nodes, replace_items, uses
from stepwell_export.runtime.manifest import Array, InputSpec, OutputSpec, PackedTensor, StateSpec

OPSET = 20  # the first one with Gelu; onnxruntime runs it since 1.17
ONLY_ONNX: Final[Mapping[str, int]] = {"": OPSET}
IR_VERSION = 10
BATCH = "batch"

_SAMPLE = 64
"""Numbers of a constant that are compared with those of others before all are: a large one is not read for each."""


class NodeBuilder:
    """Nodes and constants of a graph under construction.

    Attributes:
        nodes: In order of emission.
        constants: Tensors; equal ones are stored once.
    """

    def __init__(self, prefix: str = "", taken: Iterable[str] = ()) -> None:
        """Begin.

        Args:
            prefix: In front of the names of tensors that get no other.
            taken: Names that the graph has already.
        """
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = prefix
        self._taken = dict.fromkeys(taken, 1)
        self._stored: dict[tuple[Any, ...], list[onnx.TensorProto]] = {}

    def unique(self, name: str) -> str:
        """Return `name`, or with a number behind it where it is taken."""
        number, fresh = self._taken.get(name, 1), name
        while fresh in self._taken:
            number += 1
            fresh = f"{name}_{number}"
        self._taken[name] = number
        self._taken.setdefault(fresh, 1)
        return fresh

    def fresh(self, what: str, at: str = "") -> str:
        """Return a name that is not taken, behind `at` or the prefix."""
        place = at or self._prefix
        return self.unique(f"{place}/{what}" if place else what)

    def add(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> onnx.NodeProto:
        """Add a node whose outputs have names already, and return it."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), **attributes))
        return self.nodes[-1]

    def op(self, kind: str, *inputs: str, at: str = "", **attributes: Any) -> str:
        """Add a node with one output and return that tensor's name.

        Args:
            kind: The ONNX operator.
            inputs: Tensor names.
            at: Where it comes from, for example a layer's name; the tensor is named after it.
            attributes: The operator's attributes.
        """
        return self.split_op(kind, *inputs, at=at, outputs=1, **attributes)[0]

    def split_op(self, kind: str, *inputs: str, outputs: int, at: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names."""
        names = [self.fresh(kind, at) for _ in range(outputs)]
        self.add(kind, inputs, names, **attributes)
        return names

    def constant(self, array: Any, dtype: str | None = None, *, what: str = "const", at: str = "") -> str:
        """Return the name of a constant tensor.

        Args:
            array: Its value.
            dtype: NumPy name; None: the value's own.
            what: What it is, for its name.
            at: Where it comes from, as for `op`.
        """
        value = np.ascontiguousarray(np.asarray(array, dtype)).reshape(np.shape(array))
        made = self._tensor(value)
        some = value.reshape(-1)[:: value.size // _SAMPLE + 1].tobytes()
        alike = self._stored.setdefault((value.dtype.name, value.shape, some), [])
        for known in alike:
            made.name = known.name
            if made == known:
                return known.name
        made.name = self.fresh(what, at)
        alike.append(made)
        self.constants.append(made)
        return made.name

    def _tensor(self, value: Array) -> onnx.TensorProto:
        """Return a tensor without a name."""
        return numpy_helper.from_array(value)

    def ints(self, values: int | Sequence[int]) -> str:
        """Return a constant of axes, shapes or indices, int64: one axis, or a single number."""
        return self.constant(values if isinstance(values, int) else list(values), "int64", what="ints")

    def reshape(self, tensor: str, row: Sequence[int], *, at: str = "") -> str:
        """Give each row another shape; the batch axis is in front."""
        return self.op("Reshape", tensor, self.ints([-1, *row]), at=at)

    def cast(self, tensor: str, dtype: str, *, at: str = "") -> str:
        """Change the dtype."""
        return self.op("Cast", tensor, at=at, to=element_type(dtype))

    def needed_nodes(self, tensors: Iterable[str]) -> list[onnx.NodeProto]:
        """Return the nodes that these tensors need, each behind those that it needs itself."""
        return needed_nodes(in_order(self.nodes), tensors)

    def model(
        self,
        name: str,
        takes: Iterable[onnx.ValueInfoProto],
        gives: Sequence[onnx.ValueInfoProto],
        opsets: Mapping[str, int] = ONLY_ONNX,
        *,
        ir_version: int = IR_VERSION,
    ) -> onnx.ModelProto:
        """Return the finished model, without nodes and constants that no output needs.

        Args:
            name: The graph's name.
            takes: Its inputs.
            gives: Its outputs.
            opsets: The version of each domain's operators; that of ONNX's own is empty.
            ir_version: The version of the file format that is declared.
        """
        nodes = self.needed_nodes(value.name for value in gives)
        used = {tensor for node in nodes for tensor in uses(node)}
        model = helper.make_model(
            helper.make_graph(nodes, name, list(takes), list(gives)),
            ir_version=ir_version,
            opset_imports=[helper.make_opsetid(*entry) for entry in opsets.items()],
            producer_name="stepwell",
        )
        constants = [tensor for tensor in self.constants if tensor.name in used]
        replace_items(model.graph.initializer, constants)  # last, as a graph is copied into a model
        return model


class GraphBuilder(NodeBuilder):
    """A step graph under construction.

    Attributes:
        inputs: What the caller sends.
        states: What is carried, in order of emission.
        outputs: What the caller gets.
    """

    def __init__(self, prefix: str = "", taken: Iterable[str] = ()) -> None:
        super().__init__(prefix, taken)
        self.inputs: list[InputSpec] = []
        self.states: list[StateSpec] = []
        self.outputs: list[OutputSpec] = []
        self._started = ""

    def add_input(self, spec: InputSpec) -> str:
        """Declare an input of one timestep and return its tensor."""
        self._taken.setdefault(spec.name, 1)
        self.inputs.append(spec)
        return spec.name

    def add_output(self, spec: OutputSpec, tensor: str) -> OutputSpec:
        """Declare an output: a fresh tensor, so that one value may be output, state and input at once."""
        self._taken.setdefault(spec.name, 1)
        self.add("Identity", [tensor], [spec.name])
        self.outputs.append(spec)
        return spec

    def state(
        self,
        name: str,
        row: Sequence[int],
        dtype: str = "float32",
        init: Array | None = None,
        *,
        batch_axis: int | None = 0,
    ) -> StateSpec:
        """Declare a state; the caller owes `next_state` for it.

        Args:
            name: Its name in the graph; one with a number where it is taken.
            row: Its shape without batch axis.
            dtype: NumPy name.
            init: The row before the first timestep; None: zeros.
            batch_axis: Where its batch axis is; None: it has none.
        """
        name = self.unique(name)
        spec = StateSpec(
            input=name, output=self.unique(f"{name}_next"), dtype=dtype, shape=list(row), batch_axis=batch_axis
        )
        if init is not None and np.any(init):
            spec.init = PackedTensor.pack(np.broadcast_to(np.asarray(init, dtype), tuple(row)))
        self.states.append(spec)
        return spec

    def next_state(self, state: StateSpec, tensor: str) -> None:
        """Set the tensor that the state becomes."""
        self.add("Identity", [tensor], [state.output])

    def has_started(self) -> str:
        """Return whether a stream is past its first timestep, shape `(batch, 1)` bool."""
        if not self._started:
            spec = self.state("started", (1,), "bool")
            self.next_state(spec, self.op("Expand", self.constant(True, "bool"), self.op("Shape", spec.input)))
            self._started = spec.input
        return self._started

    def proto(
        self, name: str, opsets: Mapping[str, int] = ONLY_ONNX, *, ir_version: int = IR_VERSION
    ) -> onnx.ModelProto:
        """Return the finished model; see `model`."""
        takes = [declared(i.name, i.dtype, i.graph_row_shape, i.batch_axis) for i in self.inputs]
        takes += [declared(s.input, s.dtype, s.row_shape, s.batch_axis) for s in self.states]
        gives = [declared(o.name, o.dtype, o.graph_row_shape, o.batch_axis) for o in self.outputs]
        gives += [declared(s.output, s.dtype, s.row_shape, s.batch_axis) for s in self.states]
        return self.model(name, takes, gives, opsets, ir_version=ir_version)


def element_type(dtype: str) -> int:
    """Return ONNX's number of a NumPy dtype."""
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


def declared(name: str, dtype: str, row: Sequence[int], batch_axis: int | None) -> onnx.ValueInfoProto:
    """Return the declaration of a tensor: a row's shape, with a batch axis of any length at its place."""
    shape: list[Any] = list(row)
    if batch_axis is not None:
        shape.insert(batch_axis, BATCH)
    return helper.make_tensor_value_info(name, element_type(dtype), shape)
