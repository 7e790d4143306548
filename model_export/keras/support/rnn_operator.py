"""Cells of Keras that equal ONNX's LSTM, GRU and RNN operators: emitted as such, with their weights in ONNX's order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from model_export.keras.registry import Call, to_array
from model_export.keras.value import Value
from model_export.manifest import Array

_ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "tanh": ("Tanh", None, None), "sigmoid": ("Sigmoid", None, None), "relu": ("Relu", None, None),
    "hard_sigmoid": ("HardSigmoid", 1 / 6, 0.5), "linear": ("Affine", 1.0, 0.0),
    "softsign": ("Softsign", None, None), "softplus": ("Softplus", None, None), "elu": ("Elu", 1.0, None),
}  # fmt: skip
"""ONNX's name, alpha and beta by Keras' name."""

_OPERATORS: dict[type, tuple[str, list[int], list[str]]] = {
    keras.layers.LSTMCell: ("LSTM", [0, 3, 1, 2], ["recurrent_activation", "activation", "activation"]),
    keras.layers.GRUCell: ("GRU", [0, 1, 2], ["recurrent_activation", "activation"]),
    keras.layers.SimpleRNNCell: ("RNN", [0], ["activation"]),
}
"""The operator, its gates by their place in Keras, and its activations."""


def operator_cell(call: Call, cell: Any, x: Value, states: Sequence[Value]) -> list[Value] | None:
    """Emit one step of a cell as an operator over one timestep; `model_export.graph.decompose_rnn` writes it out.

    Args:
        call: The layer's call.
        cell: One of Keras' own cells.
        x: Its input, row `(features,)`.
        states: Its states before, h first.

    Returns:
        Its states after; None: the operator does not have one of its activations.
    """
    kind, order, names = next(found for cls, found in _OPERATORS.items() if isinstance(cell, cls))
    activations = [_known(getattr(cell, name)) for name in names]
    found = [activation for activation in activations if activation]
    if len(found) < len(activations):
        return None
    alphas, betas = ([given[place] for given in found if given[place] is not None] for place in (1, 2))
    attributes = {"hidden_size": cell.units, "activations": [name for name, _, _ in found]}
    attributes |= {"activation_alpha": alphas} if alphas else {}
    attributes |= {"activation_beta": betas} if betas else {}
    attributes |= {"linear_before_reset": int(cell.reset_after)} if kind == "GRU" else {}
    weights = [
        call.constant(_gates_in_order(to_array(kernel).T, order)) for kernel in (cell.kernel, cell.recurrent_kernel)
    ]
    biases = [call.constant(_biases(to_array(cell.bias), order))] if cell.use_bias else [""]
    given = [call.op("Unsqueeze", value, call.graph.ints([0])) for value in (x, *states)]
    outputs = [call.graph.fresh(kind, call.path) for _ in states]
    call.graph.add(kind, [given[0], *weights, *biases, "", *given[1:]], ["", *outputs], **attributes)
    after = [call.op("Squeeze", name, call.graph.ints([0])) for name in reversed(outputs)]  # h last, as of other layers
    return [state.like(name) for state, name in zip(states, reversed(after), strict=True)]


def _gates_in_order(array: Array, order: Sequence[int]) -> Array:
    """Return weights `(gates * units, ...)` with their gates in another order, below an axis of directions."""
    gates = array.reshape(len(order), -1, *array.shape[1:])[list(order)]
    return gates.reshape(1, *array.shape)


def _biases(bias: Array, order: Sequence[int]) -> Array:
    """Return one bias, or that of the input and that of the state, as `(1, 2 * gates * units)`."""
    of_input, of_state = bias if bias.ndim > 1 else (bias, np.zeros_like(bias))
    return np.concatenate([_gates_in_order(of_input, order), _gates_in_order(of_state, order)], axis=1)


def _known(activation: Any) -> tuple[str, float | None, float | None] | None:
    name = getattr(activation, "__name__", "")
    return _ACTIVATIONS.get(name) if activation is getattr(keras.activations, name, None) else None
