"""Rules of recurrent layers: one step of the cell, decomposed into matrix products.

Decomposed and not the fused LSTM, GRU and RNN operators: every row of a batch then comes out bit for bit as it
does alone, and small nets run up to twice as fast in batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from model_export.keras.activations import activate
from model_export.keras.emit import Value
from model_export.keras.registry import Call, rule, to_array

Cell = Callable[[Call, Any, Value, list[Value]], tuple[Value, list[Value]]]


@rule("LSTM", "GRU", "SimpleRNN", "RNN", masks=True)
def recurrent(call: Call) -> list[Value]:
    """Run the layer's cell once; its states become states of the step graph.

    With `return_sequences=False` the result is the answer for the timesteps so far.
    """
    layer, x = call.layer, call.as_float(call.value)
    _check_layer(call, x)
    step = Value(x.name, x.row)
    specs = [call.graph.state(f"{call.path}.{name}", (size,)) for name, size in state_names(layer.cell)]
    before = [Value(spec.input, (spec.shape[0],)) for spec in specs]
    y, after = run_cell(call, layer.cell, step, before)
    if call.mask is not None:
        y, after = _hold_where_masked(call, layer, y, before, after)
    for spec, value in zip(specs, after, strict=True):
        call.graph.next_state(spec, value.name)
    result = y.like(y.name, time=layer.return_sequences, mask=call.mask if layer.return_sequences else None)
    return [result, *after] if layer.return_state else [result]


def _check_layer(call: Call, x: Value) -> None:
    layer = call.layer
    if not x.time:
        raise call.refuse(
            "its input carries no time axis",
            "Give the recurrent layer before it return_sequences=True, and the model's input the shape "
            "(batch, time, features).",
        )
    if len(x.row) != 1:
        raise call.refuse(f"its input has row shape {list(x.row)}; expected one axis of features")
    if layer.go_backwards:
        raise call.refuse("go_backwards=True reads the sequence from its end", "Train it forwards.")
    if len(call.args) > 1 or "initial_state" in call.kwargs or len(call.values) > 1:
        raise call.refuse(
            "its initial state is computed by the model",
            "Let it start from zeros, or give that tensor to the layer as an input of every timestep.",
        )
    calls = sum(1 for other in call.walk.graph.states if other.input.startswith(f"{call.path}."))
    if layer.stateful and calls:
        raise call.refuse("it is stateful and called more than once, so its calls hand their state to each other")


def _hold_where_masked(
    call: Call, layer: Any, y: Value, before: list[Value], after: list[Value]
) -> tuple[Value, list[Value]]:
    """Keep the states and repeat the previous output where the timestep is masked.

    The previous output is the last cell's first state, as Keras itself assumes; zeros before the first one.
    """
    assert call.mask is not None
    mask = call.op("Unsqueeze", call.mask, call.graph.ints([1]))
    held = [new.like(call.op("Where", mask, new.name, old.name)) for old, new in zip(before, after, strict=True)]
    previous = before[0].name
    if isinstance(layer.cell, keras.layers.StackedRNNCells):
        previous = before[-len(state_names(layer.cell.cells[-1]))].name
    if layer.zero_output_for_mask and not layer.unroll:
        previous = call.constant(0.0)
    return y.like(call.op("Where", mask, y.name, previous)), held


def state_names(cell: Any) -> list[tuple[str, int]]:
    """Return each state of a cell, as its name behind the layer's and its size."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        return [(f"{i}.{name}", size) for i, c in enumerate(cell.cells) for name, size in state_names(c)]
    sizes = [int(size) for size in keras.tree.flatten(cell.state_size)]
    names = {1: ["h"], 2: ["h", "c"]}.get(len(sizes)) if _cell_rule(cell) else None
    return list(zip(names or [f"state{i}" for i in range(len(sizes))], sizes, strict=True))


def run_cell(call: Call, cell: Any, x: Value, states: list[Value]) -> tuple[Value, list[Value]]:
    """Run one step of a cell: `(output, next states)`."""
    if isinstance(cell, keras.layers.StackedRNNCells):
        after: list[Value] = []
        for inner in cell.cells:
            count = len(state_names(inner))
            x, new = run_cell(call, inner, x, states[len(after) : len(after) + count])
            after += new
        return x, after
    if (known := _cell_rule(cell)) is not None:
        return known(call, cell, x, states)
    inner_call = Call(call.walk, cell, f"{call.path}.{cell.name}", (x, states), {})
    y, *rest = call.walk.trace(inner_call, cell.call)
    return y, rest


def _cell_rule(cell: Any) -> Cell | None:
    for cls, known in CELLS.items():
        if isinstance(cell, cls) and getattr(type(cell), "call", None) is getattr(cls, "call", None):
            return known
    return None


def _gemm(call: Call, x: str, kernel: Any, added: str | None = None) -> str:
    return call.op("Gemm", x, call.constant(kernel), *([added] if added else []))


def _gates(call: Call, x: str, count: int) -> list[str]:
    return call.graph.split_op("Split", x, outputs=count, at=call.path, axis=1, num_outputs=count)


def lstm_cell(call: Call, cell: Any, x: Value, states: list[Value]) -> tuple[Value, list[Value]]:
    """One LSTM step; gates in Keras' order: input, forget, candidate, output."""
    h, c = states
    z = _gemm(call, x.name, cell.kernel, call.constant(cell.bias) if cell.use_bias else None)
    z = _gemm(call, h.name, cell.recurrent_kernel, z)
    gates = [h.like(gate) for gate in _gates(call, z, 4)]
    i, f, o = (activate(call, cell.recurrent_activation, gates[k]).name for k in (0, 1, 3))
    candidate = activate(call, cell.activation, gates[2]).name
    new_c = c.like(call.op("Add", call.op("Mul", f, c.name), call.op("Mul", i, candidate)))
    new_h = h.like(call.op("Mul", o, activate(call, cell.activation, new_c).name))
    return new_h, [new_h, new_c]


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
}
