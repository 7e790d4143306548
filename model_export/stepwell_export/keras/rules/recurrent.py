"""Rules of recurrent layers: an operator of ONNX where there is one, else a Scan over the cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NoReturn

import keras
import numpy as np

from stepwell_export.keras.rule_registry import Call, op_rule, rule, to_array
from stepwell_export.keras.rules.cells import from_its_end, is_activation, recurrent_operator, run_cell, state_names
from stepwell_export.keras.rules.slicing import WINDOW_FIX
from stepwell_export.keras.scan import StepScan
from stepwell_export.keras.value import Value
from stepwell_export.runtime.manifest import Array


@rule("LSTM", "GRU", "SimpleRNN", "RNN", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D", masks=True)
def recurrent(call: Call) -> list[Value]:
    """Run the layer over axis 1: timesteps, or positions inside one."""
    layer, x = call.layer, call.as_float(call.value)
    if len(x.row) < 2:
        raise call.refuse(
            f"its input carries no time axis; found row shape {list(x.row)}",
            "Give the recurrent layer before it return_sequences=True, and the model's input the shape "
            "(batch, time, features).",
        )
    if len(x.row) == 2 and x.row[1] is None:
        raise call.refuse(
            "its input has the features in the place of timesteps, and the timesteps as features: they were swapped",
            "Leave out the Permute or transpose in front of it: its input is (batch, time, features).",
        )
    if layer.go_backwards and x.is_sequence:
        raise call.refuse(
            "go_backwards=True reads the sequence from its end, and a live stream has none yet",
            f"Train it forwards; of a bidirectional layer, train the forward one alone. {WINDOW_FIX}",
        )
    if layer.stateful and call.path in call.graph.stateful:
        raise call.refuse("it is stateful and called more than once, so its calls hand their state to each other")
    call.graph.stateful |= {call.path} if layer.stateful else set()
    nested = layer.get_initial_state(1)
    nested = nested if isinstance(layer.cell, keras.layers.StackedRNNCells) else list(nested)
    starts = _starts(call, nested)
    # Keras hands a layer the mask of its input only where that is the layer's one tensor.
    several = any(isinstance(given, Value) for given in _given(call))
    mask = None if several and call.mask == call.value.mask else call.mask
    found = recurrent_operator(call, x, starts) if mask is None else None
    y, after = found or _scanned(call, x, nested, starts, mask)
    y = replace(y, mask=call.mask if layer.return_sequences else None)
    return [y, *after] if layer.return_state else [y]


def _starts(call: Call, nested: Any) -> list[Value | Array]:
    """Return what the states are before the first timestep, in flat order: values of the model, or one row."""
    rows = [to_array(row)[0].astype(np.float32) for row in keras.tree.flatten(nested)]
    given = _given(call)[: len(rows)]
    return [*(_start(call, one, row.shape) for one, row in zip(given, rows, strict=False)), *rows[len(given) :]]


def _start(call: Call, given: Any, row: tuple[int, ...]) -> Value | Array:
    """Return an initial state that the model gives."""
    if isinstance(given, Value):
        if given.row != row:
            raise call.refuse(f"its initial state has the row {list(given.row)}; expected {list(row)}")
        return call.as_float(given)
    constant = to_array(given)
    if constant.shape[1:] != row or np.any(constant != constant[:1]):
        raise call.refuse(
            f"its initial state is a constant of shape {list(constant.shape)}; expected one row of {list(row)}, the "
            "same for every stream",
            "Give every stream the same initial state, or compute it from an input without time axis.",
        )
    first: Array = constant[0].astype(np.float32)
    return first


def _given(call: Call) -> list[Any]:
    """Return the initial states of a call: values of the model, or tensors of its own."""
    more = [call.kwargs.get("initial_state"), call.args[1:2], call.values[1:]]
    return [one for one in keras.tree.flatten(more) if one is not None]


def _scanned(
    call: Call, x: Value, nested: Any, starts: list[Value | Array], mask: str | None
) -> tuple[Value, list[Value]]:
    """Run the cell at each place of axis 1; return the output, and the states behind the last place."""
    layer = call.layer
    scan = StepScan(call.graph, call.path)
    source = from_its_end(call, x) if layer.go_backwards else x
    with scan.body(call.walk):
        now = scan.place_of(source)
        before = [
            scan.state(f"{call.path}.{name}", start.row if isinstance(start, Value) else start.shape, "float32", start)
            for name, start in zip(state_names(layer.cell, nested), starts, strict=True)
        ]
        y, after = run_cell(call, layer.cell, now, keras.tree.pack_sequence_as(nested, before))
        if mask is not None:
            counts = call.op("Unsqueeze", scan.mask(mask) or "", call.graph.ints([1]))
            y, after = _hold_where_masked(call, counts, y, before, after)
        for state, value in zip(before, after, strict=True):
            scan.next_state(state, value.name)
    (made,), last = scan.emit([y.name])
    final = [value.like(name) for value, name in zip(before, last, strict=False)]
    if layer.return_sequences:
        return Value(made, (x.row[0], *y.row), y.dtype), final
    return Value(call.op("Gather", made, call.constant(-1, "int64"), axis=1), y.row, y.dtype), final


def _hold_where_masked(
    call: Call, counts: str, y: Value, before: list[Value], after: list[Value]
) -> tuple[Value, list[Value]]:
    """Keep the states and repeat the previous output where a timestep does not count, shape `(batch, 1)` bool.

    Keras takes the last cell's first state for the previous output, except in an unrolled layer.
    """
    layer = call.layer
    if any(len(value.row) != 1 for value in (y, *before)):
        raise call.refuse(
            "it has states of several axes and a mask, which Keras itself lines up with the wrong axes", "Mask outside."
        )
    held = [new.like(call.op("Where", counts, new, old)) for old, new in zip(before, after, strict=True)]
    if layer.unroll:
        previous = call.state("output", [size or 1 for size in y.row])
        result = y.like(call.op("Where", counts, y, previous))
        call.next_state(previous, result)
        return result, held
    cells = getattr(layer.cell, "cells", None)
    last = len(keras.tree.flatten(cells[-1].state_size)) if cells else len(before)
    kept = call.constant(0.0) if layer.zero_output_for_mask else before[-last]
    return y.like(call.op("Where", counts, y, kept)), held


# ---------------------------------------------------------------- wrappers and loops


_OF_LAST_AXIS = (keras.layers.Dense, keras.layers.Activation, keras.layers.Dropout)
"""Layers that do the same at each position, however many axes are in front."""


@rule("TimeDistributed")
def time_distributed(call: Call) -> list[Value]:
    """Run its layer on each place of axis 1, as rows of a batch."""
    layer, x = call.layer.layer, call.value
    function = getattr(layer, "activation", None)
    if type(layer) in _OF_LAST_AXIS and (function is None or is_activation(function)):
        return call.walk.visit(layer, f"{call.path}.", replace(x, mask=None))
    rows = x.like(
        call.op("Reshape", x, call.graph.ints([-1, *(call.size(x, axis) for axis in range(2, x.rank))])), row=x.row[1:]
    )
    results = call.walk.visit(layer, f"{call.path}.", rows)
    return [_apart(call, x, value) for value in results]


def _apart(call: Call, x: Value, value: Value) -> Value:
    """Return rows of a batch as the places of axis 1 that they were."""
    places = call.op("Shape", x, start=0, end=2)
    shape = call.op(
        "Concat", places, call.graph.ints([call.size(value, axis) for axis in range(1, value.rank)]), axis=0
    )
    name = call.op("Reshape", value, shape if value.row else places)
    return value.like(name, row=(x.row[0], *value.row))


@op_rule("Scan", "AssociativeScan", "WhileLoop", "ForiLoop")
def loop(call: Call) -> NoReturn:
    """Loops of `keras.ops`: they run a function over the whole sequence, which has no rule for one timestep."""
    raise call.refuse(
        "it runs a function of its own over a whole sequence, and nothing defines what one timestep of that is",
        "Let a recurrent layer run it: keras.layers.RNN(cell), with the function as the cell's `call`. Or put it into "
        "a layer of your own and define what one timestep is: stepwell.register_step_rule.",
    )
