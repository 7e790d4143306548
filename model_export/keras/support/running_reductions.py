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
    spec = call.graph.state(f"{call.path}.so_far", x.row, x.dtype, init=np.full(x.row, start))
    total = call.op(_JOIN[kind], spec.input, x.name)
    call.graph.next_state(spec, total)
    return x.like(total)


def _mean(call: Call, x: Value, mask: str | None) -> Value:
    """Move the mean so far towards the new timestep: a sum would lose digits in a long stream."""
    mean = call.graph.state(f"{call.path}.mean", x.row)
    count = call.graph.state(f"{call.path}.count", (1,))
    one = call.constant(1.0)
    if mask is not None:
        one = call.op("Unsqueeze", call.graph.cast(mask, "float32", at=call.path), call.graph.ints([1]))
    counted = call.op("Add", count.input, one)
    weight = call.op("Div", one, call.op("Max", counted, call.constant(1.0)))
    if len(x.row) != 1:
        weight = call.graph.reshape(weight, [1] * len(x.row), at=call.path)
    step = call.op("Mul", call.op("Sub", x.name, mean.input), weight)
    result = call.op("Add", mean.input, step)
    call.graph.next_state(mean, result)
    call.graph.next_state(count, counted)
    if mask is not None:  # the mean of nothing is NaN, as in Keras; the state must not become it
        some = call.graph.reshape(call.op("Greater", counted, call.constant(0.0)), [1] * len(x.row), at=call.path)
        result = call.op("Where", some, result, call.constant(np.nan))
        call.walk.note_first()
    return x.like(result, time=False)
