"""Recurrent layers and cells: an operator of ONNX, convolutions, or what the cell's code calls."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import keras
import numpy as np
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

from stepwell_export.keras.rule_registry import Call, to_array
from stepwell_export.keras.support.find_rule import computes_as, find_rule
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array

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


def state_names(cell: Any, states: Any) -> list[str]:
    """Return a name for each state of a cell, in flat order.

    Args:
        cell: The cell, or several on top of each other.
        states: Its states, nested as Keras has them.
    """
    if isinstance(cell, keras.layers.StackedRNNCells):
        pairs = zip(cell.cells, states, strict=True)
        return [f"{i}.{name}" for i, (c, own) in enumerate(pairs) for name in state_names(c, own)]
    count = len(keras.tree.flatten(states))
    known = any(computes_as(cell, cls) for cls in (*_OPERATORS, ConvLSTMCell))
    return ["h", "c"][:count] if known else [f"state{i}" for i in range(count)]


def run_cell(call: Call, cell: Any, x: Value, states: Any) -> tuple[Value, list[Value]]:
    """Run one step of a cell.

    Args:
        call: The recurrent layer.
        cell: Its cell, or one of those on top of each other.
        x: The input of this timestep.
        states: The cell's states, nested as Keras has them.

    Returns:
        The output, and the next states in flat order.
    """
    if computes_as(cell, keras.layers.StackedRNNCells):
        after: list[Value] = []
        for inner, its in zip(cell.cells, states, strict=True):
            x, new = run_cell(call, inner, x, its)
            after += new
        return x, after
    if known := _operator_cell(call, cell, x, keras.tree.flatten(states)):
        return known[0], known
    given = list(states) if keras.tree.is_nested(states) else [states]
    inner_call = Call(call.walk, cell, f"{call.path}.{cell.name}", (x, given), {})
    own = find_rule(cell)
    code = partial(_conv_lstm_cell, cell) if computes_as(cell, ConvLSTMCell) else cell.call
    results = own[0](inner_call) if own else call.walk.trace(inner_call, code)
    y, *rest = results if isinstance(results, list) else [results]
    return y, rest


def recurrent_operator(call: Call, x: Value, starts: Sequence[Value | Array]) -> tuple[Value, list[Value]] | None:
    """Emit a recurrent layer as an operator over axis 1.

    Args:
        call: The layer's call.
        x: Its input, row `(places, features)`.
        starts: Its states before, h first: values, or one row.

    Returns:
        The answer as the layer gives it, and its states behind the last place, h first; None: there is no such
        operator, or it does not have one of the cell's activations.
    """
    layer = call.layer
    cell = layer.cell
    if len(x.row) != 2 or (operator := _operator(call, cell)) is None:
        return None
    ints = call.graph.ints
    zeros = all(not isinstance(start, Value) and not start.any() for start in starts)
    states = [] if zeros else [call.op("Unsqueeze", _rows(call, x, start), ints([0])) for start in starts]
    sequence = call.op("Transpose", x, perm=[1, 0, 2])
    kind, weights, attributes = operator
    attributes |= {"direction": "reverse"} if layer.go_backwards else {}
    outputs = [call.graph.fresh(kind, call.path) for _ in range(1 + len(starts))]
    call.graph.add(kind, [sequence, *weights, *(["", *states] if states else [])], outputs, at=call.path, **attributes)
    last = [Value(call.op("Squeeze", name, ints([0])), (cell.units,)) for name in outputs[1:]]
    if not layer.return_sequences:
        return last[0], last
    answers = call.op("Transpose", call.op("Squeeze", outputs[0], ints([1])), perm=[1, 0, 2])
    y = Value(answers, (x.row[0], cell.units))
    if layer.go_backwards:  # the operator has its answers in the order of its input
        y = from_its_end(call, y)
    return y, last


def from_its_end(call: Call, x: Value) -> Value:
    """Return a value with the places of axis 1 from the last to the first."""
    ints = call.graph.ints
    return x.like(call.op("Slice", x, ints([-1]), ints([np.iinfo(np.int64).min + 1]), ints([1]), ints([-1])))


def _rows(call: Call, x: Value, start: Value | Array) -> str:
    """Return a state for each row of the batch."""
    if isinstance(start, Value):
        return start.name
    return call.graph.for_each_row(call.constant(start), start.shape, x.name, at=call.path)


def _operator_cell(call: Call, cell: Any, x: Value, states: Sequence[Value]) -> list[Value] | None:
    """Emit one step of a cell as an operator over one timestep; `stepwell_export.graph.decompose_rnn` writes it out.

    Args:
        call: The layer's call.
        cell: One of Keras' own cells.
        x: Its input, row `(features,)`.
        states: Its states before, h first.

    Returns:
        Its states after; None: the operator does not have one of its activations.
    """
    if (operator := _operator(call, cell)) is None:
        return None
    kind, weights, attributes = operator
    given = [call.op("Unsqueeze", value, call.graph.ints([0])) for value in (x, *states)]
    outputs = [call.graph.fresh(kind, call.path) for _ in states]
    call.graph.add(kind, [given[0], *weights, "", *given[1:]], ["", *outputs], at=call.path, **attributes)
    return [
        state.like(call.op("Squeeze", name, call.graph.ints([0]))) for state, name in zip(states, outputs, strict=True)
    ]


def _operator(call: Call, cell: Any) -> tuple[str, list[str], dict[str, Any]] | None:
    """Return a cell's operator, its weights and its attributes; None: there is none, or not with its activations."""
    facts = next((facts for cls, facts in _OPERATORS.items() if computes_as(cell, cls)), None)
    if facts is None:
        return None
    kind, order, names = facts
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
    weights.append(call.constant(_biases(to_array(cell.bias), order)) if cell.use_bias else "")
    return kind, weights, attributes


