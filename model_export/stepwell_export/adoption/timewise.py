"""`is_timewise`: whether a chunk of a graph is, by its operators, the same as its timesteps one by one.

Measuring cannot show it: a chunk may use its first timestep, its largest value or its length in a way that no sample
shows. Each tensor either has the time axis at a known place, or is the same for every timestep; each state enters a
recurrence along time and comes out of it. What an operator here is not known to do makes a graph run single steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from stepwell_export.graph.nodes import attributes, captures, constants, in_order, uses
from stepwell_export.graph.onnx_file import infer_types, without_weights
from stepwell_export.graph.operators import RNN

if TYPE_CHECKING:
    import onnx

_ELEMENTWISE: Final = frozenset({
    "Abs", "Acos", "Add", "And", "Asin", "Atan", "BitShift", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div",
    "Elu", "Equal", "Erf", "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg",
    "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus",
    "Softsign", "Sqrt", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
})  # fmt: skip
_ALONG_ONE_AXIS: Final = {"Softmax": -1, "LogSoftmax": -1, "Hardmax": -1}
_LAYOUT: Final = frozenset({"Identity", "Squeeze", "Unsqueeze", "Reshape", "Transpose", "Flatten", "Split", "Slice",
                            "Gather", "Concat"})  # fmt: skip


def is_timewise(model: onnx.ModelProto, times: Mapping[str, int], states: Mapping[str, str]) -> bool:
    """Return whether a chunk equals its timesteps one by one.

    Args:
        model: The graph.
        times: The time axis of each input that has one, and of each output that is answered.
        states: The state output by state input.
    """
    try:
        _Walk(model, times, states).check()
    except _UndecidedError:
        return False
    return True


class _UndecidedError(Exception):
    """Something is not known to be the same for every timestep."""


class _Walk:
    """What is known of the tensors so far.

    Attributes:
        time: The time axis by tensor.
        held: Tensors that are states before the chunk, but for their layout.
        last: Tensors that are states after the chunk, but for their layout.
    """

    def __init__(self, model: onnx.ModelProto, times: Mapping[str, int], states: Mapping[str, str]) -> None:
        self._graph, self._times, self._states = model.graph, times, states
        self._types, self._constants = infer_types(without_weights(model)), constants(model.graph)
        names = {value.name for value in model.graph.input}
        self.time = {name: axis for name, axis in times.items() if name in names}
        self.held, self.last = set(states), set[str]()

    def check(self) -> None:
        """Follow the graph.

        Raises:
            _UndecidedError: A node may mix timesteps.
        """
        for node in in_order(self._graph.node):
            self._follow(node)
        answered = {value.name for value in self._graph.output} & self._times.keys()
        _demand(all(self.time.get(name) == self._times[name] for name in answered))
        _demand(all(name in self.last for name in self._states.values()))

    def _follow(self, node: Any) -> None:
        used = uses(node)
        if node.op_type in RNN:
            self._recurrence(node)
        elif node.op_type == "Scan":
            self._scan(node)
        elif any(name in self.held for name in used):
            _demand(node.op_type in _LAYOUT and all(name in self.held or name in self._constants for name in used))
            self.held.update(node.output)
        elif any(name in self.last for name in used):
            _demand(node.op_type in _LAYOUT and all(name in self.last or name in self._constants for name in used))
            self.last.update(node.output)
        elif any(name in self.time for name in used):
            _demand(not captures(node))
            axis = self._axis(node)
            self.time.update(dict.fromkeys(filter(None, node.output), axis))

    def _axis(self, node: Any) -> int:
        """Return the time axis of what an operator gives that has no state."""
        given = node.input[0]
        if node.op_type in _ELEMENTWISE:
            return self._elementwise(node)
        _demand(given in self.time)
        _demand(node.op_type == "Concat" or not any(name in self.time for name in node.input[1:]))
        axis, rank, more = self.time[given], self._rank(given), attributes(node)
        if node.op_type == "Transpose":
            return list(more["perm"]).index(axis)
        if node.op_type in ("Squeeze", "Unsqueeze"):
            axes = self._ints(node, more, rank + (node.op_type == "Unsqueeze") * len(self._axes(node, more)))
            if node.op_type == "Squeeze":
                _demand(axis not in axes)
                return axis - sum(other < axis for other in axes)
            return [at for at in range(rank + len(axes)) if at not in axes][axis]
        if node.op_type == "MatMul":
            _demand(axis < rank - 1 and self._rank(node.input[1]) <= 2)
            return axis
        if node.op_type == "Gemm":
            _demand(axis == 0 and not more.get("transA", 0))
            return axis
        if node.op_type == "LayerNormalization":
            _demand(axis < more.get("axis", -1) % rank)
            return axis
        if node.op_type in _ALONG_ONE_AXIS:
            _demand(more.get("axis", -1) % rank != axis)
            return axis
        if node.op_type == "Split":
            _demand(more.get("axis", 0) % rank != axis)
            return axis
        if node.op_type == "Concat":
            places = {self.time.get(name) for name in node.input}
            _demand(len(places) == 1 and None not in places and more["axis"] % rank != axis)
            return axis
        raise _UndecidedError

    def _elementwise(self, node: Any) -> int:
        timed = [name for name in node.input if name in self.time]
        behind = {self._rank(name) - self.time[name] for name in timed}
        _demand(len(behind) == 1)
        [place] = behind
        for name in node.input:
            if name and name not in self.time:
                shape = self._shape(name)
                _demand(len(shape) < place or shape[-place] == 1)
        return max(self._rank(name) for name in node.input if name) - place

    def _recurrence(self, node: Any) -> None:
        more = attributes(node)
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        starts = inputs[5:7] if node.op_type == "LSTM" else inputs[5:6]
        _demand(self.time.get(inputs[0]) == 0 and not more.get("layout", 0) and not inputs[4])
        _demand(more.get("direction", b"forward") in ("forward", b"forward"))
        _demand(all(name in self.held for name in starts) and not {*inputs[1:4], inputs[7]} & self._moving())
        self.time[node.output[0]] = 0
        self.last.update(filter(None, node.output[1:]))

    def _scan(self, node: Any) -> None:
        more = attributes(node)
        count = len(node.input) - more["num_scan_inputs"]
        scanned, starts = node.input[count:], node.input[:count]
        _demand(not set(captures(node)) & self._moving())
        _demand(all(name in self.held for name in starts) and all(name in self.time for name in scanned))
        for what in ("scan_input_directions", "scan_output_directions"):
            _demand(not any(more.get(what, ())))
        axes = more.get("scan_input_axes") or [0] * len(scanned)
        _demand(all(axis % self._rank(name) == self.time[name] for name, axis in zip(scanned, axes, strict=True)))
        outputs = node.output[count:]
        self.last.update(filter(None, node.output[:count]))
        for name, axis in zip(outputs, more.get("scan_output_axes") or [0] * len(outputs), strict=True):
            if name:
                self.time[name] = axis % self._rank(name) if axis < 0 else axis

    def _moving(self) -> set[str]:
        return {*self.time, *self.held, *self.last}

    def _axes(self, node: Any, more: Mapping[str, Any]) -> list[int]:
        from onnx import numpy_helper

        if "axes" in more:
            return list(more["axes"])
        _demand(len(node.input) > 1 and node.input[1] in self._constants)
        return [int(axis) for axis in numpy_helper.to_array(self._constants[node.input[1]]).ravel()]

    def _ints(self, node: Any, more: Mapping[str, Any], rank: int) -> list[int]:
        return sorted(axis % rank for axis in self._axes(node, more))

    def _shape(self, name: str) -> list[int]:
        """Return a shape; lengths that are not known are 0."""
        if name in self._constants:
            return list(self._constants[name].dims)
        _demand(name in self._types and self._types[name].HasField("shape"))
        return [dim.dim_value for dim in self._types[name].shape.dim]

    def _rank(self, name: str) -> int:
        return len(self._shape(name))


def _demand(is_known: bool) -> None:
    if not is_known:
        raise _UndecidedError
