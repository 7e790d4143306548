"""Rules of recurrent layers: one step of the cell over time, every step at once inside a timestep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NoReturn

import keras
import numpy as np

from model_export.keras.registry import Call, op_rule, rule, to_array
from model_export.keras.rules.cells import run_cell, state_names
from model_export.keras.value import Value
from model_export.manifest import Array

LONGEST_INSIDE = 512
"""Positions inside one timestep that a recurrent layer may run over: each is a cell of its own in the graph."""


@rule("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", masks=True)
def recurrent(call: Call) -> list[Value]:
    """Run the layer's cell once; its states become states of the step graph.

    With `return_sequences=False` the result is the answer for the timesteps so far.
    """
    layer, x = call.layer, call.as_float(call.value)
    start = _initial(call)
    if not x.time:
        return _inside(call, layer, x, start)
    if layer.go_backwards:
        raise call.refuse(
            "go_backwards=True reads the sequence from its end, and a live stream has none yet",
            "Train it forwards; of a bidirectional layer, train the forward one alone.",
        )
    calls = sum(1 for other in call.graph.states if other.input.startswith(f"{call.path}."))
    if layer.stateful and calls:
        raise call.refuse("it is stateful and called more than once, so its calls hand their state to each other")
    states = [call.state(name, row.shape, init=row) for name, row in zip(start.names, start.arrays, strict=True)]
    before = _before(call, states)
    y, after = run_cell(call, layer.cell, Value(x.name, x.row), start.nested(before))
    # Keras hands a layer the mask of its input only where that is the layer's one tensor.
    if call.mask is not None and not (_given_states(call) and call.mask == call.value.mask):
        y, after = _hold_where_masked(call, y, before, after, start)
    for state, value in zip(states, after, strict=True):
        call.next_state(state, value)
    result = y.like(y.name, time=layer.return_sequences, mask=call.mask if layer.return_sequences else None)
    return [result, *after] if layer.return_state else [result]


@dataclass(frozen=True, slots=True)
class _Initial:
    """What a recurrent layer's states are before the first timestep, one row each, in flat order."""

    names: list[str]
    arrays: list[Array]
    structure: Any

    def nested(self, values: list[Value]) -> Any:
        """Return values nested as Keras has the states."""
        return keras.tree.pack_sequence_as(self.structure, values)


def _initial(call: Call) -> _Initial:
    structure = call.layer.get_initial_state(1)
    cell = call.layer.cell
    nested = structure if isinstance(cell, keras.layers.StackedRNNCells) else list(structure)
    arrays = [to_array(tensor)[0].astype(np.float32) for tensor in keras.tree.flatten(nested)]
    if constants := [to_array(one) for one in _given(call) if not isinstance(one, Value)]:
        arrays = [_one_row(call, constant, array) for constant, array in zip(constants, arrays, strict=False)]
    return _Initial(state_names(cell, nested), arrays, nested)


def _one_row(call: Call, constant: Array, like: Array) -> Array:
    if constant.ndim != like.ndim + 1 or constant.shape[1:] != like.shape or np.any(constant != constant[:1]):
        raise call.refuse(
            f"its initial state is a constant of shape {list(constant.shape)}; expected one row of {list(like.shape)}, "
            "the same for every stream",
            "Give every stream the same initial state, or compute it from an input without time axis.",
        )
    row: Array = constant[0].astype(np.float32)
    return row


def _before(call: Call, carried: list[Value]) -> list[Value]:
    """Return the states before this timestep; before the first one they may be computed by the model."""
    given = _given_states(call)
    if not given:
        return carried
    if [value.row for value in given] != [value.row for value in carried]:
        raise call.refuse(
            f"its initial state has rows {[list(v.row) for v in given]}; expected {[list(v.row) for v in carried]}"
        )
    for value in given:
        if value.time or not call.graph.is_static(value.name):
            raise call.refuse(
                "its initial state is computed from a sequence, which has not ended when the first timestep comes",
                "Compute it from an input without time axis, or export the two parts as two models.",
            )
    started = call.graph.has_started()
    return [
        old.like(call.op("Where", call.reshape(started, [1] * len(old.row)), old, call.as_float(first)))
        for old, first in zip(carried, given, strict=True)
    ]


def _given(call: Call) -> list[Any]:
    """Return the initial states of a call: values of the model, or tensors of its own."""
    more = [call.kwargs.get("initial_state"), call.args[1:2], call.values[1:]]
    return [one for one in keras.tree.flatten(more) if one is not None]


def _given_states(call: Call) -> list[Value]:
    return [value for value in _given(call) if isinstance(value, Value)]


