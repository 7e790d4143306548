"""Driven sequences: other scales, offsets, spikes, ties, limits, wide integers; and how the step graph is compared.

They are made of what is drawn anyway, by a rule for each row, so that the original takes them as it takes that: a
number stays a number, and an id stays one of its vocabulary. Lengths that either may depend on are compared, too.

Such sequences have values of any size, so each timestep is held to the size of its own answers. Where a difference is
larger, both run again with inputs that are changed in their last digits: what that changes in their answers is
rounding, and nothing else is allowed. Inputs next to 0 change nothing in what they are added to; there a smooth
function is a line, `f(2x) - 2 f(x) + f(0)` is 0, and what it is instead is rounding. Where the step graph has no number
and the original has one, as by an exponential that overflows, nothing is compared: the service refuses such an answer,
so it is not silent, and the report has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.manifest import Array, InputSpec, Manifest
from stepwell_export.verify.reference import PrefixAnswers, ReferenceModel, run_reference
from stepwell_export.verify.samplers import Sampler
from stepwell_export.verify.tolerance import Tolerance, difference

# ---------------------------------------------------------------- the sequences

ROWS = 9
"""Rows of a batch: as many as run together, and no shape that an original has not been run with."""

ALWAYS = 2
"""So many batches are compared always; the others where a decision went one way only."""

TIERS = ((-(2**31), 2**31 - 1), (-100_000, 100_000), (-128, 128), (0, 128), (0, 10))
"""Ranges of whole numbers; the first that the original takes is compared."""

_SEARCHED = 10
"""Batches with rules that are drawn at random, after the others."""

_Rule = Callable[[Array, np.random.Generator], Array]
"""One row of an input `(steps, *shape)` in float64 to what is sent."""


def _scaled(scale: float, offset: float = 0.0) -> _Rule:
    return lambda x, _: x * scale + offset


def _spiked(size: float, scale: float = 1.0) -> _Rule:
    def rule(x: Array, _: np.random.Generator) -> Array:
        x = x * scale
        for at in {0, len(x) // 2, len(x) - 1}:
            x[at] += size
        return x

    return rule


def _signed(scale: float) -> _Rule:
    return lambda x, _: np.abs(x) * scale


def _held(every: int) -> _Rule:
    """Ties: each value is held for some timesteps."""
    return lambda x, _: np.repeat(x[::every], every, axis=0)[: len(x)]


def _ramp(size: float) -> _Rule:
    return lambda x, _: x + size * np.linspace(0, 1, len(x)).reshape(-1, *[1] * (x.ndim - 1))


_BATCHES: tuple[tuple[_Rule, ...], ...] = (
    (
        _scaled(1e-8), _scaled(1e-3), _scaled(30), _scaled(1e3), _scaled(1e8), _spiked(30), _spiked(-1e3), _held(8),
        _scaled(1, 10),
    ),
    (
        _scaled(0), _scaled(1e-5), _signed(10), _signed(-10), _scaled(1e5), _spiked(1e5, 0.01), _ramp(100), _ramp(-100),
        _scaled(1, -100),
    ),
    (
        _signed(1), _signed(-1), _signed(1e3), _signed(-1e3), _signed(0.1), _signed(-0.1), _scaled(3), _scaled(10),
        _spiked(10),
    ),
)  # fmt: skip


def driven_batches(
    draw: Sampler,
    manifest: Manifest,
    vocabularies: Mapping[str, int],
    steps: int,
    values: Callable[[], Iterable[float]],
) -> Iterator[dict[str, Array]]:
    """Yield batches of sequences, the most telling first.

    Args:
        draw: What is drawn anyway.
        manifest: What the model takes.
        vocabularies: Inputs that hold ids, also as floats; these stay as they are drawn.
        steps: Timesteps.
        values: Returns constants that the original compares values with, as far as they are known by then.
    """
    inputs = _Inputs(draw, manifest, vocabularies, steps)
    for number, rules in enumerate(_BATCHES):
        yield inputs.by(rules, number)
    if limits := sorted(values()):
        yield inputs.by([_around(limits)] * ROWS, len(_BATCHES))
    for number in range(_SEARCHED):
        rng = np.random.default_rng(100 + number)
        yield inputs.by([_searched(rng, limits) for _ in range(ROWS)], 100 + number)


def integer_batches(
    draw: Sampler, manifest: Manifest, vocabularies: Mapping[str, int], steps: int
) -> Iterator[tuple[int, dict[str, Array]]]:
    """Yield batches with whole numbers of ever narrower ranges, each with its largest; none without such an input."""
    inputs = _Inputs(draw, manifest, vocabularies, steps)
    for low, high in TIERS if inputs.whole else ():
        yield high, inputs.with_integers(low, high)


class _Inputs:
    """The inputs of a model, and what may be sent in each."""

    def __init__(self, draw: Sampler, manifest: Manifest, vocabularies: Mapping[str, int], steps: int) -> None:
        self._draw = draw
        self._steps = steps
        self._specs = {spec.name: spec for spec in manifest.inputs if spec.name not in vocabularies}
        self.whole = [spec for spec in self._specs.values() if np.dtype(spec.dtype).kind in "iu"]

    def by(self, rules: Iterable[_Rule], seed: int) -> dict[str, Array]:
        """Draw sequences and apply a rule to each row; several inputs have the rules in another order each."""
        rng = np.random.default_rng(1000 + seed)
        data, rules = self._draw(rng, ROWS, self._steps), list(rules)
        floats = [spec for spec in self._specs.values() if np.dtype(spec.dtype).kind == "f"]
        for at, spec in enumerate(floats):
            data[spec.name] = self._ruled(data[spec.name], spec, [rules[(r + at) % ROWS] for r in range(ROWS)], rng)
        return data

    def with_integers(self, low: int, high: int) -> dict[str, Array]:
        """Draw sequences with whole numbers of a range, as far as their dtype has it."""
        rng = np.random.default_rng(0)
        data = self._draw(rng, ROWS, self._steps)
        for spec in self.whole:
            limits = np.iinfo(spec.dtype)
            least, most = max(low, limits.min), min(high, limits.max)
            values = rng.integers(least, most, data[spec.name].shape, endpoint=True)
            values[0] = rng.choice(np.array([least, least + 1, most - 1, most]), values[0].shape)
            data[spec.name] = _as_constant(values.astype(spec.dtype), data[spec.name])
        return data

    @staticmethod
    def _ruled(drawn: Array, spec: InputSpec, rules: list[_Rule], rng: np.random.Generator) -> Array:
        rows = [rule(row, rng) for rule, row in zip(rules, drawn.astype(np.float64), strict=True)]
        most = float(np.finfo(spec.dtype).max) / 4
        values = np.clip(np.stack(rows), -most, most).astype(spec.dtype)
        if spec.missing == "nan":
            values[-1][rng.random(values[-1].shape) < 0.2] = np.nan
        return _as_constant(values, drawn)


def _as_constant(values: Array, drawn: Array) -> Array:
    """Return values that stay the same over a sequence where what was drawn does."""
    if drawn.shape[1] > 1 and (drawn == drawn[:, :1]).all():
        values[:] = values[:, :1]
    return values


def _around(limits: list[float]) -> _Rule:
    """Values at limits, just below and just above them, and far from them."""

    def rule(x: Array, rng: np.random.Generator) -> Array:
        chosen = rng.choice(np.array(limits), x.shape)
        factor = rng.choice(np.array([1.0, 1.0, 1 - 2e-7, 1 + 2e-7, 0.99, 1.01, 0.5, 2.0, -1.0]), x.shape)
        return np.asarray(chosen * factor)

    return rule


def _searched(rng: np.random.Generator, limits: list[float]) -> _Rule:
    """A rule drawn at random: a scale and an offset for each number of a row, some numbers at rest."""
    low, high = rng.uniform(-2, 4, 2)
    sign, share, seed = rng.choice([-1, 0, 1]), rng.choice([0.1, 0.5, 1.0]), int(rng.integers(2**31))
    offset = float(rng.choice(limits)) if limits and rng.random() < 0.3 else 0.0

    def rule(x: Array, _: np.random.Generator) -> Array:
        own = np.random.default_rng(seed)
        size = x.shape[1:]
        scales = 10 ** own.uniform(min(low, high), max(low, high), size) * (own.random(size) < share)
        value = np.abs(x) * own.choice([-1, 1], size) if sign else x
        if sign > 0:  # held over time, as a state is driven
            value = value[:1] + 0.1 * (value - value[:1])
        return np.asarray(value * scales + offset)

    return rule


# ---------------------------------------------------------------- the comparison

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
