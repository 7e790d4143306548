"""`FeedbackInputs`: computes each next input of a rollout from its last prediction and its seed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from stepwell.addons.rollouts.sampling import counts, normals, sample_indices, students, uniforms
from stepwell.errors import ServiceError
from stepwell_export.runtime.feedback import Rule
from stepwell_export.runtime.manifest import Array, OutputSpec


class FeedbackInputs:
    """The inputs of one rollout, timestep by timestep, for each of its samples.

    They depend only on the predictions, the seed, the number of the sample and that of the timestep: not on the
    horizon, nor on other rollouts in the same batch. So they can be recomputed from stored predictions.
    """

    def __init__(self, rules: Sequence[Rule], *, seed: int, samples: int, horizon: int) -> None:
        """Draw all random numbers of the rollout.

        Args:
            rules: How inputs are computed; an input without a rule is constant.
            seed: From 0 to 2**64 - 1.
            samples: Number of rows.
            horizon: Number of timesteps.
        """
        self._rules = rules
        self._numbers = [_uniform_numbers(rule, i, seed, samples, horizon + 1) for i, rule in enumerate(rules)]

    def next(self, outputs: Mapping[str, Array], t: int, previous: Mapping[str, Array]) -> dict[str, Array]:
        """Return the inputs of the timestep after a prediction.

        Args:
            outputs: The prediction, `(samples, *row)` by name.
            t: The prediction's timestep, from 1; 0: the one before the rollout.
            previous: The inputs of timestep `t`, `(samples, *row)` by name; those without a rule are used again.

        Raises:
            ServiceError: `bad_input`: no index can be drawn from the prediction; `non_finite`: an input is not finite.
        """
        inputs = dict(previous)
        for rule, numbers in zip(self._rules, self._numbers, strict=True):
            inputs[rule.input.name] = _transform(rule, outputs, numbers[:, t], t)
        return inputs


def _uniform_numbers(rule: Rule, series: int, seed: int, samples: int, timesteps: int) -> Array:
    """Return all uniform numbers that a rule needs, `(samples, timesteps, each)`.

    One for each index that is drawn and each count, two for each number that is added.
    """
    elements = rule.input.row_size
    each = 2 * elements if rule.std is not None else elements if rule.dispersion is not None else int(rule.is_random)
    rows = [uniforms(seed, sample, series, timesteps * each) for sample in range(samples)]
    return np.stack(rows).reshape(samples, timesteps, each)


def _transform(rule: Rule, outputs: Mapping[str, Array], numbers: Array, t: int) -> Array:
    """Return an input, `(samples, *row)`."""
    value = outputs[rule.output.name]
    if rule.horizon is not None:
        value = value[:, 0]
    samples, row, dtype = len(value), rule.input.row_shape, np.dtype(rule.input.dtype)
    if rule.draw is not None:
        value = _draw(rule, value.reshape(samples, -1), numbers, t)
    value = value.reshape(samples, *row)
    if rule.scale is not None:
        value = value * rule.scale
    if rule.offset is not None:
        value = value + rule.offset
    try:
        value = _with_noise(rule, value, outputs, numbers)
    except ValueError as exc:
        raise ServiceError(
            "bad_input",
            f"Input {rule.input.name!r} cannot be drawn from the prediction of timestep {t}: {exc}.",
            fix="Use another output, or another rule.",
        ) from exc
    with np.errstate(over="ignore"):
        result: Array = value.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(result).all():
        raise ServiceError(
            "non_finite",
            f"Input {rule.input.name!r}, computed from the prediction of timestep {t}, is not finite in {dtype}.",
            fix="Request a shorter horizon, or another rule.",
        )
    return result


def _with_noise(rule: Rule, value: Array, outputs: Mapping[str, Array], numbers: Array) -> Array:
    """Return a value with noise, or the count that is drawn with it as the mean.

    Raises:
        ValueError: A parameter of the distribution is not one that it can have.
    """
    shape = value.shape

    def parameter(given: float | OutputSpec) -> Array | float:
        return given if isinstance(given, float) else outputs[given.name].reshape(shape).astype(np.float64)

    if rule.dispersion is not None:
        return counts(numbers.reshape(shape), value, parameter(rule.dispersion))
    if rule.std is None:
        return value
    first, second = numbers.reshape(len(value), 2, *shape[1:]).swapaxes(0, 1)
    z = normals(first, second) if rule.df is None else students(first, second, parameter(rule.df))
    noisy: Array = value + parameter(rule.std) * z
    return noisy


def _draw(rule: Rule, weights: Array, numbers: Array, t: int) -> Array:
    """Return the index drawn for each sample, `(samples,)`, or one-hot vectors, `(samples, choices)`."""
    assert rule.draw is not None
    uniform = numbers[:, 0] if rule.is_random else np.zeros(len(weights))
    try:
        index = sample_indices(weights, uniform, rule.draw)
    except ValueError as exc:
        raise ServiceError(
            "bad_input",
            f"No index can be drawn from output {rule.output.name!r} of timestep {t}: {exc}.",
            fix="Set `logits: true` in the rule if the output has logits, or use another output.",
        ) from exc
    if rule.makes == "index":
        return index
    one_hot: Array = np.zeros(weights.shape, rule.input.dtype)
    one_hot[np.arange(len(index)), index] = 1
    return one_hot
