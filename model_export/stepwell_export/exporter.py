"""From a SOURCE to one verified step graph in a file: written whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

from stepwell_export.arguments import as_path, check_by_name, check_every, check_name, check_tolerance, check_type
from stepwell_export.converted import ConvertedModel, check_model, verify_model
from stepwell_export.export_sources import is_jax_function, load_source
from stepwell_export.labels import labels_fed_back, read_columns, read_labels, with_labels
from stepwell_export.precision import FULL, Precision, saved
from stepwell_export.replacing import Replaced, Replacement, replaced
from stepwell_export.runtime.errors import FileError, UnclearModelError, WeakProofError
from stepwell_export.runtime.feedback import with_feedback
from stepwell_export.runtime.files import check_new_file, write_atomically
from stepwell_export.runtime.manifest import Manifest, TensorSpec
from stepwell_export.spec import StepSpec
from stepwell_export.stages.pipeline import Pipeline
from stepwell_export.verify.reference import Progress
from stepwell_export.verify.report import ParityReport
from stepwell_export.verify.samplers import read_user_data
from stepwell_export.verify.tolerance import Tolerance


@dataclass(frozen=True, slots=True)
class Exported:
    """The step graph that `export` has written, and how it was verified.

    Attributes:
        path: The file.
        name: The model's name in its manifest.
        nbytes: The file's size.
        report: How far the step graph is from the original.
        saved: What a lower precision made smaller, in bytes before and after: `file`, `bytes_per_stream`.
        replacement: What becomes of the states of the version that it replaces; None: it replaces none.
        inputs: The inputs that one timestep has.
    """

    path: Path
    name: str
    nbytes: int
    report: ParityReport
    saved: dict[str, tuple[int, int]]
    replacement: Replacement | None = None
    inputs: Sequence[TensorSpec] = ()


def export_source(
    source: Any,
    target: str | os.PathLike[str],
    *,
    name: str | None = None,
    tolerance: float | None = None,
    precision: Precision = FULL,
    verify: str | os.PathLike[str] | None = None,
    time_axes: Mapping[str, int | None] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    length: int | None = None,
    feedback: Mapping[str, Any] | None = None,
    labels: Mapping[str, Sequence[str]] | None = None,
    units: Mapping[str, str | Sequence[str]] | None = None,
    every: str | None = None,
    accept_weak: bool = False,
    before: Sequence[Path] = (),
    after: Sequence[Path] = (),
    replaces: Replaced | None = None,
    pcm16: bool = False,
    examples: Mapping[str, Sequence[int]] | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Export a trained model.

    Args:
        source: A `.keras`, `.h5` or `.onnx` file, `package.module:callable`, `recipe:NAME=FILE`, or a Keras model, a
            `StepSpec` or a `Pipeline` itself.
        target: The ONNX file to write; a missing folder is created.
        name: The model's name; the target's stem by default.
        tolerance: Largest absolute difference allowed, taken as it is; relative to the original's value at most ten
            times that, and no more than without it. None: a part of each output's largest value that suits the
            precision.
        precision: What is kept in fewer bits than the original has.
        verify: An `.npz` file with own sequences, `(T, ..)` or `(N, T, ..)` by input name.
        time_axes: The time axis by input of an ONNX file, where its declared axes do not have it; None: it has none.
        batch_axes: The batch axis by input of an ONNX file, in the same way.
        length: The number of timesteps that an ONNX file was trained with, if it attends to all timesteps before or has
            a table of positions.
        feedback: For rollouts: by input, the output or the rule that makes it; see `stepwell_export.runtime.feedback`.
        labels: Names of the numbers of a row, by input or output; by default those that the model itself has.
        units: Units by input or output: one, or one for each number.
        every: The time from one timestep to the next in the training data, such as `1s`.
        accept_weak: Write the file also where a wrong graph might have passed, and `verify` does not settle it.
        before: ONNX files that a timestep passes in front of the model, in order: graphs over sequences, or over rows.
        after: ONNX files that its outputs pass behind it, in order.
        replaces: The version that it replaces; a translation of its states is written beside the target.
        pcm16: Whether the samples of a recipe are int16 instead of float32.
        examples: The shape of each input of a TorchScript file, a batch of one row in front, in `forward`'s order.
        progress: Called as parts are done.

    Raises:
        FileError: The target cannot be written, or a file is missing.
        UnclearModelError: No name can be made of the target, or a feedback rule does not fit the model.
        RefusedModelError: The model cannot be stepped; names the layer and the reason.
        ParityError: Step graph and original differ; nothing is written.
        WeakProofError: They agree, and a wrong graph might have, too; nothing is written.
        TensorError: The own sequences do not fit the model.
        MissingExtraError: A package that this needs is not installed.
    """
    target = as_path("target", target)
    verify = None if verify is None else as_path("verify", verify)
    if isinstance(source, os.PathLike):
        source = str(as_path("source", source))
    name = target.stem if name is None or (isinstance(name, str) and not name) else name
    check_name(name)
    check_tolerance(tolerance)
    _check_types(
        precision=precision,
        replaces=replaces,
        progress=progress,
        pcm16=pcm16,
        accept_weak=accept_weak,
    )
    check_by_name("feedback", feedback, object, "an output or a rule")
    check_by_name("labels", labels, Collection, "a list of texts")
    check_by_name("units", units, (str, list, tuple), "a text, or a list of texts")
    check_every(every)
    before, after = _paths("before", before), _paths("after", after)
    check_new_file(
        target,
        *([Path(source)] if isinstance(source, str) and not source.startswith("recipe:") else []),
        *before,
        *after,
    )
    if verify is not None and not verify.is_file():
        raise FileError(f"{verify} is not there; expected an .npz file.", fix="Check the path.")
    if pcm16 and not (isinstance(source, str) and source.startswith("recipe:")):
        raise UnclearModelError(
            "int16 samples are for recipes; the source is none.", fix="Put `stages.PCM16()` into a `Pipeline`."
        )
    model = load_source(source, pcm16=pcm16, examples=examples)
    if before or after:
        model = _with_files(model, before, after)
    full = convert_source(
        model, name=name, time_axes=time_axes, batch_axes=batch_axes, length=length, progress=progress
    )
    known = {**_own_labels(model, full.manifest), **(labels or {})}
    manifest = with_labels(with_feedback(full.manifest, feedback or {}), known, units)
    if manifest.feedback:
        manifest = with_labels(manifest, labels_fed_back(manifest))
    full = replace(full, manifest=manifest.model_copy(update={"every": every or manifest.every}))
    if (candidate := precision.lower(full)) is not full:
        check_model(full, atol=tolerance)
    content, report = verify_model(
        candidate,
        atol=tolerance,
        default=Tolerance(precision.atol, precision.rtol, scaled=True),
        user_data=partial(read_user_data, verify) if verify else None,
        lowered=precision.in_words,
        kept=precision.kept_in(full),
        progress=progress,
    )
    replacement, translation = (
        (None, None)
        if replaces is None
        else replaced(replaces, content, target, None if verify is None else read_user_data(verify, manifest))
    )
    smaller = {} if candidate is full else saved(full, candidate, len(content))
    done = Exported(target, name, len(content), report, smaller, replacement, manifest.inputs)
    if report.weak and not report.is_settled and not accept_weak:
        problem = f"The verification is weak, a wrong graph might pass it: {'; '.join(report.reasons)}."
        raise WeakProofError(problem, fix=_WEAK_ADVICE, exported=done)
    if replacement is not None and replacement.translation is not None and translation is not None:
        write_atomically(replacement.translation, translation)
    write_atomically(target, content)
    return done


