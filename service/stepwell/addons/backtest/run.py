"""`compare`: runs two models over recorded streams, in chunks, and compares their outputs, also with the truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stepwell.addons.backtest.differences import OutputDifferences
from stepwell.addons.recorded import Block, RecordedData, gathered
from stepwell.addons.releases.forecast_errors import ErrorFigures, StreamErrors, figures
from stepwell_export.runtime.errors import StepwellError
from stepwell_export.runtime.labels import labels_of_outputs
from stepwell_export.runtime.manifest import Array, InputSpec, OutputSpec
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.runtime.truth import Truth

_MOST_WIDTH = 256


class BacktestError(StepwellError):
    """Two models cannot be compared, or differ by more than allowed."""

    code = "backtest_failed"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome of a backtest.

    Attributes:
        streams: The stream ids by their codes.
        timesteps: Timesteps that both models ran.
        outputs: The differences of each compared output.
        not_compared: Outputs that only one model has, or that are random.
        errors: How far both models were from the truth, by output and label; empty: there is no truth.
    """

    streams: list[str]
    timesteps: int
    outputs: list[OutputDifferences]
    not_compared: list[str]
    errors: dict[str, dict[str, ErrorFigures]] = field(default_factory=dict)

    def worst(self, most: int) -> list[int]:
        """Return the codes of the streams that differ most, the first one most, without those that do not differ."""
        largest: Array = np.max([each.of_streams(len(self.streams)) for each in self.outputs], axis=0)
        order = np.argsort(-largest, kind="stable")[:most]
        return [int(code) for code in order if largest[code] > 0]


def joint_inputs(new: StepModel, old: StepModel) -> list[InputSpec]:
    """Return the inputs that the data must have for both models.

    Raises:
        BacktestError: An input of the same name has another shape or dtype.
    """
    specs = {spec.name: spec for spec in old.manifest.inputs}
    for spec in new.manifest.inputs:
        known = specs.setdefault(spec.name, spec)
        if (known.shape, known.dtype) != (spec.shape, spec.dtype):
            raise BacktestError(
                f"Input {spec.name!r} is {spec.dtype}{spec.shape} in the new model and {known.dtype}{known.shape} in "
                "the old one; expected the same.",
                fix="Compare models that take the same timesteps.",
            )
        if spec.missing == "refuse":
            specs[spec.name] = spec
    return list(specs.values())


def compared_outputs(new: StepModel, old: StepModel) -> tuple[list[OutputSpec], list[str]]:
    """Return the outputs that are compared, and the names of the others.

    Raises:
        BacktestError: There is none, or one has another shape.
    """
    ours = {spec.name: spec for spec in new.manifest.answered}
    theirs = {spec.name: spec for spec in old.manifest.answered}
    compared, others = [], sorted(ours.keys() ^ theirs.keys())
    for name in ours.keys() & theirs.keys():
        if ours[name].shape != theirs[name].shape:
            raise BacktestError(
                f"Output {name!r} has shape {ours[name].shape} in the new model and {theirs[name].shape} in the old "
                "one; expected the same."
            )
        if "random" in (ours[name].kind, theirs[name].kind):
            others.append(name)
        else:
            compared.append(ours[name])
    if not compared:
        raise BacktestError(
            f"The new model has the outputs {sorted(ours)}, the old one {sorted(theirs)}: none can be compared.",
            fix="Export both with the same names of outputs.",
        )
    return sorted(compared, key=list(ours.values()).index), others


def compare(
    new: StepModel,
    old: StepModel,
    data: RecordedData,
    advance: Callable[[int], None] = lambda _timesteps: None,
    *,
    truths: Sequence[Truth] = (),
) -> Comparison:
    """Run both models over all streams from their initial states.

    Args:
        new: One model.
        old: The other.
        data: The timesteps, with the inputs of `joint_inputs`.
        advance: Called with the number of timesteps that were compared since the last call.
        truths: Where the truths of outputs are from: inputs of the models, or others that the data has.

    Raises:
        BacktestError: The models cannot be compared.
        ModelLoadError: onnxruntime failed on these values.
        RecordedDataError: The data cannot be read.
    """
    specs, not_compared = compared_outputs(new, old)
    labels = labels_of_outputs(new.manifest)
    differences = [OutputDifferences(spec.name, spec.row_size, labels[spec.name]) for spec in specs]
    judged = [StreamErrors(truth) for truth in truths]
    sums = {truth.output: np.zeros((len(truth.labels), 7)) for truth in truths}
    runs = [_Run(new), _Run(old)]
    seen = np.zeros(0, np.int64)  # timesteps of each stream so far
    timesteps = 0
    for rows in gathered(data.read()):
        seen = np.append(seen, np.zeros(len(data.streams) - len(seen), np.int64))
        for group in rows.groups(_MOST_WIDTH):
            for block in group.blocks():
                length = block.positions.shape[1]
                ours, theirs = (run.advance(block, len(data.streams)) for run in runs)
                steps = seen[block.codes, None] + np.arange(1, length + 1)
                for each in differences:
                    each.add(block.codes, steps, ours[each.name], theirs[each.name])
                for errors in judged:
                    name = errors.truth.output
                    errors.grow(len(data.streams))
                    sums[name] += errors.add(block.codes, block.inputs, theirs[name], ours[name])
                seen[block.codes] += length
                timesteps += block.size
                advance(block.size)
    found = {truth.output: dict(zip(truth.labels, map(figures, sums[truth.output]), strict=True)) for truth in truths}
    return Comparison(list(data.streams), timesteps, differences, not_compared, found)


class _Run:
    """One model, with the state of each stream."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._names = [spec.name for spec in model.manifest.inputs]
        self._states = model.initial_states(0)

    def advance(self, block: Block, n_streams: int) -> dict[str, Array]:
        """Run a block, and return the outputs, `(N, T, *row)`."""
        known = len(next(iter(self._states.values()), np.empty(n_streams)))
        if known < n_streams:
            more = self._model.initial_states(max(n_streams, 2 * known) - known)
            self._states = {name: np.concatenate([array, more[name]]) for name, array in self._states.items()}
        states = {name: array[block.codes] for name, array in self._states.items()}
        outputs, states = self._model.chunk({name: block.inputs[name] for name in self._names}, states)
        for name, array in states.items():
            self._states[name][block.codes] = array
        return outputs


def load_models(paths: Sequence[Path], threads: int) -> list[StepModel]:
    """Load step graphs.

    Raises:
        BacktestError: A file is not there.
        ManifestError: One has no manifest.
        ModelLoadError: onnxruntime refuses it.
    """
    for path in paths:
        if not path.is_file():
            raise BacktestError(f"{path} is not there; expected a step graph.", fix="Check the path.")
    return [StepModel(path, threads=threads) for path in paths]
