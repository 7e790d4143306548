"""Steps a layer of one's own that mixes timesteps: it runs over all that the model declares, at each timestep again.

Those to come are zeros, so that is right for a layer that is causal. It is slow: a step rule makes it fast.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import numpy as np

from model_export.keras.registry import Call, to_array
from model_export.keras.value import Value
from model_export.manifest import Array


def can_recompute(call: Call) -> bool:
    """Return whether a layer may run over the whole sequence at each timestep.

    The model has to declare its number of timesteps, and the layer has to be causal: other values in later timesteps
    must leave the answers of earlier ones as they are.
    """
    length = call.graph.length
    values = call.operands
    if not isinstance(call.layer, keras.Layer) or not length or length < 2:
        return False
    if any(value.padding or value.deferred or not value.time for value in values) or call.mask is not None:
        return False
    try:
        return _is_causal(call, values, length)
    except Exception:  # noqa: BLE001  # whatever the reason, the layer does not run by itself
        return False


def recompute(call: Call, trace: Callable[[Call], list[Value]]) -> list[Value]:
    """Run a layer over the timesteps so far and give the answer of the newest one.

    Args:
        call: The layer, for which `can_recompute` is true.
        trace: Emits a call of the layer, all of whose values have the timesteps as an axis of their rows.
    """
    length = call.graph.length
    assert length is not None
    call.graph.bounded = True
    place = call.op("Unsqueeze", call.position(), call.graph.ints([1]))
    is_here = call.op("Equal", place, call.constant(np.arange(length), "int64"))
    results = trace(call.changed(lambda value: _with_past(call, value, is_here, length)))
    last = call.op("Min", place, call.constant(length - 1, "int64"))
    has_place = call.op("Less", place, call.constant(length, "int64"))
    return [_newest(call, value, last, has_place) for value in results]


def _is_causal(call: Call, values: list[Value], length: int) -> bool:
    rng = np.random.default_rng(0)
    arrays = [_draw(rng, value, length) for value in values]
    answers = _answers(call, arrays)
    for cut in {1, length // 2, length - 1}:
        others = [np.concatenate([array[:, :cut], _draw(rng, v, length)[:, cut:]], axis=1) for array, v in
                  zip(arrays, values, strict=True)]  # fmt: skip
        for answer, other in zip(answers, _answers(call, others), strict=True):
            timed = answer.ndim > 1 and answer.shape[1] == length and answer.dtype.kind == "f"
            if not timed or not np.allclose(answer[:, :cut], other[:, :cut], rtol=1e-4, atol=1e-5):
                return False
    return True


def _draw(rng: np.random.Generator, value: Value, length: int) -> Array:
    shape = (1, length, *value.row)
    if np.dtype(value.dtype).kind == "f":
        return rng.standard_normal(shape).astype(value.dtype)
    return rng.integers(0, 2, shape).astype(value.dtype)


def _answers(call: Call, arrays: list[Array]) -> list[Array]:
    given = iter(arrays)
    inner = call.changed(lambda _: next(given))
    return [to_array(y) for y in keras.tree.flatten(call.layer(*inner.args, **inner.kwargs))]


def _with_past(call: Call, value: Value, is_here: str, length: int) -> Value:
    """Return all timesteps so far, each in its place."""
    past = call.state("past", (length, *value.row), value.dtype)
    here = call.reshape(is_here, [length, *(1 for _ in value.row)])
    now = call.op("Where", here, call.op("Unsqueeze", value, call.graph.ints([1])), past)
    call.next_state(past, now)
    return past.like(now)


def _newest(call: Call, value: Value, last: str, has_place: str) -> Value:
    row = value.row[1:]
    newest = call.op("GatherND", value, last, batch_dims=1)
    known = call.reshape(has_place, [1 for _ in row])
    return Value(call.op("Where", known, newest, call.constant(np.nan)), row, value.dtype, time=True)
