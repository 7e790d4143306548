"""`stepwell export`: export a trained model as a verified step graph."""

from __future__ import annotations

import atexit
import dataclasses
import gc
import json
import math
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.progress import MofNCompleteColumn, TimeElapsedColumn
from rich.table import Table

from stepwell.commands.flags import Feedback, Grid, axes_of, feedback_of, named_values
from stepwell.commands.interrupted import reported_interrupt
from stepwell.commands.tables import (
    Json,
    covered_lines,
    format_bytes,
    parity_lines,
    print_json,
    progress_bar,
    saved_lines,
    show,
    table,
)
from stepwell.garbage_collection import freeze_startup_objects
from stepwell_client.wire.texts import counted
from stepwell_export.exporter import Exported, export_source
from stepwell_export.forecasts_after_a_move import FirstForecasts
from stepwell_export.precision import Precision, StoreDType
from stepwell_export.replacing import Replaced, Replacement
from stepwell_export.runtime.errors import WeakProofError
from stepwell_export.verify.error_growth import ErrorGrowth
from stepwell_export.verify.report import ChunkChoice, ParityReport
from stepwell_export.verify.tolerance import ATOL, OutputParity
from stepwell_export.weights import Weights

_LONGEST_EXAMPLE = 300  # characters of a body that is printed


