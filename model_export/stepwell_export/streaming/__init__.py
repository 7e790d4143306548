"""Sequence graphs in ONNX, from anywhere: made step graphs by running them and walking their nodes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from stepwell_export.arguments import as_path, check_axes, check_by_name, check_length, check_name, check_type
from stepwell_export.converted import ConvertedModel
from stepwell_export.runtime.errors import InternalError, RefusedModelError, StepwellError, UnclearModelError
from stepwell_export.runtime.manifest import Array
from stepwell_export.verify.reference import Progress, ReferenceModel
from stepwell_export.verify.samplers import Sampler, random_sampler

if TYPE_CHECKING:
    from stepwell_export.streaming.step import SequenceStep

__all__ = ["convert"]


def convert(
    source: Any,
    *,
    name: str,
    time_axes: Mapping[str, int | None] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    constants: Mapping[str, Array] | None = None,
    length: int | None = None,
    original: ReferenceModel | None = None,
    against: str | None = None,
    samplers: Mapping[str, Sampler] | None = None,
    progress: Progress | None = None,
) -> ConvertedModel:
    """Make the step graph of a sequence graph; not verified.

    Args:
        source: An ONNX file, or an `onnx.ModelProto`.
        name: The model's name in its manifest.
        time_axes: Time axis by input, where its declared axes do not have it; None: the input has none.
        batch_axes: Batch axis by input, in the same way.
        constants: Inputs that are given once and for all.
        length: The number of timesteps that the model was built for. Attention without a window then covers as many,
            and positions end after them; the comparison has exactly so many timesteps.
        original: The model that the graph was made of; None: the file itself, run as it is. It takes and gives
            tensors by the names that the graph has.
        against: The original and its version; what runs the file by default.
        samplers: What to draw for the comparison; random data by default.
        progress: Called as parts are done.

    Raises:
        MissingExtraError: The onnx package is not installed.
        FileError: There is no such file.
        ModelLoadError: onnxruntime cannot run the graph.
        UnclearModelError: No time axis can be found, or the name, an axis or the length is none.
        RefusedModelError: A node cannot be stepped; the message names it and has the reason.
        InternalError: Something failed that should not, on a graph that onnxruntime loads.
    """
    return convert_graph(
        source, name=name, time_axes=time_axes, batch_axes=batch_axes, constants=constants, length=length,
        original=original, against=against, samplers=samplers, progress=progress,
    )  # fmt: skip


def convert_graph(
    source: Any,
    *,
    name: str,
    time_axes: Mapping[str, int | None] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    constants: Mapping[str, Array] | None = None,
    length: int | None = None,
    original: ReferenceModel | None = None,
    against: str | None = None,
    samplers: Mapping[str, Sampler] | None = None,
    progress: Progress | None = None,
    starts_are_sent: bool = False,
) -> ConvertedModel:
    """Do as `convert`; where `starts_are_sent`, what a recurrence starts from is an input, as `original` takes it."""
    from stepwell_export.graph.onnx_file import require_onnx

    check_name(name)
    check_axes("--time-axis", time_axes)
    check_axes("--batch-axis", batch_axes)
    check_length(length)
    check_by_name("constants", constants, object, "an array")
    check_type("against", against, (str, NoneType), "a text")
    if isinstance(source, str | os.PathLike):
        source = as_path("source", source)
    require_onnx()
    _check_source(source)

    from stepwell_export.streaming.axes.inputs import vocabularies
    from stepwell_export.streaming.step import make_step
    from stepwell_export.verify.onnx_original import OnnxOriginal

    if progress:
        progress("running the graph", 0, 1)
    try:
        step = make_step(
            source, name=name, time_axes=time_axes, batch_axes=batch_axes, constants=constants, length=length,
            starts_are_sent=starts_are_sent,
        )  # fmt: skip
    except (RefusedModelError, UnclearModelError) as exc:
        if original is None:
            exc.fix += " If the graph takes one timestep and its states, it is stepwise already: `stepwell adopt`."
        raise
    except StepwellError:
        raise
    except Exception as exc:
        _check_runs(source)  # what onnxruntime refuses need not be as ONNX has it
        raise InternalError("making the step graph", exc) from exc
    ids = vocabularies(step.graph.graph)
    probe, only_length, observer = None, length, None
    if original is None:
        only_length = _only_length(step)
        original = file = OnnxOriginal(
            source,
            step.inputs.inputs,
            step.outputs,
            only_rows=step.inputs.only_rows,
            only_steps=only_length,
            constants=constants,
        )
        against = against or file.against
        probe = step.activations
        observer = file.observe
    if not samplers:
        constant = [layout.name for layout in step.inputs.external if layout.time is None]
        samplers = {"random": random_sampler(step.manifest, ids, constant=constant)}
    return ConvertedModel(
        step.proto,
        step.manifest,
        original,
        against=against or "the given original",
        samplers=samplers,
        probe=probe,
        only_length=only_length,
        rounding=step.rounding,
        windows=step.windows,
        observer=observer,
        vocabularies=ids,
    )


def _check_runs(source: Any) -> None:
    """Refuse what onnxruntime cannot load.

    Raises:
        ModelLoadError: It cannot.
    """
    from stepwell_export.graph.onnx_file import read_model
    from stepwell_export.graph_session import GraphSession

    GraphSession(read_model(source, weights=True) if isinstance(source, Path) else source)


def _check_source(source: Any) -> None:
    """Refuse what is neither a file nor a model.

    Raises:
        UnclearModelError: It is something else.
    """
    import onnx

    if not isinstance(source, str | os.PathLike | onnx.ModelProto):
        is_content = isinstance(source, bytes | bytearray | memoryview)
        raise UnclearModelError(
            f"The source is {type(source).__name__}; expected the path of an ONNX file, or an onnx.ModelProto.",
            fix="Load the bytes: onnx.load_from_string(content)." if is_content else "Give the file's path.",
        )


def _only_length(step: SequenceStep) -> int | None:
    """Return the one number of timesteps that an ONNX file answers; None: any.

    Raises:
        RefusedModelError: It has a loop written out for another number of timesteps than it declares.
    """
    if not step.written_out or step.only_length in step.written_out:
        return step.only_length
    timed = [layout for layout in step.inputs.external if layout.time is not None]
    declared = {step.declared[layout.name][layout.time or 0] for layout in timed}
    if len(declared) == 1 and (length := declared.pop()) in step.written_out:
        return int(str(length))
    (length, *_) = sorted(step.written_out)
    raise RefusedModelError(
        f"The graph has a loop over time written out for {length} timesteps, and declares any number: of a longer "
        f"sequence, it takes the first {length}.",
        fix=f"If it was made for {length} timesteps, declare that: `--length {length}`. Else give the module itself to "
        "`stepwell export`, or export it with its loop.",
    )
