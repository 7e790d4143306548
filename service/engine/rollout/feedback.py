"""`FeedbackInputs`: makes each next input of a rollout, from its predictions and its seed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from model_export.feedback import Rule
from model_export.manifest import Array
from service.engine.rollout.sampling import normals, sample_indices, uniforms
from service.errors import ServiceError


class FeedbackInputs:
    """The inputs of one rollout, timestep by timestep, for each of its samples.

    They depend on the predictions, the seed, the sample's number and the timestep's alone: not on the horizon, nor on
    what is run beside them. So what was fed can be told again from predictions that were kept.
    """

    def __init__(self, rules: Sequence[Rule], *, seed: int, samples: int, horizon: int) -> None:
        """Prepare.

        Args:
            rules: How inputs are made; an input without a rule stays as it is.
            seed: From 0 to below 2**64.
            samples: Rows.
            horizon: Timesteps.
        """
        self._rules = rules
        self._numbers = [_numbers(rule, at, seed, samples, horizon + 1) for at, rule in enumerate(rules)]

    def next(self, outputs: Mapping[str, Array], t: int, before: Mapping[str, Array]) -> dict[str, Array]:
        """Return the inputs that follow on a prediction.

        Args:
            outputs: `(samples, *row)` by name.
            t: The prediction's timestep, from 1; 0: the one before the rollout.
            before: The inputs that led to it, `(samples, *row)` by name; one without a rule is fed again.

        Raises:
            ServiceError: `bad_input`: nothing can be drawn from the prediction; `non_finite`: an input is not finite.
        """
        made = dict(before)
        for rule, numbers in zip(self._rules, self._numbers, strict=True):
            made[rule.input.name] = _transform(rule, outputs, numbers[:, t], t)
        return made


def _numbers(rule: Rule, series: int, seed: int, samples: int, timesteps: int) -> Array:
    """Return all uniform numbers that a rule takes, `(samples, timesteps, each)`: one to draw, two for a normal one."""
    each = 2 * rule.input.row_size if rule.std is not None else int(rule.is_random)
    rows = [uniforms(seed, sample, series, timesteps * each) for sample in range(samples)]
    return np.stack(rows).reshape(samples, timesteps, each)


def _transform(rule: Rule, outputs: Mapping[str, Array], numbers: Array, t: int) -> Array:
    """Return an input, `(samples, *row)`."""
    value = outputs[rule.output.name]
    samples, row, dtype = len(value), rule.input.row_shape, np.dtype(rule.input.dtype)
    if rule.draw is not None:
        value = _sampled(rule, value.reshape(samples, -1), numbers, t)
    value = value.reshape(samples, *row)
    if rule.scale is not None:
        value = value * rule.scale
    if rule.offset is not None:
        value = value + rule.offset
    if rule.std is not None:
        spread = rule.std if isinstance(rule.std, float) else outputs[rule.std.name].reshape(samples, *row)
        first, second = numbers.reshape(samples, 2, *row).swapaxes(0, 1)
        value = value + spread * normals(first, second)
    with np.errstate(over="ignore"):
        made: Array = value.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(made).all():
        raise ServiceError(
            "non_finite",
            f"Input {rule.input.name!r}, made of the prediction of timestep {t}, is not finite in {dtype}.",
            fix="Ask for a shorter horizon, or for another rule.",
        )
    return made


def _sampled(rule: Rule, weights: Array, numbers: Array, t: int) -> Array:
    """Return the index that is drawn for each sample, or it as a vector with one 1."""
    assert rule.draw is not None
    chance = numbers[:, 0] if rule.is_random else np.zeros(len(weights))
    try:
        index = sample_indices(weights, chance, rule.draw)
    except ValueError as exc:
        raise ServiceError(
            "bad_input",
            f"Nothing can be drawn from output {rule.output.name!r} of timestep {t}: {exc}.",
            fix="Say `logits: true` in the rule if they are logarithms, or use another output.",
        ) from exc
    if rule.makes == "index":
        return index
    one_hot: Array = np.zeros(weights.shape, rule.input.dtype)
    one_hot[np.arange(len(index)), index] = 1
    return one_hot
