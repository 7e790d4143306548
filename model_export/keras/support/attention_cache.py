"""What attention over time looks back on: which timesteps, and the states that keep them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from model_export.keras.registry import Call
from model_export.keras.support.broadcast import constant_beside
from model_export.keras.support.window import joined_with
from model_export.keras.value import Value
from model_export.manifest import Array

NEVER = -1e9
"""Added to the score of what may not be looked at: its weight is exactly zero then."""


@dataclass(frozen=True, slots=True)
class AttentionCache:
    """The newest timesteps, this one included, oldest first.

    Attributes:
        span: How many.
        table: For each timestep of the original which of them it sees, `(T, span)` bool; None: all that there are.
    """

    span: int
    table: Array | None = None

    def append(self, call: Call, name: str, new: str, shape: tuple[int, int]) -> str:
        """Return this and the past ones, `(batch, heads, span, width)`; they come back as a state.

        Args:
            call: The layer.
            name: The state's name behind the layer's.
            new: This timestep's, `(batch, heads, 1, width)`.
            shape: Heads and width.
        """
        if self.span == 1:
            return new
        heads, width = shape
        return joined_with(call, call.state(name, (heads, self.span - 1, width)), new, axis=2)

    def bias(self, call: Call, counts: str | None = None) -> str:
        """Return what is added to the scores, shape `(batch, 1, 1, span)`: nothing stands before the first timestep.

        Args:
            call: The layer.
            counts: Whether this timestep may be looked at, shape `(batch,)` bool; None: always.
        """
        if self.table is not None:
            beside = Value("", (self.span,), time=True)
            bias = constant_beside(call, beside, np.where(self.table, 0, NEVER)).name
        else:
            age = call.constant(np.arange(self.span)[::-1], "int64")
            position = call.op("Unsqueeze", call.position(), call.graph.ints([1]))
            there = call.op("GreaterOrEqual", position, age)
            bias = call.op("Where", there, call.constant(0.0), call.constant(NEVER))
        if counts is not None:
            bias = call.op("Add", bias, self._without_masked(call, counts))
        return call.op("Unsqueeze", bias, call.graph.ints([1, 2]))

    def _without_masked(self, call: Call, counts: str) -> str:
        now = call.op("Unsqueeze", call.cast(counts, "float32"), call.graph.ints([1]))
        joined = joined_with(call, call.state("counts", (self.span - 1,)), now)
        return call.op("Mul", call.op("Sub", joined, call.constant(1.0)), call.constant(-NEVER))


def attention_cache(
    call: Call, query: Value, key: Value, mask: Array | None, sliding: int | None, *, causal: bool
) -> AttentionCache:
    """Return what a layer looks back on over time.

    Args:
        call: The layer.
        query: The queries. Without a time axis it stands for the timesteps so far, for example a last state.
        key: What is looked at: the timesteps.
        mask: A constant mask, `(queries, keys)` bool.
        sliding: Look at no more than so many timesteps.
        causal: Look at no timestep that is yet to come.

    Raises:
        RefusedModelError: It looks at timesteps that have not come yet, or at more and more of them.
    """
    length = call.graph.length
    if len(key.row) != 1:
        raise call.refuse(f"it attends over time in rows {list(key.row)}; expected one axis of features")
    if query.time and causal and sliding and mask is None:
        return AttentionCache(sliding)
    if query.time and mask is None and not causal:
        raise call.refuse(
            "it attends over the time axis without a causal mask, so every answer needs timesteps that have not "
            "come yet",
            "Call it with use_causal_mask=True and train it so.",
        )
    if length is None:
        return _endless(call, query, mask, sliding, causal=causal)
    call.graph.bounded = True
    if not query.time:
        if causal or mask is not None or sliding:
            raise call.refuse("its query has no time axis, so a mask over time means something else for each length")
        return AttentionCache(length)
    return _cache_of_table(_seen(call, length, mask, sliding, causal=causal))


def _endless(call: Call, query: Value, mask: Array | None, sliding: int | None, *, causal: bool) -> AttentionCache:
    """Return what is looked at for any number of timesteps: so many of the last ones, always.

    A constant mask is one for `tracing.TRIAL` timesteps here.
    """
    if query.time and mask is not None:
        past = _cache_of_table(_seen(call, len(mask), mask, sliding, causal=causal))
        if past.table is None and past.span < len(mask):
            return past
    raise call.refuse(
        "it attends to every timestep so far and the model declares no one number of timesteps, so its state would "
        "grow without end",
        "Declare the number: keras.Input((T, ...)); or give the layer sliding_window=N, where this Keras has it.",
    )


def _seen(call: Call, length: int, mask: Array | None, sliding: int | None, *, causal: bool) -> Array:
    """Return who sees whom, `(T, T)` bool."""
    seen = np.ones((length, length), bool)
    if mask is not None:
        if mask.shape != seen.shape:
            raise call.refuse(
                f"its attention_mask has shape {list(mask.shape)}; expected {list(seen.shape)}, one row and one column "
                "for each timestep"
            )
        seen &= mask
    lag = np.subtract.outer(np.arange(length), np.arange(length))
    if causal:
        seen &= lag >= 0
    if sliding:
        seen &= np.abs(lag) < sliding
    if (early := np.argwhere(seen & (lag < 0))).size:
        t, s = early[0] + 1
        raise call.refuse(
            f"its attention_mask is not causal: timestep {t} looks at timestep {s}, which has not come yet",
            "Use use_causal_mask=True and train it so.",
        )
    if not seen.any(axis=1).all():
        raise call.refuse(f"its attention_mask lets timestep {int(np.argmin(seen.any(axis=1))) + 1} look at nothing")
    return seen


def _cache_of_table(seen: Array) -> AttentionCache:
    length = len(seen)
    times, others = np.nonzero(seen)
    span = int(np.max(times - others)) + 1
    columns = np.arange(length)[:, None] - np.arange(span)[::-1]  # the timestep in each place of the window
    table = (columns >= 0) & np.take_along_axis(seen, np.maximum(columns, 0), axis=1)
    return AttentionCache(span, None if (table == (columns >= 0)).all() else table)
