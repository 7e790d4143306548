"""Windows over time: the timesteps that a convolution or pooling looks back on, kept as a state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import keras
import numpy as np

from model_export.keras.registry import Call, to_array
from model_export.keras.value import TimePadding, Value
from model_export.manifest import Array

_CAUSAL = (
    "Use padding='causal' (Conv1D), or put ZeroPadding1D((k - 1) * dilation, 0) in front and padding='valid'; over "
    "(time, frequency) ZeroPadding2D(((k - 1) * dilation, 0), ...)."
)


def check_over_time(call: Call, size: int, stride: int) -> None:
    """Refuse what has no causal form, whatever the padding.

    Args:
        call: The layer.
        size: Timesteps that one answer sees.
        stride: Timesteps from one answer to the next.

    Raises:
        RefusedModelError: It skips timesteps, looks ahead, or has time on another axis than 1.
    """
    layer = call.layer
    if stride != 1:
        raise call.refuse(
            f"strides={stride} skips timesteps", "A stream has one answer for each timestep: use strides=1 over time."
        )
    if size > 1 and layer.padding == "same":
        raise call.refuse(
            f"padding='same' over the time axis looks at timesteps that have not come yet (it sees {size} at once)",
            _CAUSAL,
        )
    if layer.data_format == "channels_first":
        raise call.refuse("data_format='channels_first' puts the channels where time belongs; expected 'channels_last'")


def window(call: Call, x: Value, span: int) -> Value:
    """Return the newest timesteps together, oldest first, and remember the ones to come back.

    Args:
        call: The layer.
        x: A value of each timestep.
        span: How many timesteps it looks back.

    Returns:
        A value of one timestep with row `(span + 1, *x.row)`. Its padding is that of the layer's result, which has as
        many timesteps less in front; where it lacks some of the stream's own, nothing can be made of it unless as many
        are put in front again.
    """
    front, back = (x.padding.front, x.padding.back) if x.padding else (0, 0)
    padding = moved(call, x, front - span, back)
    if padding and padding.front < 0 and padding.refusal is None:
        refusal = call.refuse(
            f"with padding={call.layer.padding!r} it looks at {span + 1} timesteps, and {front} are padded in front of "
            f"the first one; expected at least {span}, or it shortens the sequence",
            _CAUSAL,
        )
        padding = replace(padding, refusal=refusal)
    if span == 0:
        name = call.reshape(x, [1, *x.row])
    else:
        name = _with_past(call, x, span, x.padding.pad_value if x.padding else np.zeros(x.row))
    return x.like(name, row=(span + 1, *x.row), time=False, padding=padding)


def moved(call: Call, x: Value, front: int, back: int) -> TimePadding | None:
    """Return the padding of a layer's result: so many timesteps in front, each what the layer makes of the fill."""
    if not (front or back):
        return None
    if front < 0 and x.padding:
        return replace(x.padding, front=front, back=back, pad_value=np.zeros(()))
    if not front or not x.padding:
        return TimePadding(front, back, np.zeros(()))
    return TimePadding(front, back, _steady(call, x.padding))


def _steady(call: Call, margin: TimePadding) -> Array:
    """Return what an operation gives for the timesteps in front, one row; there are enough of them."""
    fills = np.broadcast_to(margin.pad_value, (1, margin.front, *margin.pad_value.shape))
    weights = [to_array(more).astype("float32") for more in call.args[1:]]
    result: Array = to_array(_function(call.layer)(fills.astype("float32"), *weights))[0, -1]
    return result


def _function(operation: Any) -> Callable[..., Any]:
    """Return what runs on numbers: Keras 3.15 exchanges two arguments in an operation of its own."""
    if type(operation).__name__ != "ConvTranspose":
        return cast("Callable[..., Any]", operation)
    names = ("strides", "padding", "output_padding", "data_format", "dilation_rate")
    return partial(keras.ops.conv_transpose, **{name: getattr(operation, name) for name in names})


def delay(call: Call, x: Value, steps: int, fill: Any) -> Value:
    """Return the value of some timesteps ago; `pad_value` before the stream was that long."""
    joined = _with_past(call, x, steps, fill)
    return x.like(call.op("Gather", joined, call.constant(0, "int64"), axis=1))


def put_in_front(call: Call, x: Value, rows: list[str], start: int) -> Value:
    """Return a value that is another one at some timesteps of the stream.

    Args:
        call: The layer.
        x: A value of each timestep.
        rows: A tensor for each of those timesteps, one row or `(batch, *row)`.
        start: How many timesteps come before the first of them.
    """
    name = x.name
    for place, row in enumerate(rows, start):
        is_here = call.op("Equal", call.position(), call.constant(place, "int64"))
        name = call.op("Where", call.reshape(is_here, [1] * len(x.row)), row, name)
    return replace(x, name=name)


def _with_past(call: Call, x: Value, span: int, fill: Array) -> str:
    """Return the last timesteps and this one, `(batch, span + 1, *row)`; they come back as a state."""
    past = call.state("past", (span, *x.row), x.dtype, fill)
    return joined_with(call, past, call.op("Unsqueeze", x.name, call.graph.ints([1])))


def joined_with(call: Call, past: Value, now: str, axis: int = 1) -> str:
    """Return a state's timesteps, oldest first, and one more; all but the oldest are what the state becomes."""
    joined, ints = call.op("Concat", past, now, axis=axis), call.graph.ints
    call.next_state(past, call.op("Slice", joined, ints([1]), ints([past.row[axis - 1] + 1]), ints([axis])))
    return joined


def resolve_padding(call: Call, x: Value, front: int, back: int, fill: Any) -> Value:
    """Return a value whose original was padded or cut over time.

    Args:
        call: What pads or cuts.
        x: The stream's own value.
        front: Timesteps that the original then has in front of the stream's first; negative: it lacks some.
        back: Timesteps behind its newest; negative: it lacks some, so its last timestep is an older one.
        fill: What those in front are, one row.
    """
    refusal = x.padding.refusal if x.padding else None
    if back < 0:
        x, front, back = delay(call, x, -back, fill), front + back, 0
    if not (front or back):
        return replace(x, padding=None)
    if front < 0 and refusal is None:
        refusal = call.refuse(
            f"it drops {-front} timestep(s), so the answers no longer belong to the timesteps that came",
            "A stream has one answer for each timestep: pad the sequence in front before it is cut, or put as many "
            "timesteps in front again.",
        )
    filled = np.broadcast_to(np.asarray(fill), x.row)
    return replace(x, padding=TimePadding(front, back, filled, refusal if front < 0 else None))
