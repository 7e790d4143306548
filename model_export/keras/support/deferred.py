"""Values of which a part is deferred: a weight that a sum over time applies, or another order of axes.

A softmax over time changes for all timesteps with each new one. Weighed by it, a value of each timestep has an answer
for the timesteps so far only once it is summed over them; until then the weight goes along with the value. So do axes
that a model puts elsewhere for a while, time among them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from model_export.keras.registry import Call, Rule, handles, listed
from model_export.keras.support.running_reductions import running
from model_export.keras.value import DeferredSum, Value

SUM_IT = (
    "Sum over time what it weighs (attention pooling); or use a recurrent layer over time, or work along the feature "
    "axes."
)
_SMALLEST = -3e38
"""Below every score; still a number, so that no difference of two is NaN."""


def apply(call: Call, rule: Rule) -> list[Any]:
    """Run a rule on values of which some are deferred.

    Raises:
        RefusedModelError: The rule needs the value as it will be; names the layer that made it pending.
    """
    values = call.operands
    x = next(value for value in values if value.deferred)
    assert x.deferred is not None
    if handles(rule, "deferred"):
        return listed(rule(call))
    if x.deferred.order or any(value.padding for value in values):
        raise x.deferred.refusal
    if handles(rule, "shape") and len(values) == 1:
        weight = x.deferred.weight
        assert weight is not None
        results = listed(rule(call.changed(lambda _: plain(x))))
        weights = listed(rule(call.changed(lambda _: weight)))
        return [replace(y, deferred=_moved(x.deferred, y, plain(its))) for y, its in zip(results, weights, strict=True)]
    if "Multiply" in {cls.__name__ for cls in type(call.layer).__mro__} and sum(bool(v.deferred) for v in values) == 1:
        (y,) = listed(rule(call.changed(lambda v: plain(x) if v is x else v)))
        return [replace(y, deferred=x.deferred)]
    raise x.deferred.refusal


def softmax_over_time(call: Call, x: Value) -> Value:
    """Return the weights of a softmax over time: ones, with their scores deferred."""
    refusal = call.refuse("it works along the time axis, so it needs timesteps that have not come yet", SUM_IT)
    ones = call.constant(np.ones((1, *x.row)))
    return x.like(ones, deferred=DeferredSum(refusal, weight=plain(x), kind="softmax"))


def deferred_scale(call: Call, kind: str, operands: list[Any]) -> Value | None:
    """Return a value of each timestep times or by an answer for the sequence; None: that is not what the operands are.

    Args:
        call: The product or quotient.
        kind: `Mul` or `Div`.
        operands: Two.
    """
    values = [v for v in operands if isinstance(v, Value)]
    timed, whole = [v for v in values if v.time], [v for v in values if not v.time]
    if not (len(timed) == len(whole) == 1 and timed[0].rank == whole[0].rank) or values[0].padding or values[1].padding:
        return None
    (x,), (answer,) = timed, whole
    if answer.row[:1] != (1,) or call.graph.is_static(answer.name) or (kind == "Div" and operands[0] is answer):
        return None
    if np.broadcast_shapes(x.row, answer.row[1:]) != x.row:
        return None
    refusal = call.refuse(
        "it joins each timestep with an answer for the whole sequence, which needs timesteps that have not come yet",
        "Sum over time what it weighs, join the answer with x[:, -1], or use a recurrent layer over time.",
    )
    answer = call.as_float(answer)
    name = call.op("Squeeze", answer.name, call.graph.ints([1]))
    weight = answer.like(name, row=answer.row[1:], time=True)
    x = call.as_float(x)
    return x.like(x.name, deferred=DeferredSum(refusal, weight=weight, kind=kind))


def summed_over_time(call: Call, x: Value) -> Value:
    """Return the sum of all timesteps so far, as a value of the sequence; it applies a deferred weight."""
    pending, x = x.deferred, plain(x)
    if pending is None or pending.weight is None:
        return running(call, "Sum", x)
    weight = pending.weight
    row = tuple(int(n) for n in np.broadcast_shapes(x.row, weight.row))
    if pending.kind != "softmax":
        total = running(call, "Sum", x)
        return total.like(call.op(pending.kind, total, weight), row=row)
    most, total, mean = (
        call.state("most", weight.row, init=np.asarray(_SMALLEST)), call.state("total", weight.row),
        call.state("mean", row),
    )  # fmt: skip
    highest = call.op("Max", most, weight)
    now = call.op("Exp", call.op("Sub", weight, highest))
    before = call.op("Mul", total, call.op("Exp", call.op("Sub", most, highest)))
    both = call.op("Add", before, now)
    result = call.op("Add", mean, call.op("Mul", call.op("Sub", x, mean), call.op("Div", now, both)))
    for state, value in ((most, highest), (total, both), (mean, result)):
        call.next_state(state, value)
    return x.like(result, row=row, time=False)


def reordered(call: Call, x: Value, perm: list[int], refusal: Exception) -> Value:
    """Return a value with the original's axes in another order, batch and time in front or not.

    Args:
        call: The transposition.
        x: Its input.
        perm: Which axis of the input each axis of the result is.
        refusal: What to raise where nothing puts batch and time back.
    """
    order = [read_order(x)[axis] for axis in perm]
    fixed = 1 + x.time
    weight = x.deferred.weight if x.deferred else None
    kind = x.deferred.kind if x.deferred else ""
    refusal = x.deferred.refusal if x.deferred and x.deferred.weight else refusal
    if order[:fixed] != list(range(fixed)):
        return replace(plain(x), mask=None, deferred=DeferredSum(refusal, weight=weight, kind=kind, order=tuple(order)))
    y = _transposed(call, plain(x), order)
    if weight is None:
        return y
    return replace(y, deferred=DeferredSum(refusal, weight=_transposed(call, weight, order), kind=kind))


def _transposed(call: Call, x: Value, order: list[int]) -> Value:
    perm = [0, *(axis - x.time for axis in order[1 + x.time :])]
    row = tuple(x.row[axis - 1] for axis in perm[1:])
    return x.like(x.name if perm == sorted(perm) else call.op("Transpose", x.name, perm=perm), row=row)


def read_order(x: Value) -> tuple[int, ...]:
    """Return for each axis of the original which of `(batch, time, *row)` it is."""
    return (x.deferred.order if x.deferred else ()) or tuple(range(x.rank))


def plain(x: Value) -> Value:
    """Return a value without what is deferred."""
    return replace(x, deferred=None)


def _moved(pending: DeferredSum, y: Value, weight: Value) -> DeferredSum:
    return replace(pending, weight=weight, order=y.deferred.order if y.deferred else ())