def _hold_where_masked(
    call: Call, y: Value, before: list[Value], after: list[Value], start: _Initial
) -> tuple[Value, list[Value]]:
    """Keep the states and repeat the previous output where the timestep is masked.

    Keras takes the last cell's first state for the previous output, except in an unrolled layer.
    """
    assert call.mask is not None
    layer = call.layer
    if any(len(value.row) != 1 for value in (y, *before)):
        raise call.refuse(
            "it has states of several axes and a mask, which Keras itself lines up with the wrong axes", "Mask outside."
        )
    mask = call.op("Unsqueeze", call.mask, call.graph.ints([1]))
    held = [new.like(call.op("Where", mask, new.name, old.name)) for old, new in zip(before, after, strict=True)]
    if layer.unroll:
        previous = call.state("output", y.row)
        result = y.like(call.op("Where", mask, y, previous))
        call.next_state(previous, result)
        return result, held
    cells = getattr(layer.cell, "cells", None)
    last = len(keras.tree.flatten(start.structure[-1])) if cells else len(before)
    kept = call.constant(0.0) if layer.zero_output_for_mask else before[-last]
    return y.like(call.op("Where", mask, y, kept)), held


# ---------------------------------------------------------------- inside a timestep


def _inside(call: Call, layer: Any, x: Value, start: _Initial) -> list[Value]:
    """Run over an axis inside one timestep: every position is there, so any direction will do."""
    count = x.row[0] if x.row else 0
    if not len(x.row) > 1 or count > LONGEST_INSIDE:
        raise call.refuse(
            f"its input carries no time axis, and row shape {list(x.row)} is none of at most {LONGEST_INSIDE} "
            "positions with features",
            "Give the recurrent layer before it return_sequences=True, and the model's input the shape "
            "(batch, time, features).",
        )
    states = [_for_each_row(call, x, array) for array in start.arrays]
    if given := _given_states(call):
        states = given
    outputs = []
    positions = range(count)[:: -1 if layer.go_backwards else 1]
    for position in positions:
        name = call.op("Gather", x.name, call.constant(position, "int64"), axis=1)
        y, states = run_cell(call, layer.cell, Value(name, x.row[1:]), start.nested(states))
        outputs.append(y)
    result = outputs[-1]
    if layer.return_sequences:
        rows = [call.op("Unsqueeze", y.name, call.graph.ints([1])) for y in outputs]
        result = result.like(call.op("Concat", *rows, axis=1), row=(count, *result.row))
    return [result, *states] if layer.return_state else [result]


def _for_each_row(call: Call, x: Value, array: Array) -> Value:
    shape = call.op("Concat", call.op("Shape", x.name, end=1), call.graph.ints(array.shape), axis=0)
    return Value(call.op("Expand", call.constant(array), shape), array.shape)


# ---------------------------------------------------------------- wrappers and loops


_OF_LAST_AXIS = (keras.layers.Dense, keras.layers.Activation, keras.layers.Dropout)
"""Layers that do the same at each position, however many axes are in front."""


@rule("TimeDistributed")
def time_distributed(call: Call) -> list[Value]:
    """Runs its layer on each timestep; in the step graph that is the layer itself."""
    x = call.value
    if not x.time:
        return _at_each_position(call, x)
    results = call.walk.visit(call.layer.layer, f"{call.path}.", replace(x, time=False, mask=None))
    return [replace(value, time=True) for value in results]


def _at_each_position(call: Call, x: Value) -> list[Value]:
    """Run a layer on each position inside one timestep: as rows of a batch."""
    layer, count = call.layer.layer, x.row[0]
    if isinstance(layer, _OF_LAST_AXIS):
        return call.walk.visit(layer, f"{call.path}.", x)
    states = len(call.graph.states)
    results = call.walk.visit(layer, f"{call.path}.", call.reshaped(x, x.row[1:]))
    if len(call.graph.states) > states:
        raise call.refuse("its layer carries something from timestep to timestep, which a position has not")
    return [call.reshaped(value, (count, *value.row)) for value in results]


@op_rule("Scan", "AssociativeScan", "WhileLoop", "ForiLoop", handles="deferred")
def loop(call: Call) -> NoReturn:
    """Loops of `keras.ops`: they run a function over the whole sequence, which has no rule for one timestep."""
    raise call.refuse(
        "it runs a function of its own over a whole sequence, and nothing defines what one timestep of that is",
        "Let a recurrent layer run it: keras.layers.RNN(cell), with the function as the cell's `call`. Or put it into "
        "a layer of your own and define what one timestep is: stepwell.register_step_rule.",
    )
