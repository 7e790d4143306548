"""Statistics of the timesteps so far: what a reduction over time gives at every step of a stream."""

from __future__ import annotations

import numpy as np

from model_export.keras.registry import Call
from model_export.keras.value import Value

_JOIN = {"Sum": "Add", "Prod": "Mul", "Max": "Max", "Min": "Min"}
_START = {"Sum": 0.0, "Prod": 1.0, "Max": -np.inf, "Min": np.inf}


def running(call: Call, kind: str, x: Value, mask: str | None = None) -> Value:
    """Return the sum, product, maximum, minimum or mean of all timesteps so far, as a value of the sequence.

    Args:
        call: The layer or operation.
        kind: `Sum`, `Prod`, `Max`, `Min` or `Mean`.
        x: A value of each timestep.
        mask: Which timesteps count, for a mean; None: all.
    """
    if kind == "Mean":
        return _mean(call, x, mask)
    total = accumulated(call, kind, x)
    return total.like(total.name, time=False)


def accumulated(call: Call, kind: str, x: Value) -> Value:
    """Return the sum, product, maximum or minimum so far, as a value of each timestep."""
    extreme = {"Max": np.iinfo, "Min": np.iinfo}.get(kind) if np.dtype(x.dtype).kind in "iu" else None
    start: float = _START[kind]
    if extreme:
        start = extreme(x.dtype).min if kind == "Max" else extreme(x.dtype).max
    state = call.state("so_far", x.row, x.dtype, np.full(x.row, start))
    total = x.like(call.op(_JOIN[kind], state, x))
    call.next_state(state, total)
    return total


def _mean(call: Call, x: Value, mask: str | None) -> Value:
    """Move the mean so far towards the new timestep: a sum would lose digits in a long stream."""
    mean, count = call.state("mean", x.row), call.state("count", (1,))
    one = call.constant(1.0)
    if mask is not None:
        one = call.op("Unsqueeze", call.cast(mask, "float32"), call.graph.ints([1]))
    counted = call.op("Add", count, one)
    weight = call.op("Div", one, call.op("Max", counted, call.constant(1.0)))
    if len(x.row) != 1:
        weight = call.reshape(weight, [1] * len(x.row))
    result = call.op("Add", mean, call.op("Mul", call.op("Sub", x, mean), weight))
    call.next_state(mean, result)
    call.next_state(count, counted)
    if mask is not None:  # the mean of nothing is NaN, as in Keras; the state must not become it
        some = call.reshape(call.op("Greater", counted, call.constant(0.0)), [1] * len(x.row))
        result = call.op("Where", some, result, call.constant(np.nan))
        call.graph.note_first()
    return x.like(result, time=False)
