"""Compares the step graph with the original on driven sequences, and at lengths that either may depend on.

Such sequences have values of any size, so each timestep is held to the size of its own answers. Where a difference is
larger, both run again with inputs that are changed in their last digits: what that changes in their answers is
rounding, and nothing else is allowed. Inputs next to 0 change nothing in what they are added to; there a smooth
function is a line, `f(2x) - 2 f(x) + f(0)` is 0, and what it is instead is rounding. Where the step graph has no number
and the original has one, as by an exponential that overflows, nothing is compared: the service refuses such an answer,
so it is not silent, and the report has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Array
from stepwell_export.verify.reference import PrefixAnswers, ReferenceModel, run_reference
from stepwell_export.verify.tolerance import Tolerance, difference

_NUDGE = 2.0**-22  # relative; two units in the last place of float32
_NUDGES = 3
_LOOSER = 10.0
"""Times what is allowed of usual data: what decides wrongly is off by far more."""

_NOTHING = 1e-12
"""In parts of the usual size: numbers below are as good as 0, and at the end of what a float can hold."""

EXTREME = 1e4
"""Inputs that are larger than so many times the usual ones may be beyond what a model is right for."""

_SATURATED = 20
"""The same for outputs of whole numbers: where activations are at their limits, which of several equal numbers is the
largest is a matter of rounding."""

_LAST_PLACES = 4.0
"""Units in the last place of the usual answers, for rows whose inputs are not next to 0."""

_TINY = 1e-4
"""A function is a line between 0 and twice this, as far as its answers have digits."""

_ROUNDING = 16.0
"""What is allowed, in parts of what a change of the inputs in their last digits makes: a model rounds many times."""


@dataclass(frozen=True, slots=True)
class Driven:
    """A batch of driven sequences on which the original gives numbers.

    Attributes:
        data: The sequences; a row without an answer is replaced by another one.
        want: The original's answers to these.
    """

    data: dict[str, Array]
    want: dict[str, PrefixAnswers]

    def without(self, rows: Array) -> Driven | None:
        """Return these sequences with some rows replaced by another one; None: all would be."""
        if rows.all():
            return None
        kept = np.where(rows, int(np.argmin(rows)), np.arange(len(rows)))
        return Driven(
            {name: array[kept] for name, array in self.data.items()},
            {name: PrefixAnswers(answers.steps, answers.values[kept]) for name, answers in self.want.items()},
        )


def answered(original: ReferenceModel, data: Mapping[str, Array], judged: list[str]) -> Driven | None:
    """Run the original; None: it does not take these values, or has no number for any row."""
    with np.errstate(all="ignore"):
        try:
            want = run_reference(original, data, judged)
        except StepwellError:
            return None
    lost = np.zeros(len(next(iter(data.values()))), bool)
    for answers in want.values():
        if answers.values.dtype.kind == "f":
            lost |= ~np.isfinite(answers.values).all(axis=tuple(range(1, answers.values.ndim)))
    return Driven(dict(data), want).without(lost)


def beyond_rounding(  # noqa: PLR0917  # both, the data, and what is allowed
    original: ReferenceModel,
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    driven: Driven,
    tolerance: Tolerance,
    usual: Mapping[str, float],
    sizes: Array,
) -> dict[str, Difference]:
    """Compare the step graph with the original on driven sequences.

    Args:
        original: The original.
        run: Runs the step graph; its answers have shape `(rows, T, *shape)`.
        driven: The sequences, and the original's answers.
        tolerance: What is allowed of usual data.
        usual: By output, the largest value on usual data.
        sizes: The largest input of each row, in parts of the largest usual one.
    """
    got = run(driven.data)
    differences: dict[str, Difference] = {}
    for name, answers in driven.want.items():
        mine = _at(got[name], answers)
        if mine.size != answers.values.size:  # a head on the last timesteps gives fewer rows where there are fewer
            continue
        values = answers.values.reshape(mine.shape)
        off = difference(mine, values)
        is_lost = np.zeros(off.shape, bool) if mine.dtype.kind != "f" else ~np.isfinite(mine) & np.isfinite(values)
        lost = np.asarray(is_lost.any(axis=tuple(range(1, off.ndim))))
        bad = _beyond(off, values, tolerance, usual[name])
        bad[lost] = False
        differences[name] = Difference(mine, values, off, bad, lost)
    if any(compared.bad.any() for compared in differences.values()):
        jitter = _jitter(lambda data: _of(run_reference(original, data, list(driven.want))), driven)
        own = _jitter(lambda data: {name: _at(run(data)[name], driven.want[name]) for name in differences}, driven)
        tiny = _tiny_rows(driven.data)
        for name, compared in differences.items():
            allowed = _ROUNDING * np.maximum(jitter[name].reshape(own[name].shape), own[name])
            if compared.want.dtype.kind == "f":  # an activation near its limit is as exact as its largest value
                last = _LAST_PLACES * float(np.finfo(compared.want.dtype).eps) * usual[name]
                allowed = np.maximum(allowed, np.where(tiny, 0.0, last).reshape(-1, *[1] * (allowed.ndim - 1)))
            bad = compared.bad & ~(compared.off <= allowed)
            is_far = sizes > (EXTREME if compared.want.dtype.kind == "f" else _SATURATED)
            far = is_far & bad.any(axis=tuple(range(1, bad.ndim)))
            bad[far] = False
            differences[name] = replace(compared, bad=bad, excused=compared.excused | far)
    return differences


@dataclass(frozen=True, slots=True)
class Difference:
    """How an output of the step graph differs from the original's on driven sequences.

    Attributes:
        got: The step graph's values, shape `(rows, timesteps, *shape)`.
        want: The original's.
        off: The absolute differences.
        bad: Where they are larger than rounding makes them.
        excused: Rows that count as not compared: the step graph has no number in them, or they differ and are so
            extreme that the original itself does something else there, as where scores are larger than what masks them.
    """

    got: Array
    want: Array
    off: Array
    bad: Array
    excused: Array


def _at(values: Array, answers: PrefixAnswers) -> Array:
    return values[:, [step - 1 for step in answers.steps]]


def _of(answers: Mapping[str, PrefixAnswers]) -> dict[str, Array]:
    return {name: answer.values for name, answer in answers.items()}


def _beyond(off: Array, values: Array, tolerance: Tolerance, usual: float) -> Array:
    if values.dtype.kind != "f":
        return tolerance.beyond(off, values)
    sizes = np.abs(values.astype(np.float64))
    rest = tuple(range(2, values.ndim))
    each = sizes.max(axis=rest, keepdims=True, initial=0.0)  # of the timestep
    whole = sizes.max(axis=tuple(range(1, values.ndim)), keepdims=True, initial=0.0)  # of the row
    size = np.maximum(each, np.clip(whole, _NOTHING * usual, usual))
    scale = size if tolerance.scaled else np.maximum(1.0, size / usual)
    return np.asarray(~((off <= _LOOSER * (tolerance.atol * scale + tolerance.rtol * sizes)) | (off == 0)))


def _jitter(run: Callable[[Mapping[str, Array]], Mapping[str, Array]], driven: Driven) -> dict[str, Array]:
    """Return how far answers change where the inputs change in their last digits, by output.

    The largest change so far in a row counts: what is rounded stays in a state.
    """
    rng = np.random.default_rng(0)
    floats = {name: array for name, array in driven.data.items() if array.dtype.kind == "f"}

    def answers(change: Callable[[Array], Array]) -> Mapping[str, Array]:
        with np.errstate(all="ignore"):
            return run({**driven.data, **{name: change(array).astype(array.dtype) for name, array in floats.items()}})

    plain = answers(lambda array: array)
    nudged = [answers(lambda array: array * (1 + _NUDGE * rng.uniform(-1, 1, array.shape))) for _ in range(_NUDGES)]
    tiny = _tiny_rows(driven.data)
    zero, double = (
        (answers(lambda array: array * 0), answers(lambda array: array * 2)) if tiny.any() else (plain, plain)
    )
    changes = {}
    for name, values in plain.items():
        off = np.max([difference(other[name], values, equal_nan=True) for other in nudged], axis=0)
        off[~np.isfinite(off)] = np.inf
        if tiny.any() and values.dtype.kind == "f":
            bend = np.abs(double[name].astype(np.float64) - 2.0 * values + zero[name])
            off[tiny] = np.maximum(off, np.where(np.isfinite(bend), bend, 0.0))[tiny]
        changes[name] = np.maximum.accumulate(
            off.max(axis=tuple(range(2, off.ndim)), keepdims=True, initial=0.0), axis=1
        )
    return changes


def _tiny_rows(data: Mapping[str, Array]) -> Array:
    """Return which rows have inputs next to 0 alone, as far as these are floats."""
    size = np.full(len(next(iter(data.values()))), -np.inf)
    for array in data.values():
        if array.dtype.kind == "f":
            size = np.maximum(size, np.nanmax(np.abs(array.reshape(len(array), -1)), axis=1, initial=0.0))
    return np.asarray(np.isfinite(size) & (size < _TINY))
