"""`first_forecasts`: how good the first forecasts of streams are that move to a new version, by `take`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Literal

import numpy as np

from stepwell_export.runtime.labels import labels_of_outputs
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.runtime.truth import Truth, truths_of

Take = Literal["keep", "translate", "reset", "own"]
States = Mapping[str, Array]

FIRST = 16
"""Forecasts of each stream after its move that are judged."""

_CUTS = 5
_MOST_ROWS = 256
_AS_GOOD = 1.05


@dataclass(frozen=True, slots=True)
class FirstForecasts:
    """The errors of the first forecasts after a move, over own data.

    Attributes:
        against: `truth`: they are errors against what came; `own`: the model shows no truth, and they are differences
            from what the new version predicts with its own states.
        moves: How many moves of streams were made.
        forecasts: How many forecasts after each were judged.
        errors: The mean absolute error by output, label and take; `own`: with the states that the new version has after
            all timesteps before. It is not a choice, but what the others are measured by.
        overall: The mean by take over all labels, each in standard deviations of the values it is compared with.
        recommended: The take with the least error.
        warm_steps: With `reset`: after how many timesteps its error is within 5 % of that of own states; None: another
            one is recommended, or that takes longer than the data.
    """

    against: Literal["truth", "own"]
    moves: int
    forecasts: int
    errors: dict[str, dict[str, dict[Take, float]]]
    overall: dict[Take, float]
    recommended: Take
    warm_steps: int | None = None


def first_forecasts(
    old: StepModel,
    new: StepModel,
    data: Mapping[str, Array],
    *,
    keeps: bool,
    translate: Callable[[States], States] | None = None,
) -> FirstForecasts | None:
    """Move streams from an older version to a new one at several places of own data, and judge what comes next.

    Args:
        old: The older version.
        new: The new one.
        data: Sequences, `(N, T, *row)` by input.
        keeps: Whether the new version can use the old states as they are.
        translate: Computes the new states from the old ones.

    Returns:
        None: the older version takes other inputs, or the sequences are too short.
    """
    if not all(spec.name in data and data[spec.name].shape[2:] == spec.row_shape for spec in old.manifest.inputs):
        return None
    truths = truths_of(new.manifest)
    last = max((truth.last for truth in truths), default=0)
    data = {name: array[:_MOST_ROWS] for name, array in data.items()}
    rows, length = next(iter(data.values())).shape[:2]
    cuts = [cut for k in range(1, _CUTS) if 0 < (cut := length * k // _CUTS) <= length - last - 2]
    if not cuts:
        return None
    found = _Errors()
    owns, olds = new.initial_states(rows), old.initial_states(rows)
    for before, cut in pairwise([0, *cuts]):
        part = {name: array[:, before:cut] for name, array in data.items()}
        _, owns = new.chunk(_of(new, part), owns)
        _, olds = old.chunk(_of(old, part), olds)
        rest = {name: array[:, cut:] for name, array in data.items()}
        starts: dict[Take, States] = {"own": owns, "reset": new.initial_states(rows)}
        if keeps:
            starts["keep"] = olds
        if translate is not None:
            starts["translate"] = translate(olds)
        outputs = {take: new.chunk(_of(new, rest), states)[0] for take, states in starts.items()}
        for truth in truths or _of_own(new, outputs["own"]):
            found.add(truth, truth.read(rest), {take: made[truth.output] for take, made in outputs.items()})
    return found.report("truth" if truths else "own", moves=rows * len(cuts))


def _of(model: StepModel, data: Mapping[str, Array]) -> dict[str, Array]:
    return {spec.name: data[spec.name] for spec in model.manifest.inputs}


def _of_own(new: StepModel, outputs: Mapping[str, Array]) -> Sequence[Truth]:
    """Return what own states predict as the truths, in the same timestep."""
    labels = labels_of_outputs(new.manifest)
    truths = []
    for spec in new.manifest.answered:
        if spec.kind == "value":
            names = tuple(labels[spec.name]) or tuple(map(str, range(spec.row_size)))
            read = partial(_values, _numbers(outputs[spec.name]))
            truths.append(Truth(spec.name, names, spec.row_size, 0, read))
    return truths


def _values(values: Array, _inputs: Mapping[str, Array]) -> Array:
    return values


def _numbers(array: Array) -> Array:
    return array.reshape(*array.shape[:2], -1).astype(np.float64)


@dataclass(slots=True)
class _Errors:
    """Absolute errors and the values that they are of, collected over moves."""

    by_number: dict[tuple[str, str], list[dict[Take, Array]]] = field(default_factory=dict)
    values: dict[tuple[str, str], list[Array]] = field(default_factory=dict)

    def add(self, truth: Truth, came: Array, predicted: Mapping[Take, Array]) -> None:
        """Add the predictions of a move, `(N, T, *row)` by take; `came` is `(N, T, numbers)`."""
        came = came[:, truth.horizon :]
        before = np.full(
            (len(came), truth.ahead - 1, truth.numbers), np.nan
        )  # predictions before the move are not judged
        errors = {
            take: np.abs(truth.due(np.concatenate([before, _numbers(array)], axis=1)) - came)
            for take, array in predicted.items()
        }
        size = truth.numbers // len(truth.labels)
        for i, label in enumerate(truth.labels):
            numbers = slice(i * size, (i + 1) * size)
            key = truth.output, label
            self.by_number.setdefault(key, []).append({take: each[..., numbers] for take, each in errors.items()})
            self.values.setdefault(key, []).append(came[..., numbers])

    def report(self, against: Literal["truth", "own"], moves: int) -> FirstForecasts:
        """Return what was found."""
        errors: dict[str, dict[str, dict[Take, float]]] = {}
        scales = {key: self._scale(key) for key in self.by_number}
        for (output, label), parts in self.by_number.items():
            of = {take: _mean([part[take][:, :FIRST] for part in parts]) for take in parts[0]}
            errors.setdefault(output, {})[label] = of
        takes = list(next(iter(self.by_number.values()))[0])
        overall = {
            take: float(np.nanmean([errors[key[0]][key[1]][take] / scales[key] for key in self.by_number]))
            for take in takes
        }
        choices = [take for take in ("keep", "translate", "reset") if take in overall]
        recommended = min(choices, key=lambda take: overall[take])
        judged = min(FIRST, *(part["own"].shape[1] for parts in self.by_number.values() for part in parts))
        warm = self._warm_steps(scales, judged) if recommended == "reset" else None
        return FirstForecasts(against, moves, judged, errors, overall, recommended, warm)

    def _scale(self, key: tuple[str, str]) -> float:
        values = np.concatenate([part.ravel() for part in self.values[key]])
        spread = float(np.nanstd(values)) if np.isfinite(values).any() else 0.0
        return spread if spread > 0 else 1.0

    def _warm_steps(self, scales: Mapping[tuple[str, str], float], window: int) -> int | None:
        """Return after how many timesteps forecasts from initial states are about as good as those from own ones."""
        curves = {}
        for take in ("reset", "own"):
            of_label = []
            for key, parts in self.by_number.items():
                length = max(part[take].shape[1] for part in parts)
                by_step = [[part[take][:, t] for part in parts if part[take].shape[1] > t] for t in range(length)]
                of_label.append(np.array([_mean(step) for step in by_step]) / scales[key])
            shortest = min(map(len, of_label))
            curves[take] = np.nanmean([each[:shortest] for each in of_label], axis=0)
        for n in range(len(curves["own"]) - window + 1):
            reset, own = (float(np.nanmean(curves[take][n : n + window])) for take in ("reset", "own"))
            if reset <= max(_AS_GOOD * own, _AS_GOOD - 1 if own == 0 else 0.0):
                return n
        return None


def _mean(parts: Sequence[Array]) -> float:
    """Return the mean of the known numbers of some arrays; NaN: none is known."""
    numbers = np.concatenate([part.ravel() for part in parts])
    known = numbers[np.isfinite(numbers)]
    return float(known.mean()) if known.size else float("nan")
