"""Sequences that drive an original to what is rare: other scales, offsets, spikes, ties, limits, wide integers.

They are made of what is drawn anyway, by a rule for each row, so that the original takes them as it takes that: a
number stays a number, and an id stays one of its vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from stepwell_export.runtime.manifest import Array, InputSpec, Manifest
from stepwell_export.verify.samplers import Sampler

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
