"""`stepwell export`: export a trained model as a verified step graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from model_export.export import Exported, export_source
from model_export.precision import Precision, StoreDType
from model_export.verify import ATOL
from model_export.weights import Weights
from service.commands.feedback import Feedback, feedback_of
from service.commands.tables import format_bytes, named_values, saved_lines, show
from service.commands.verification_report import outputs_table, report_lines


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="A .keras, .h5 or .onnx file, or package.module:callable returning a model."
        ),
    ],
    *,
    target: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.onnx", help="The file to write.")],
    name: Annotated[str | None, typer.Option(help="The model's name; by default the file's name.")] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Absolute tolerance of the verification; the relative tolerance is ten times that. "
            f"Default: {ATOL:g}, more with --weights or --store-dtype.",
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
            metavar="INPUT=AXIS", help="The time axis of an ONNX file's input, if it is not detected. Repeatable."
        ),
    ] = None,
    feedback: Feedback = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Export a trained model as a step graph and verify it against the original; if that fails, no file is written."""
    console = Console(stderr=True)
    bars = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bars:
        task = bars.add_task("loading the model", total=None)

        def progress(phase: str, done: int, total: int) -> None:
            bars.update(task, description=phase, completed=done, total=total)

        exported = export_source(
            source,
            target,
            name=name,
            tolerance=tolerance,
            precision=Precision(weights, store_dtype),
            verify=verify,
            time_axes=_axes(time_axis or []),
            feedback=feedback_of(feedback),
            progress=progress,
        )
    if as_json:
        typer.echo(json.dumps(_report(exported), indent=2))
    else:
        _show(exported)


def _axes(texts: list[str]) -> dict[str, int]:
    axes = {}
    for name, text in named_values("--time-axis", texts, "INPUT=AXIS").items():
        if not text.removeprefix("-").isdecimal():
            raise typer.BadParameter(
                f"{name}={text}: {text!r} is not an axis; expected an integer, counted from 0.",
                param_hint="--time-axis",
            )
        axes[name] = int(text)
    return axes


def _report(exported: Exported) -> dict[str, object]:
    return {
        "file": str(exported.path),
        "name": exported.name,
        "bytes": exported.nbytes,
        **exported.report.as_json(),
        "saved": {name: {"before": before, "after": after} for name, (before, after) in exported.saved.items()},
    }


def _show(exported: Exported) -> None:
    show(
        outputs_table(exported.name, exported.report),
        *report_lines(exported.report),
        *saved_lines(exported.saved),
        f"written: {exported.path} ({format_bytes(exported.nbytes)})",
    )