@reported_interrupt()
def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A .keras, .h5, .onnx or TorchScript file, package.module:callable, or recipe:NAME=FILE.",
        ),
    ],
    *,
    target: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.onnx", help="The file to write.")],
    name: Annotated[str | None, typer.Option(help="The model's name; by default the file's name.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Largest absolute difference, taken as it is. "
            f"Default: {ATOL:g} of each output's largest value, more with --weights or --store-dtype.",
        ),
    ] = None,
    weights: Annotated[
        Weights | None, typer.Option(help="Store the weights in fewer bits: the file is half or a quarter as large.")
    ] = None,
    store_dtype: Annotated[
        StoreDType | None, typer.Option(help="Store float states in this type: half the memory per stream.")
    ] = None,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Sequences to verify with, (T, ..) or (N, T, ..) by input name."),
    ] = None,
    time_axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=AXIS", help="The time axis of an ONNX file's input, if it is not named so. Repeatable."
        ),
    ] = None,
    batch_axis: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=AXIS", help="Where an ONNX file has the batch, or none. Repeatable."),
    ] = None,
    length: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="The number of timesteps that an ONNX file or a StepSpec was trained with, if it attends to all "
            "timesteps before or has a table of positions.",
        ),
    ] = None,
    feedback: Feedback = None,
    every: Grid = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=A,B,..", help="A name for each number of an input's or output's row. Repeatable."),
    ] = None,
    units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=UNIT,..", help="The unit of an input or output, or one for each number. Repeatable."
        ),
    ] = None,
    accept_weak: Annotated[
        bool, typer.Option("--accept-weak", help="Write the file even if a wrong graph might have been verified.")
    ] = False,
    before: Annotated[
        list[Path] | None,
        typer.Option(metavar="PRE.onnx", help="A graph in front of the model. Repeatable, in order."),
    ] = None,
    after: Annotated[
        list[Path] | None,
        typer.Option(metavar="POST.onnx", help="A graph behind the model. Repeatable, in order."),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SHAPE",
            help="The shape of an input of a TorchScript file, with a batch of 1: x=1x47. Repeatable, in order.",
        ),
    ] = None,
    pcm16: Annotated[
        bool, typer.Option("--pcm16", help="Samples of a recipe are 16-bit integers instead of numbers from -1 to 1.")
    ] = False,
    replaces: Annotated[
        Path | None,
        typer.Option(metavar="OLD.onnx", help="The version that this one replaces: can its streams' states be kept?"),
    ] = None,
    translate: Annotated[
        str | None,
        typer.Option(
            metavar="package.module:callable",
            help="With --replaces: makes the graph that computes the new states from the old ones.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a trained model as a step graph and verify it against the original; if that fails, no file is written."""
    if translate is not None and replaces is None:
        raise typer.BadParameter("--translate needs --replaces OLD.onnx.", param_hint="--translate")
    if tolerance is not None and not math.isfinite(tolerance):
        raise typer.BadParameter(f"{tolerance} is not a finite number.", param_hint="--tolerance")
    freeze_startup_objects()  # importing a framework makes a million objects, none of which is garbage
    atexit.register(gc.freeze)  # the interpreter would traverse them all once more at its end
    with progress_bar(MofNCompleteColumn(), TimeElapsedColumn()) as bars:
        task = bars.add_task("loading the model", total=None)

        def progress(phase: str, done: int, total: int) -> None:
            bars.update(task, description=phase, completed=done, total=total)

        exported, weakness = _exported(
            source,
            target,
            name=name,
            tolerance=tolerance,
            precision=Precision(weights, store_dtype),
            verify=verify,
            time_axes=axes_of("--time-axis", time_axis),
            batch_axes=axes_of("--batch-axis", batch_axis),
            length=length,
            feedback=feedback_of(feedback),
            every=every,
            labels={
                name: [label.strip() for label in text.split(",")]
                for name, text in named_values("--labels", labels or [], "NAME=A,B,..").items()
            },
            units={
                name: [unit.strip() for unit in text.split(",")]
                for name, text in named_values("--units", units or [], "NAME=UNIT,..").items()
            },
            accept_weak=accept_weak,
            before=before or (),
            after=after or (),
            replaces=None if replaces is None else Replaced(replaces, translate),
            pcm16=pcm16,
            examples={
                key: _shape(text) for key, text in named_values("--example", example or [], "NAME=SHAPE").items()
            },
            progress=progress,
        )
    if as_json:
        print_json(_report(exported, written=weakness is None))
    else:
        _show(exported, written=weakness is None)
    if weakness is not None:
        raise weakness


def _exported(source: str, target: Path, **options: Any) -> tuple[Exported, WeakProofError | None]:
    """Return what was written; or what would have been, and why it was not."""
    try:
        return export_source(source, target, **options), None
    except WeakProofError as exc:
        return exc.exported, exc


def _report(exported: Exported, *, written: bool) -> dict[str, object]:
    return {
        "file": str(exported.path) if written else None,
        "name": exported.name,
        "bytes": exported.nbytes,
        **exported.report.as_json(),
        "saved": {name: {"before": before, "after": after} for name, (before, after) in exported.saved.items()},
        **({} if exported.replacement is None else {"replaces": _replaces(exported.replacement, written=written)}),
    }


def _replaces(replacement: Replacement, *, written: bool) -> dict[str, object]:
    return {
        "file": str(replacement.old),
        "version": replacement.version,
        "states": replacement.states,
        "reasons": replacement.reasons,
        "translation": str(replacement.translation) if written and replacement.translation else None,
        "first_forecasts": None if replacement.forecasts is None else asdict(replacement.forecasts),
    }


def _show(exported: Exported, *, written: bool) -> None:
    show(
        _outputs_table(exported.name, exported.report),
        *_report_lines(exported.report),
        *saved_lines(exported.saved),
        *([] if exported.replacement is None else _replacement_lines(exported.replacement)),
        *([f"written: {exported.path} ({format_bytes(exported.nbytes)})", *_next_lines(exported)] if written else []),
    )


def _next_lines(exported: Exported) -> Iterator[str]:
    """Yield the command that serves the file, and one that sends it a timestep of zeros."""
    path = exported.path
    is_versioned = path.name == "model.onnx" and path.parent.name.isdecimal()
    folder, name = (path.parents[2], path.parents[1].name) if is_versioned else (path.parent, path.stem)
    zeros = {
        each.name: np.zeros(each.shape, np.bool_ if each.dtype == "bool" else np.int64).tolist()
        for each in exported.inputs
    }
    body = shlex.quote(json.dumps({"inputs": zeros}))
    yield f"serve:   stepwell serve --models {shlex.quote(str(folder))}"
    if len(body) <= _LONGEST_EXAMPLE:
        url = f"http://127.0.0.1:8000/v1/models/{name}/streams/first/step"
        yield f"step:    curl {url} -H 'content-type: application/json' -d {body}"


_STATES = {
    "compatible": "the states of its streams can be kept",
    "translate": "the states of its streams can be translated",
    "incompatible": "the states of its streams cannot be used: give a translation with --translate, or reset them",
}
_TAKES = {"keep": "keep", "translate": "translate", "reset": "reset", "own": "own state"}


def _replacement_lines(replacement: Replacement) -> Iterator[str]:
    """Yield what becomes of the states of the version that is replaced, and why."""
    yield (
        f"states:  {replacement.states} with version {replacement.version} ({replacement.old}): "
        f"{_STATES[replacement.states]}"
    )
    for reason in replacement.reasons:
        yield f"         {reason}"
    if replacement.translation is not None:
        yield f"         translation: {replacement.translation}, checked on states of version {replacement.version}"
    if replacement.forecasts is None:
        yield "         which take is best is measured on own data: --verify FILE.npz"
    else:
        yield from _forecast_lines(replacement.forecasts)


def _forecast_lines(found: FirstForecasts) -> Iterator[str]:
    """Yield how good the first forecasts after a move are, and what to take."""
    several = sum(map(len, found.errors.values())) > 1
    what = "errors against the truth" if found.against == "truth" else "differences from own states, without a truth"
    yield f"first forecasts: {what}, {found.forecasts} timesteps after each of {counted(found.moves, 'move')}"
    for output, labels in found.errors.items():
        for label, of in labels.items():
            place = f"{output}[{label}]" if several else output
            yield f"         {place}: " + ", ".join(f"{_TAKES[take]} {error:.4g}" for take, error in of.items())
    if several:
        overall = ", ".join(f"{_TAKES[take]} {error:.4g}" for take, error in found.overall.items())
        yield f"         all, in standard deviations: {overall}"
    warm = f" with {counted(found.warm_steps, 'warm step')}" if found.warm_steps else ""
    yield f"         recommended: take {found.recommended}{warm}, which has the least error"


def _outputs_table(name: str, report: ParityReport) -> Table:
    """Return one line per output: how far it was off, where, and over how many numbers; it fits into 80 columns."""
    lines = [
        (line.name, f"{line.max_abs:.1e}", f"{line.max_rel:.1e}", f"{line.atol:.1e}", f"{line.at_step:,}",
         f"{line.sequence} {line.row}", f"{line.compared:,}")
        for output in report.outputs for line in (output, *output.labels.values())
    ]  # fmt: skip
    columns = ("output", "difference", "relative", "allowed", "timestep", "sequence", "numbers")
    return table(f"{name}: step by step against {report.parity.against}", columns, lines)


def _report_lines(report: ParityReport) -> Iterator[str]:
    """Yield a line for each further part of the verification, including skipped parts."""
    yield f"parity:  {parity_lines(report.parity.model_dump())}"
    for line in report.outputs:
        yield f"values:  {_scale_line(line)}"
    for reason in report.reasons:
        yield f"weak:    {reason}; a wrong graph might have passed"
    yield from covered_lines(dataclasses.asdict(report.covered))
    if report.drift is not None:
        yield f"long:    {_drift_line(report.drift)}"
    yield f"alone:   {report.max_abs_alone:.1e} largest difference of a row run alone from the same row in a batch"
    yield f"saved:   {report.max_abs_saved:.1e} largest difference that saving and restoring states each timestep makes"
    if report.chunk_lengths:
        lengths = " and of ".join(", ".join(map(str, part)) for part in report.chunk_lengths)
        difference = f"{report.max_abs_chunk:.1e} largest difference"
        yield f"chunks:  {difference} of chunks of {lengths} timesteps from single steps"
    if report.chunk is not None:
        yield f"speed:   {_chunk_line(report.chunk)}"
    if report.kept:
        yield f"kept:    {report.kept}"
    if report.front is not None:
        names = ", ".join(line.name for line in report.front.outputs)
        yield f"learned: from {names}, which differ from the original by at most {report.front.parity.max_abs:.1e}"
    for skipped in report.skipped:
        yield f"skipped: {skipped.what}: {skipped.why}"


def _scale_line(line: OutputParity) -> str:
    largest, median, distinct = line.scale.largest, line.scale.median, line.scale.distinct
    return f"output {line.name}: {largest:.1e} at most, {median:.1e} in the middle, {distinct:.0%} distinct"


def _drift_line(drift: ErrorGrowth) -> str:
    line = (
        f"{drift.max_abs:.1e} largest difference in a run of {drift.steps:,} timesteps (at {drift.at_step:,}): "
        f"{drift.first:.1e} in the first {drift.ends}, {drift.last:.1e} in the last"
    )
    return f"{line}; {drift.note}" if drift.note else line


def _chunk_line(chunk: ChunkChoice) -> str:
    if chunk.chunk == "step":
        return f"a chunk takes as many runs as it has timesteps: {chunk.why}"
    alone = {timing.steps > 1: timing for timing in chunk.timings if timing.rows == 1}
    several, single = alone[True], alone[False]
    return (
        f"a chunk of {several.steps} timesteps takes {several.dynamic:,.0f} us in one run, {several.stepwise:,.0f} us "
        f"step by step ({chunk.gain:.1f} times): {chunk.why}; a single step takes {single.dynamic:.1f} us, and "
        f"{single.stepwise:.1f} us without a time axis in the graph"
    )


def _shape(text: str) -> list[int]:
    parts = text.split("x")
    if not all(part.isascii() and part.isdigit() and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is no shape; expected 1x47.", param_hint="--example")
    return [int(part) for part in parts]
