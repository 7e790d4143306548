"""The rare conditions: each a model part that does something else for values, lengths or rows that seldom occur.

All are written in terms of `Ops`, so that each front end has each of them. Some cannot be stepped at all (a gain by the
largest value of the whole sequence): these have to be refused. The others have to be refused, called weak, or right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from campaign.exporter.ops import Ops, SequenceOps, Setting, Tensor

# ---------------------------------------------------------------- ways to write a condition


def exceeds(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    """Return 1 where a value is above the limit, else 0, written in one of several ways."""
    ways: Sequence[Callable[[], Tensor]] = (
        lambda: ops.greater(a, at.limit),
        lambda: ops.relu(ops.sign(ops.sub(a, at.limit))),
        lambda: ops.clip(ops.mul(ops.sub(a, at.limit), 1e4), 0.0, 1.0),
        lambda: ops.clip(ops.floor(ops.div(a, at.limit)), 0.0, 1.0),
        lambda: ops.sign(ops.sub(ops.maximum(a, at.limit), at.limit)),
        lambda: ops.where(ops.greater(a, at.limit), ops.add(ops.mul(a, 0.0), 1.0), ops.mul(a, 0.0)),
    )
    return ways[at.how % len(ways)]()


def is_beyond(n: Any, at: Setting) -> Any:
    """Whether a number of timesteps, or a place, is beyond the period, written in one of several ways."""
    period = at.period
    ways: Sequence[Callable[[], Any]] = (
        lambda: n > period,
        lambda: n * n > period * period,
        lambda: math.sqrt(n) > math.sqrt(period),
        lambda: n // (period + 1) > 0,
        lambda: int(n / (period + 1)) > 0,
        lambda: len(range(period, n)) > 0,
        lambda: math.log(n + 1) > math.log(period + 1),
        lambda: max(n - period, 0) > 0,
        lambda: n**0.5 > period**0.5,
        lambda: len(bin(n)) > len(bin(period)),
        lambda: math.floor(n / period - 1) >= 1,
        lambda: (n - period) / 7 > 0,
    )
    return ways[at.how % len(ways)]()


# ---------------------------------------------------------------- over sequences


def _latch(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.add(a, ops.running_max(exceeds(ops, a, at)))


def _latch_where(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.where(ops.running_max(ops.greater(a, at.limit)), ops.mul(a, -1.0), a)


def _running_gain(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.div(a, ops.maximum(ops.running_max(ops.abs(a)), at.limit))


def _sequence_gain(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.div(a, ops.maximum(ops.time_max(ops.abs(a)), at.limit))


def _rare_mean(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.sub(a, ops.time_mean(exceeds(ops, a, at)))


def _peek(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.add(a, exceeds(ops, ops.early(a, 1 + at.how % 3), at))


def _late_spike(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.add(a, exceeds(ops, ops.late(a, 1 + at.how), at))


def _long_lag(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.add(a, ops.mul(ops.late(a, at.period), 0.5))


def _counter(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    left = ops.mod(ops.count(a), float(at.period))
    return ops.add(a, ops.sub(1.0, ops.clip(left, 0.0, 1.0)))


def _after_a_while(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    is_late = ops.greater(ops.count(a), float(at.period))
    return ops.mul(a, ops.add(is_late, 1.0))


def _rare_sum(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.add(a, ops.running_sum(exceeds(ops, a, at)))


def _by_length(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.if_longer(a, at, lambda value: ops.mul(value, 2.0))


def _by_value(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.if_above(a, at.limit, at.how, lambda value: ops.mul(value, 2.0))


def _other_rows_gain(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.div(a, ops.maximum(ops.row_max(ops.abs(a)), at.limit))


def _other_rows_alarm(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.add(a, exceeds(ops, ops.row_max(a), at))


def _first_alarm(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.add(a, exceeds(ops, ops.first(a), at))


def _first_gain(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.div(a, ops.maximum(ops.abs(ops.first(a)), at.limit))


def _first_past(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    steps = 1 + at.how % 4
    is_there = ops.greater(ops.count(a), float(steps))
    before = ops.relu(ops.sub(ops.first(a), at.limit))
    return ops.add(a, ops.where(is_there, ops.late(a, steps), before))


def _selected(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.mul(a, ops.add(ops.how_many(a, at.limit), 1.0))


def _window(ops: SequenceOps, a: Tensor, at: Setting) -> Tensor:
    return ops.decaying_attention(a, (0.5, 2.0, 4.0, 8.0)[at.how % 4])


# ---------------------------------------------------------------- of one timestep


def _saturation(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.clip(a, -at.limit, at.limit)


def _dead_zone(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.add(ops.mul(a, 0.1), ops.relu(ops.sub(a, at.limit)))


def _jump(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.where(exceeds(ops, a, at), ops.mul(a, -1.0), a)


def _not_a_number(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.sqrt(ops.sub(at.limit, a))


def _ties(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.add(a, ops.largest_place(ops.round(a)))


def _small(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.log(ops.add(ops.abs(ops.mul(a, 1e-6)), 1.0))


def _small_log(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.log1p(ops.abs(ops.mul(a, 1e-6)))


def _small_power(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.expm1(ops.clip(ops.mul(a, 1e-6), -1.0, 1.0))


def _tail(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.tail(ops.clip(a, -9.0, 9.0))


def _quotient(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.floor_quotient(a, (0.1, 0.3, 3.0)[at.how % 3])


def _tiny_quotient(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.div(a, ops.add(ops.abs(a), 1e-7))


def _remainder(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.mod(a, at.limit)


def _largest_feature(ops: Ops, a: Tensor, at: Setting) -> Tensor:
    return ops.div(a, ops.maximum(ops.feature_max(ops.abs(a)), at.limit))


Part = Callable[[Any, Tensor, Setting], Tensor]

SEQUENCE: Final[Mapping[str, Part]] = {
    "latch": _latch,
    "latched sign": _latch_where,
    "running gain": _running_gain,
    "gain of the sequence": _sequence_gain,
    "mean of alarms": _rare_mean,
    "next value": _peek,
    "late alarm": _late_spike,
    "long lag": _long_lag,
    "counter": _counter,
    "mode after a while": _after_a_while,
    "count of alarms": _rare_sum,
    "mode by length": _by_length,
    "mode by value": _by_value,
    "gain of other rows": _other_rows_gain,
    "alarm of other rows": _other_rows_alarm,
    "alarm by the first value": _first_alarm,
    "gain by the first value": _first_gain,
    "past by the first value": _first_past,
    "size of what is selected": _selected,
    "decaying attention": _window,
}
"""Parts that look along time or along rows."""

OTHER_ROWS: Final = ("gain of other rows", "alarm of other rows")
"""Those of them that look at one timestep of all rows."""

STEPWISE: Final[Mapping[str, Part]] = {
    "saturation": _saturation,
    "dead zone": _dead_zone,
    "jump": _jump,
    "not a number": _not_a_number,
    "ties": _ties,
    "small numbers": _small,
    "small logarithm": _small_log,
    "small power": _small_power,
    "tail of the error function": _tail,
    "floor quotient": _quotient,
    "tiny quotient": _tiny_quotient,
    "remainder": _remainder,
    "gain of features": _largest_feature,
}
"""Parts that look at one timestep of one row."""


# ---------------------------------------------------------------- inside a recurrence


@dataclass(frozen=True, slots=True)
class Cell:
    """A recurrence written as one step: `(ops, x, state, setting)` to `(answer, next state)`, all (batch, features)."""

    step: Callable[[Ops, Tensor, Tensor, Setting], tuple[Tensor, Tensor]]
    is_rare: bool = True


def _cell_latch(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.maximum(s, exceeds(ops, x, at))
    return ops.add(x, after), after


def _cell_alarm(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.where(exceeds(ops, x, at), ops.add(ops.mul(s, 0.0), 1.0), ops.mul(s, 0.999))
    return ops.add(x, after), after


def _cell_gain(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.maximum(s, ops.abs(x))
    return ops.div(x, ops.maximum(after, at.limit)), after


def _cell_counter(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    counted = ops.add(s, 1.0)
    after = ops.where(ops.greater(counted, at.period - 0.5), ops.mul(s, 0.0), counted)
    return ops.add(x, ops.sub(1.0, ops.clip(after, 0.0, 1.0))), after


def _cell_modulo(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.mod(ops.add(s, 1.0), float(at.period))
    return ops.add(x, ops.sub(1.0, ops.clip(after, 0.0, 1.0))), after


def _cell_reset(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    moved = ops.add(ops.mul(s, 0.9), ops.mul(x, 0.1))
    after = ops.where(exceeds(ops, x, at), ops.mul(s, 0.0), moved)
    return after, after


def _cell_saturation(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.clip(ops.add(ops.mul(s, 0.5), x), -at.limit, at.limit)
    return after, after


def _cell_dose(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.add(s, ops.relu(ops.sub(x, at.limit)))
    return ops.add(x, after), after


def _cell_age(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.add(s, 1.0)
    return ops.mul(x, ops.add(ops.greater(after, float(at.period)), 1.0)), after


def _cell_mean(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.add(ops.mul(s, 0.9), ops.mul(x, 0.1))
    return ops.sub(x, after), after


def _cell_tanh(ops: Ops, x: Tensor, s: Tensor, at: Setting) -> tuple[Tensor, Tensor]:
    after = ops.tanh(ops.add(ops.mul(s, 0.6), ops.mul(x, 0.7)))
    return after, after


CELLS: Final[Mapping[str, Cell]] = {
    "cell with a latch": Cell(_cell_latch),
    "cell with a fading alarm": Cell(_cell_alarm),
    "cell with a running gain": Cell(_cell_gain),
    "cell with a counter": Cell(_cell_counter),
    "cell with a remainder": Cell(_cell_modulo),
    "cell with a reset": Cell(_cell_reset),
    "cell with a saturation": Cell(_cell_saturation),
    "cell with a dose": Cell(_cell_dose),
    "cell with an age": Cell(_cell_age),
    "moving mean": Cell(_cell_mean, is_rare=False),
    "tanh cell": Cell(_cell_tanh, is_rare=False),
}
