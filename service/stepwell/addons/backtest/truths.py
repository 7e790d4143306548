"""`chosen_truths`: where a backtest has the truth of each output from: columns that were named, else the inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stepwell.addons.backtest.run import BacktestError
from stepwell_client.wire.texts import counted, listed
from stepwell_export.runtime.labels import labels_of_outputs
from stepwell_export.runtime.manifest import InputSpec, OutputSpec
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.runtime.truth import Truth, truth_of_columns, truths_of


def chosen_truths(
    new: StepModel,
    old: StepModel,
    outputs: Sequence[OutputSpec],
    columns: Mapping[str, Sequence[str]],
    horizons: tuple[int, int] | int,
) -> tuple[list[Truth], dict[str, InputSpec]]:
    """Return the truths, and what the data must have for them beside the inputs: the columns' names by a spec.

    Args:
        new: The model that is tried.
        old: The one that it is compared with.
        outputs: The outputs that are compared.
        columns: The columns of a truth by output.
        horizons: After how many timesteps these columns have the truth of a prediction; or of the first and of the last
            timestep ahead, which are the first axis of the outputs.

    Raises:
        BacktestError: There is no such output, or it has another number of numbers than columns, or of timesteps ahead.
    """
    first, last = (horizons, horizons) if isinstance(horizons, int) else horizons
    ahead = last - first + 1
    by_name = {spec.name: spec for spec in outputs}
    labels = labels_of_outputs(new.manifest)
    truths = {truth.output: truth for truth in truths_of(new.manifest, old.manifest) if truth.output in by_name}
    specs: dict[str, InputSpec] = {}
    for name, given in columns.items():
        if name not in by_name:
            raise BacktestError(
                f"`--truth` names {name!r}; the outputs that can be compared are {listed(list(by_name))}.",
                fix="Use the name of an output.",
            )
        spec = by_name[name]
        if ahead > 1 and spec.shape[:1] != [ahead]:
            raise BacktestError(
                f"`--horizon {first}-{last}` has {ahead} timesteps ahead; {name!r} has shape {spec.shape}, expected "
                f"[{ahead}, ..].",
                fix="Say how many timesteps ahead the output has, or one number for all.",
            )
        if len(given) * ahead != spec.row_size:
            numbers = counted(spec.row_size // ahead, "number") + (" for each timestep ahead" if ahead > 1 else "")
            raise BacktestError(
                f"`--truth` gives {name!r} {counted(len(given), 'column')}; it has {numbers}.",
                fix="Name one column for each number, in order.",
            )
        # not the name of an input: the data may have one that is called as the output
        read = f"truth of {name}"
        specs[name] = InputSpec(name=read, dtype="float64", shape=[len(given)], missing="nan")
        truths[name] = truth_of_columns(spec, labels[name], read, given, first, ahead if ahead > 1 else None)
    return [truths[name] for name in by_name if name in truths], specs
