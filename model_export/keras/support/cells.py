"""One step of a recurrent cell, decomposed into matrix products and convolutions.

Decomposed and not the fused LSTM, GRU and RNN operators: every row of a batch then comes out bit for bit as it
does alone, and small nets run up to twice as fast in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

from model_export.keras.registry import Call, find_rule, to_array
from model_export.keras.support.activations import activate
from model_export.keras.support.fused import fused_cells
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
        before = keras.tree.flatten(states)
        y, following = known(call, cell, x, before)
        call.graph.cells += fused_cells(call, cell, x, before, following)
        return y, following
    given = list(states) if keras.tree.is_nested(states) else [states]
    inner_call = Call(call.walk, cell, f"{call.path}.{cell.name}", (x, given), {})
    own = find_rule(cell)
    results = own[0](inner_call) if own else call.walk.trace(inner_call, cell.call)
    y, *rest = results if isinstance(results, list) else [results]
    return y, rest


def is_known(cell: Any) -> bool:
    """Return whether the cell's first state is its output, by a rule of its own."""
    return _cell_rule(cell) is not None


def _cell_rule(cell: Any) -> Cell | None:
    for cls, known in CELLS.items():
        if isinstance(cell, cls) and getattr(type(cell), "call", None) is getattr(cls, "call", None):
            return known
    return None


def _gemm(call: Call, x: str, kernel: Any, added: str | None = None) -> str:
    return call.op("Gemm", x, call.constant(kernel), *([added] if added else []))


def _gates(call: Call, x: str, count: int, axis: int = 1) -> list[str]:
    return call.graph.split_op("Split", x, outputs=count, at=call.path, axis=axis, num_outputs=count)


def lstm_cell(call: Call, cell: Any, x: Value, states: list[Value]) -> tuple[Value, list[Value]]:
    """One LSTM step; gates in Keras' order: input, forget, candidate, output."""
    h, c = states
    z = _gemm(call, x.name, cell.kernel, call.constant(cell.bias) if cell.use_bias else None)
    z = _gemm(call, h.name, cell.recurrent_kernel, z)
    return _lstm_gates(call, cell, _gates(call, z, 4), h, c)


def _lstm_gates(call: Call, cell: Any, z: list[str], h: Value, c: Value) -> tuple[Value, list[Value]]:
    gates = [h.like(gate) for gate in z]
    i, f, o = (activate(call, cell.recurrent_activation, gates[k]).name for k in (0, 1, 3))
    candidate = activate(call, cell.activation, gates[2]).name
    new_c = c.like(call.op("Add", call.op("Mul", f, c.name), call.op("Mul", i, candidate)))
    new_h = h.like(call.op("Mul", o, activate(call, cell.activation, new_c).name))
    return new_h, [new_h, new_c]


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
    return _lstm_gates(call, cell, _gates(call, z, 4, 1 if first else cell.rank + 1), h, c)


def gru_cell(call: Call, cell: Any, x: Value, states: list[Value]) -> tuple[Value, list[Value]]:
    """One GRU step; gates in Keras' order: update, reset, candidate."""
    h = states[0]
    units = cell.units
    bias = to_array(cell.bias) if cell.use_bias else None
    recurrent_kernel = to_array(cell.recurrent_kernel)
    input_bias, recurrent_bias = (
        (None, None) if bias is None else (bias[0], bias[1]) if cell.reset_after else (bias, None)
    )
    x_z, x_r, x_h = _gates(
        call, _gemm(call, x.name, cell.kernel, None if input_bias is None else call.constant(input_bias)), 3
    )
    if cell.reset_after:
        added = None if recurrent_bias is None else call.constant(recurrent_bias)
        h_z, h_r, h_h = _gates(call, _gemm(call, h.name, recurrent_kernel, added), 3)
    else:
        h_z, h_r = _gates(call, _gemm(call, h.name, recurrent_kernel[:, : 2 * units]), 2)
    z = activate(call, cell.recurrent_activation, h.like(call.op("Add", x_z, h_z))).name
    r = activate(call, cell.recurrent_activation, h.like(call.op("Add", x_r, h_r))).name
    if cell.reset_after:
        mixed = call.op("Add", x_h, call.op("Mul", r, h_h))
    else:
        mixed = _gemm(call, call.op("Mul", r, h.name), recurrent_kernel[:, 2 * units :], x_h)
    candidate = activate(call, cell.activation, h.like(mixed)).name
    kept = call.op("Mul", z, h.name)
    new = h.like(call.op("Add", kept, call.op("Mul", call.op("Sub", call.constant(1.0), z), candidate)))
    return new, [new]


def simple_cell(call: Call, cell: Any, x: Value, states: list[Value]) -> tuple[Value, list[Value]]:
    """One step of the plain recurrent cell."""
    h = states[0]
    z = _gemm(call, x.name, cell.kernel, call.constant(cell.bias) if cell.use_bias else None)
    new = activate(call, cell.activation, h.like(_gemm(call, h.name, cell.recurrent_kernel, z)))
    return new, [new]


CELLS: dict[type, Cell] = {
    keras.layers.LSTMCell: lstm_cell,
    keras.layers.GRUCell: gru_cell,
    keras.layers.SimpleRNNCell: simple_cell,
    ConvLSTMCell: conv_lstm_cell,
}