def _gates_in_order(array: Array, order: Sequence[int]) -> Array:
    """Return weights `(gates * units, ...)` with their gates in another order, below an axis of directions."""
    gates = np.split(array, len(order))
    return np.concatenate([gates[place] for place in order], out=np.empty(array.shape, array.dtype))[None]


def _biases(bias: Array, order: Sequence[int]) -> Array:
    """Return one bias, or that of the input and that of the state, as `(1, 2 * gates * units)`."""
    of_input, of_state = bias if bias.ndim > 1 else (bias, np.zeros_like(bias))
    return np.concatenate([_gates_in_order(of_input, order), _gates_in_order(of_state, order)], axis=1)


def _known(activation: Any) -> tuple[str, float | None, float | None] | None:
    return _ACTIVATIONS.get(activation.__name__) if is_activation(activation) else None


def is_activation(value: Any) -> bool:
    """Return whether something is a function of `keras.activations`."""
    name = getattr(value, "__name__", "")
    return callable(value) and getattr(keras.activations, name, None) is value


def _conv_lstm_cell(cell: Any, x: Any, states: Sequence[Any]) -> list[Any]:
    """Return the output and the states of an LSTM of convolutions: Keras' formulas, with one kernel for all gates."""
    h, c = states
    first = cell.data_format == "channels_first"
    z = cell.input_conv(x, cell.kernel, padding=cell.padding)
    if cell.use_bias:
        z = z + (keras.ops.reshape(cell.bias, (1, -1, *(1,) * cell.rank)) if first else cell.bias)
    z = z + cell.recurrent_conv(h, cell.recurrent_kernel)
    i, f, candidate, o = keras.ops.split(z, 4, axis=1 if first else -1)
    i, f, o = (cell.recurrent_activation(gate) for gate in (i, f, o))
    c = f * c + i * cell.activation(candidate)
    h = o * cell.activation(c)
    return [h, h, c]
