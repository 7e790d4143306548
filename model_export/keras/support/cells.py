"""One step of a recurrent cell: an operator of ONNX, convolutions, or what the cell's code calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

from model_export.keras.registry import Call, find_rule, to_array
from model_export.keras.support.activations import activate
from model_export.keras.support.rnn_operator import operator_cell
from model_export.keras.support.sliding import Geometry
from model_export.keras.value import Value

Cell = Callable[[Call, Any, Value, list[Value]], tuple[Value, list[Value]]]


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
    return {1: ["h"], 2: ["h", "c"]}[count] if _cell_rule(cell) else [f"state{i}" for i in range(count)]


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
    if isinstance(cell, keras.layers.StackedRNNCells):
        after: list[Value] = []
        for inner, its in zip(cell.cells, states, strict=True):
            x, new = run_cell(call, inner, x, its)
            after += new
        return x, after
    if (known := _cell_rule(cell)) is not None:
        return known(call, cell, x, keras.tree.flatten(states))
    return _trace_cell(call, cell, x, states)


def _trace_cell(call: Call, cell: Any, x: Value, states: Any) -> tuple[Value, list[Value]]:
    given = list(states) if keras.tree.is_nested(states) else [states]
    inner_call = Call(call.walk, cell, f"{call.path}.{cell.name}", (x, given), {})
    own = find_rule(cell)
    results = own[0](inner_call) if own else call.walk.trace(inner_call, cell.call)
    y, *rest = results if isinstance(results, list) else [results]
    return y, rest


def _cell_rule(cell: Any) -> Cell | None:
    for cls, known in CELLS.items():
        if isinstance(cell, cls) and getattr(type(cell), "call", None) is getattr(cls, "call", None):
            return known
    return None


def known_cell(call: Call, cell: Any, x: Value, states: list[Value]) -> tuple[Value, list[Value]]:
    """One step of an LSTM, GRU or plain recurrent cell; with activations that ONNX's operators lack, by its code."""
    after = operator_cell(call, cell, x, states)
    return (after[0], after) if after else _trace_cell(call, cell, x, states)


def conv_lstm_cell(call: Call, cell: Any, x: Value, states: list[Value]) -> tuple[Value, list[Value]]:
    """One step of an LSTM whose matrix products are convolutions; its two states are maps, as Keras has them."""
    h, c = states
    ones = (1,) * cell.rank
    of_input = Geometry(cell.kernel_size, cell.strides, cell.dilation_rate, cell.padding)
    of_state = Geometry(cell.kernel_size, ones, ones, "same")
    first = cell.data_format == "channels_first"

    def convolve(value: Value, kernel: Any, shape: Geometry, *bias: str) -> str:
        weights = to_array(kernel)
        weights = weights.transpose(cell.rank + 1, cell.rank, *range(cell.rank))
        name = (
            value.name if first else call.op("Transpose", value.name, perm=[0, cell.rank + 1, *range(1, cell.rank + 1)])
        )
        pads = shape.pads(value.row[1:] if first else value.row[:-1])
        moves = {"strides": list(shape.strides), "dilations": list(shape.dilations), "pads": pads}
        return call.op("Conv", name, call.constant(weights), *bias, **moves)

    z = convolve(x, cell.kernel, of_input, *([call.constant(cell.bias)] if cell.use_bias else []))
    z = call.op("Add", z, convolve(h, cell.recurrent_kernel, of_state))
    if not first:
        z = call.op("Transpose", z, perm=[0, *range(2, cell.rank + 2), 1])
    axis = 1 if first else cell.rank + 1
    z_i, z_f, z_c, z_o = (
        h.like(z) for z in call.graph.split_op("Split", z, outputs=4, at=call.path, axis=axis, num_outputs=4)
    )
    i, f, o = (activate(call, cell.recurrent_activation, gate).name for gate in (z_i, z_f, z_o))
    candidate = activate(call, cell.activation, z_c).name
    new_c = c.like(call.op("Add", call.op("Mul", f, c.name), call.op("Mul", i, candidate)))
    new_h = h.like(call.op("Mul", o, activate(call, cell.activation, new_c).name))
    return new_h, [new_h, new_c]


CELLS: dict[type, Cell] = {
    **dict.fromkeys((keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell), known_cell),
    ConvLSTMCell: conv_lstm_cell,
}