def _check_types(*, precision: Any, replaces: Any, progress: Any, pcm16: Any, accept_weak: Any) -> None:
    """Refuse arguments of other types than they have to be.

    Raises:
        UnclearModelError: It names the argument.
    """
    check_type("precision", precision, Precision, "a Precision")
    check_type("replaces", replaces, (Replaced, NoneType), "a Replaced, or None")
    check_type("pcm16", pcm16, bool, "True or False")
    check_type("accept_weak", accept_weak, bool, "True or False")
    if progress is not None and not callable(progress):
        check_type("progress", progress, NoneType, "a function of a part's name, a number and a total, or None")


def _paths(argument: str, given: Any) -> list[Path]:
    if isinstance(given, str | os.PathLike):
        given = [given]
    check_type(argument, given, Sequence, "a list of ONNX files")
    return [as_path(argument, path) for path in given]


def _with_files(model: Any, before: Sequence[Path], after: Sequence[Path]) -> Pipeline:
    for path in (*before, *after):
        if path.suffix != ".onnx" or not path.is_file():
            raise FileError(f"{path} is no ONNX file; expected one for `--before` or `--after`.", fix="Check the path.")
    if isinstance(model, Pipeline):
        if model.outputs is not None and after:
            raise UnclearModelError(
                "`--after` is given for a pipeline that picks its outputs.", fix="Put the file into the pipeline."
            )
        parts = [*before, *model.parts, *after]
        return Pipeline(parts, outputs=model.outputs, anchor=model.anchor + len(before), shown=model.shown)
    return Pipeline([*before, model, *after], anchor=len(before))


