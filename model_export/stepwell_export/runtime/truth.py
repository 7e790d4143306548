"""The truth of predictions: what the inputs of a later timestep, or a column of recorded data, show of them.

The truth of an output is the next input, as the model's feedback rule maps it, or the truth of a stage that learns. An
output with several timesteps ahead, `(ahead, *row)`, has a truth for each of them, which come one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from stepwell_export.runtime.feedback import FeedbackError, Rule, rules_of
from stepwell_export.runtime.labels import labels_ahead, labels_of, labels_of_outputs
from stepwell_export.runtime.manifest import Array, Manifest, OutputSpec

MOST_LABELS: Final = 100
"""An output with more numbers has one figure for each timestep ahead, or one in all, under its own name."""


@dataclass(frozen=True, slots=True)
class Truth:
    """Where the truth of an output is from.

    Attributes:
        output: The output.
        labels: The names of its figures: of its numbers in order, or of equally large groups of them.
        numbers: How many numbers a prediction has.
        horizon: After how many timesteps the truth of a prediction comes, or its first one.
        read: Returns what a timestep's inputs, `(rows, T, *row)` by name, show of the predictions before it: of
            each number what it should have been, `(rows, T, numbers)` float64; NaN where nothing is known.
        ahead: How many timesteps ahead a prediction has; numbers are in their order.
    """

    output: str
    labels: tuple[str, ...]
    numbers: int
    horizon: int
    read: Callable[[Mapping[str, Array]], Array]
    ahead: int = 1

    @property
    def last(self) -> int:
        """After how many timesteps the last truth of a prediction comes."""
        return self.horizon + self.ahead - 1

    def due(self, predicted: Array) -> Array:
        """Return the predictions whose truths come in timesteps, `(rows, T, numbers, ..)`.

        Args:
            predicted: The predictions from `last` timesteps before the first one to the last one, `(rows, last + T,
                numbers, ..)`.
        """
        length, row = predicted.shape[1] - self.last, self.numbers // self.ahead
        parts = [
            predicted[:, first : first + length, i * row : (i + 1) * row]
            for i, first in enumerate(reversed(range(self.ahead)))
        ]
        return np.concatenate(parts, axis=2)


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


def truth_of_columns(  # noqa: PLR0917  # an output, its columns, and how far ahead it is
    spec: OutputSpec, labels: Sequence[str], name: str, columns: Sequence[str], horizon: int, ahead: int | None
) -> Truth:
    """Return the truth that columns of recorded data are.

    Args:
        spec: The output.
        labels: The names of its numbers; empty: it has none.
        name: The name under which the data has the columns, as an input with a number for each.
        columns: Their names.
        horizon: After how many timesteps the truth of a prediction comes; 0: in the same one.
        ahead: How many timesteps ahead the output has, its first axis; the truth of the first comes after `horizon`.
            None: one, without an axis.
    """

    def read(inputs: Mapping[str, Array]) -> Array:
        return np.tile(_numbers(inputs[name]), ahead or 1)

    return _truth(spec, labels, horizon, read, ahead=ahead, row=columns)


def _of_rule(rule: Rule, labels: Sequence[str]) -> Truth | None:
    name, numbers = rule.input.name, rule.output.row_size
    if rule.draw is not None and rule.draw.logits:
        return None

    def value(inputs: Mapping[str, Array]) -> Array:
        found = inputs[name].astype(np.float64)
        offset = 0.0 if rule.offset is None else rule.offset
        with np.errstate(divide="ignore", invalid="ignore"):
            shown = _numbers((found - offset) / (1.0 if rule.scale is None else rule.scale))
        return np.tile(shown, rule.horizon or 1)

    def chosen(inputs: Mapping[str, Array]) -> Array:
        """Return 1 for the class that came, which had a probability."""
        came = _numbers(inputs[name])
        if rule.makes == "one_hot":
            return np.where(came == 1, 1.0, np.nan)
        return np.where(came == np.arange(numbers), 1.0, np.nan)

    read = value if rule.makes == "value" else chosen
    row = labels_of(rule.input) or tuple(str(n) if rule.input.row_size > 1 else "" for n in range(rule.input.row_size))
    return _truth(rule.output, labels, 1, read, ahead=rule.horizon, row=row)


def _of_stage(spec: OutputSpec, manifest: Manifest, labels: Mapping[str, Sequence[str]]) -> Truth | None:
    """Return the truth of a readout, or of the prediction that an interval is around; None: there is none."""
    stage = spec.stage
    if stage is None or stage.truth is None:
        return None
    judged = {"Readout": spec.name, "Conformal": stage.of}.get(stage.kind)
    output = next((one for one in manifest.answered if one.name == judged), None)
    name, place = stage.truth_place
    if output is None or name not in {one.name for one in manifest.inputs}:
        return None

    def read(inputs: Mapping[str, Array]) -> Array:
        came = _numbers(inputs[name])
        return came if place is None else came[..., place : place + 1]

    return _truth(output, labels[output.name], stage.horizon, read)


def _truth(
    spec: OutputSpec,
    labels: Sequence[str],
    horizon: int,
    read: Callable[[Mapping[str, Array]], Array],
    *,
    ahead: int | None = None,
    row: Sequence[str] = (),
) -> Truth:
    """Return the truth of an output.

    Args:
        spec: The output.
        labels: The names of its numbers; empty: it has none.
        horizon: After how many timesteps its truth comes, or its first one.
        read: As in `Truth`.
        ahead: How many timesteps ahead it has; None: one, without an axis.
        row: The names of the numbers of one timestep ahead.
    """
    last = horizon + (ahead or 1) - 1
    if ahead is None:
        names = tuple(labels) or tuple(str(n) for n in range(spec.row_size))
    else:
        names = tuple(labels) or labels_ahead(row, horizon, last)
        if len(names) > MOST_LABELS:
            names = labels_ahead([""], horizon, last)
    if len(names) > MOST_LABELS:
        names = (spec.name,)
    return Truth(spec.name, names, spec.row_size, horizon, read, ahead or 1)


def _numbers(array: Array) -> Array:
    """Return inputs `(rows, T, *row)` as `(rows, T, numbers)` float64."""
    return array.reshape(*array.shape[:2], -1).astype(np.float64)


def _rules(manifest: Manifest) -> list[Rule]:
    """Return the feedback rules; none if one does not fit the model, which is served without them."""
    try:
        return rules_of(manifest.feedback, manifest)
    except FeedbackError:
        return []
