"""Which recurrent layers equal ONNX's LSTM, GRU or RNN: what runs a whole chunk of them in one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from onnx import numpy_helper

from model_export.chunk.fused_rnn import FusedCell
from model_export.graph.builder import NodeBuilder
from model_export.keras.registry import Call, to_array
from model_export.keras.value import Value
from model_export.manifest import Array

_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "tanh": ("Tanh", None, None), "sigmoid": ("Sigmoid", None, None), "relu": ("Relu", None, None),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5), "linear": ("Affine", 1.0, 0.0),
    "softsign": ("Softsign", None, None), "softplus": ("Softplus", None, None), "elu": ("Elu", 1.0, None),
}  # fmt: skip
"""ONNX's name, alpha and beta by Keras' name."""


def fused_cells(call: Call, cell: Any, x: Value, states: Sequence[Value], after: Sequence[Value]) -> list[FusedCell]:
    """Return the operator that one step of a cell equals; nothing where there is none.

    Args:
        call: The layer's call; its weights are constants of the step graph already.
        cell: The layer's cell.
        x: Its input.
        states: Its states before, h first.
        after: Its states after.
    """
    builder = _CELLS.get(type(cell))
    activations = [_known(getattr(cell, name)) for name in _activation_names(cell)] if builder else []
    if builder is None or None in activations:
        return []
    weights = _WeightNodes(call, states[0].name)
    op, tensors, attributes = builder(weights, cell)
    found = [activation for activation in activations if activation]
    attributes |= {"hidden_size": cell.units, "activations": [name for name, _, _ in found]}
    alphas = [alpha for _, alpha, _ in found if alpha is not None]
    betas = [beta for _, _, beta in found if beta is not None]
    attributes |= {"activation_alpha": alphas} if alphas else {}
    attributes |= {"activation_beta": betas} if betas else {}
    before, new = [value.name for value in states], [value.name for value in after]
    return [FusedCell(op, x.name, before, new, tensors, weights.nodes, attributes)]


class _WeightNodes(NodeBuilder):
    """Makes the operator's weights of those that the step graph has, so that a file holds them once."""

    def __init__(self, call: Call, prefix: str) -> None:
        super().__init__(f"chunk/weights/{prefix}")
        self._call = call

    def given(self, array: Any) -> str:
        """Return a constant of the step graph."""
        return self._call.constant(array)

    def new(self, array: Array) -> str:
        """Return a constant that the step graph does not have."""
        return self.op("Constant", value=numpy_helper.from_array(array))

    def operand(self, kernels: Sequence[Any], order: Array | None = None) -> str:
        """Return Keras kernels, `(in, gates * units)` side by side, as `(1, gates * units, in)`."""
        names = [self.given(kernel) for kernel in kernels]
        both = names[0] if len(names) == 1 else self.op("Concat", *names, axis=1)
        turned = self.op("Transpose", both, perm=[1, 0])
        if order is not None:
            turned = self.op("Gather", turned, self.new(order), axis=0)
        return self.op("Unsqueeze", turned, self.new(np.zeros(1, np.int64)))

    def bias(self, of_input: str, of_state: str, order: Array | None = None) -> str:
        """Return two biases as `(1, 2 * gates * units)`."""
        if order is not None:
            of_input = self.op("Gather", of_input, self.new(order), axis=0)
        both = self.op("Concat", of_input, of_state, axis=0)
        return self.op("Unsqueeze", both, self.new(np.zeros(1, np.int64)))


_Built = tuple[str, list[str], dict[str, Any]]


def _lstm(weights: _WeightNodes, cell: Any) -> _Built:
    gates = np.arange(4 * cell.units).reshape(4, -1)
    order = gates[
        [0, 3, 1, 2]
    ].ravel()  # Keras: input, forget, candidate, output; ONNX: input, output, forget, candidate
    bias = ""
    if cell.use_bias:
        bias = weights.bias(weights.given(cell.bias), weights.new(np.zeros(4 * cell.units, np.float32)), order)
    return "LSTM", [weights.operand([cell.kernel], order), weights.operand([cell.recurrent_kernel], order), bias], {}


def _gru(weights: _WeightNodes, cell: Any) -> _Built:
    units, recurrent = cell.units, to_array(cell.recurrent_kernel)
    kernels = [recurrent] if cell.reset_after else [recurrent[:, : 2 * units], recurrent[:, 2 * units :]]
    bias = ""
    if cell.use_bias:
        values = to_array(cell.bias)
        given = [*values] if cell.reset_after else [values]
        names = [weights.given(value) for value in given]
        bias = weights.bias(names[0], names[1] if cell.reset_after else weights.new(np.zeros(3 * units, np.float32)))
    attributes = {"linear_before_reset": int(cell.reset_after)}
    return "GRU", [weights.operand([cell.kernel]), weights.operand(kernels), bias], attributes


def _simple(weights: _WeightNodes, cell: Any) -> _Built:
    bias = ""
    if cell.use_bias:
        bias = weights.bias(weights.given(cell.bias), weights.new(np.zeros(cell.units, np.float32)))
    return "RNN", [weights.operand([cell.kernel]), weights.operand([cell.recurrent_kernel]), bias], {}


_CELLS: dict[type, Callable[[_WeightNodes, Any], _Built]] = {
    keras.layers.LSTMCell: _lstm,
    keras.layers.GRUCell: _gru,
    keras.layers.SimpleRNNCell: _simple,
}


def _activation_names(cell: Any) -> list[str]:
    if isinstance(cell, keras.layers.LSTMCell):
        return ["recurrent_activation", "activation", "activation"]
    if isinstance(cell, keras.layers.GRUCell):
        return ["recurrent_activation", "activation"]
    return ["activation"]


def _known(activation: Any) -> tuple[str, float | None, float | None] | None:
    name = getattr(activation, "__name__", "")
    return _ACTIVATIONS.get(name) if activation is getattr(keras.activations, name, None) else None
