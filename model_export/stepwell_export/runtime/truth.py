"""The truth of predictions: what the inputs of a later timestep, or a column of recorded data, show of them.

The truth of an output is the next input, as the model's feedback rule maps it, or the truth of a stage that learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stepwell_export.runtime.feedback import FeedbackError, Rule, rules_of
from stepwell_export.runtime.labels import labels_of_outputs
from stepwell_export.runtime.manifest import Array, Manifest, OutputSpec

MOST_LABELS: Final = 100
"""An output with more numbers has one figure, under its own name."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Where the truth of an output is from.

    Attributes:
        output: The output.
        labels: The names of its numbers, or its own name if it has too many.
        horizon: After how many timesteps the truth of a prediction comes.
        read: Returns what a timestep's inputs, `(rows, T, *row)` by name, show of the prediction `horizon` timesteps
            before it, `(rows, T, numbers)` float64; NaN where nothing is known.
    """

    output: str
    labels: tuple[str, ...]
    horizon: int
    read: Callable[[Mapping[str, Array]], Array]


def truths_of(*manifests: Manifest) -> list[Truth]:
    """Return the truths that inputs have, one for each output at most: by feedback rules, else by stages that learn.

    Args:
        manifests: Of versions of one model; the first one that has a truth of an output decides.
    """
    found: dict[str, Truth] = {}
    for manifest in manifests:
        labels = labels_of_outputs(manifest)
        for rule in _rules(manifest):
            if (truth := _of_rule(rule, labels[rule.output.name])) is not None:
                found.setdefault(rule.output.name, truth)
        for spec in manifest.answered:
            if (truth := _of_stage(spec, manifest, labels)) is not None:
                found.setdefault(truth.output, truth)
    return list(found.values())


def truth_of_column(spec: OutputSpec, labels: Sequence[str], name: str, horizon: int) -> Truth:
    """Return the truth that a column, or an array, of recorded data is.

    Args:
        spec: The output.
        labels: The names of its numbers; empty: it has none.
        name: The name under which the data has it, as an input of the output's shape.
        horizon: After how many timesteps the truth of a prediction comes; 0: in the same one.
    """

    def read(inputs: Mapping[str, Array]) -> Array:
        return _numbers(inputs[name])

    return Truth(spec.name, _labels(spec, labels), horizon, read)


def _of_rule(rule: Rule, labels: Sequence[str]) -> Truth | None:
    name, numbers = rule.input.name, rule.output.row_size
    if rule.draw is not None and rule.draw.logits:
        return None

    def value(inputs: Mapping[str, Array]) -> Array:
        found = inputs[name].astype(np.float64)
        offset = 0.0 if rule.offset is None else rule.offset
        with np.errstate(divide="ignore", invalid="ignore"):
            return _numbers((found - offset) / (1.0 if rule.scale is None else rule.scale))

    def chosen(inputs: Mapping[str, Array]) -> Array:
        """Return 1 for the class that came, which had a probability."""
        came = _numbers(inputs[name])
        if rule.makes == "one_hot":
            return np.where(came == 1, 1.0, np.nan)
        return np.where(came == np.arange(numbers), 1.0, np.nan)

    return Truth(rule.output.name, _labels(rule.output, labels), 1, value if rule.makes == "value" else chosen)


def _of_stage(spec: OutputSpec, manifest: Manifest, labels: Mapping[str, Sequence[str]]) -> Truth | None:
    """Return the truth of a readout, or of the prediction that an interval is around; None: there is none."""
    stage = spec.stage
    if stage is None or stage.truth is None:
        return None
    judged = spec.name if stage.kind == "Readout" else stage.of
    output = next((one for one in manifest.answered if one.name == judged), None)
    name, place = stage.truth_place
    if output is None or name not in {one.name for one in manifest.inputs}:
        return None

    def read(inputs: Mapping[str, Array]) -> Array:
        came = _numbers(inputs[name])
        return came if place is None else came[..., place : place + 1]

    return Truth(output.name, _labels(output, labels[output.name]), stage.horizon, read)


def _labels(spec: OutputSpec, labels: Sequence[str]) -> tuple[str, ...]:
    if spec.row_size > MOST_LABELS:
        return (spec.name,)
    return tuple(labels) or tuple(str(n) for n in range(spec.row_size))


def _numbers(array: Array) -> Array:
    """Return inputs `(rows, T, *row)` as `(rows, T, numbers)` float64."""
    return array.reshape(*array.shape[:2], -1).astype(np.float64)


def _rules(manifest: Manifest) -> list[Rule]:
    """Return the feedback rules; none if one does not fit the model, which is served without them."""
    try:
        return rules_of(manifest.feedback, manifest)
    except FeedbackError:
        return []