def _own_labels(model: Any, manifest: Manifest) -> dict[str, list[str]]:
    """Return the labels that a model has, or the data frames that a `StepSpec` has for examples."""
    if not isinstance(model, StepSpec):
        return read_labels(model, manifest)
    sizes = {spec.name: spec.row_size for spec in manifest.inputs}
    columns = {name: read_columns(example) for name, example in model.inputs.items()}
    fitting = {name: names for name, names in columns.items() if names and sizes.get(name) == len(names)}
    return {**read_labels(model.module, manifest), **fitting}


_WEAK_ADVICE = (
    "Nothing was written. Give sequences that are like your own, `--verify FILE.npz`, with such events in them; "
    "`--accept-weak` writes the file as it is."
)


def convert_source(
    model: Any,
    *,
    name: str,
    time_axes: Mapping[str, int | None] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    length: int | None = None,
    progress: Progress | None = None,
) -> ConvertedModel:
    """Hand what a SOURCE gave to the front end that handles it.

    Raises:
        RefusedModelError: It cannot be stepped.
        MissingExtraError: A package that this needs is not installed.
        UnclearModelError: Axes are given for what is no ONNX file.
    """
    if isinstance(model, Pipeline):
        from stepwell_export.stages.convert import convert_pipeline

        def convert(part: Any, is_anchor: bool) -> ConvertedModel:
            hints = {"time_axes": time_axes, "batch_axes": batch_axes, "length": length} if is_anchor else {}
            return convert_source(part, name=name, progress=progress, **hints)  # type: ignore[arg-type]  # by name

        return convert_pipeline(model, convert, name=name)
    if isinstance(model, Path):
        from stepwell_export import streaming

        return streaming.convert(
            model, name=name, time_axes=time_axes, batch_axes=batch_axes, length=length, progress=progress
        )
    if length is not None and not isinstance(model, StepSpec):
        raise UnclearModelError(
            "`--length` is given, but the source is no ONNX file.",
            fix="Leave it out: a Keras model declares its timesteps, keras.Input((T, ..)).",
        )
    for flag, axes in (("--time-axis", time_axes), ("--batch-axis", batch_axes)):
        if axes:
            raise UnclearModelError(
                f"`{flag}` is given for {sorted(axes)}, but the source is no ONNX file.",
                fix="Leave it out: Keras models have time on axis 1, a StepSpec has `time_axis`.",
            )
    if isinstance(model, StepSpec):
        model = model if length is None else replace(model, length=length)
        if is_jax_function(model):
            from stepwell_export import jax

            return jax.convert(model, name=name, progress=progress)
        from stepwell_export import torch

        return torch.convert(model, name=name, progress=progress)
    from stepwell_export import keras

    return keras.convert(model, name=name, progress=progress)
