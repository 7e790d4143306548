"""`stepwell backtest`: recorded streams through two models: how far their outputs differ, and which is more exact."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stepwell.addons.backtest.differences import OutputDifferences
from stepwell.addons.backtest.picture import picture
from stepwell.addons.backtest.run import BacktestError, Comparison, compare, compared_outputs, joint_inputs, load_models
from stepwell.addons.backtest.truths import chosen_truths
from stepwell.addons.recorded import open_data
from stepwell.addons.recorded.flags import (
    DataFiles,
    InputColumns,
    RowClock,
    RowFill,
    RowGap,
    RowOrder,
    RowTake,
    StreamColumn,
    TimeColumn,
    TimeUnitFlag,
    column_choice,
    data_progress,
    left_out_in_words,
    row_rules,
)
from stepwell.commands.error_table import error_table
from stepwell.commands.flags import check_ending, named_values
from stepwell.commands.tables import Json, print_json, show, table
from stepwell_client.wire.texts import counted, listed
from stepwell_export.runtime.files import write_atomically
from stepwell_export.runtime.labels import labels_of_outputs

_LISTED = 10


def backtest(
    new: Annotated[Path, typer.Argument(metavar="NEW.onnx", help="The step graph that is tried.")],
    data: DataFiles,
    *,
    against: Annotated[Path, typer.Option(metavar="OLD.onnx", help="The step graph that it is compared with.")],
    stream_column: StreamColumn = None,
    inputs: InputColumns = None,
    time_column: TimeColumn = None,
    time_unit: TimeUnitFlag = "s",
    order: RowOrder = None,
    every: RowClock = None,
    take: RowTake = None,
    fill: RowFill = "hold",
    gap: RowGap = 60,
    limit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=ABS",
            help="The largest difference of an output, or of NAME[LABEL], that is allowed. Repeatable.",
        ),
    ] = None,
    truth: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=C,C", help="The columns of the truth of an output's numbers, in order. Repeatable."),
    ] = None,
    horizon: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="With --truth: the truth of a prediction is N rows later. A-B: the output has A to B timesteps ahead. "
            "Default: 1.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.svg", help="Draw the differences.")] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of onnxruntime in one run.")] = 1,
    as_json: Json = False,
) -> None:
    """Run recorded streams through two models and compare their outputs; exit with 1 if one differs too much.

    Both are also compared with the truth: the next input if the model has a feedback rule, or the columns of --truth.
    Each stream starts from the initial state of each model. NPZ files have an array `x:INPUT` of shape (N, T, ..)
    for each input.
    """
    check_ending("--plot", plot, ".svg")
    if horizon is not None and not truth:
        raise typer.BadParameter("it is for the columns of --truth; a feedback rule's truth is 1 later.",
                                 param_hint="--horizon")  # fmt: skip
    choice = column_choice(stream_column, time_column, time_unit, inputs)
    newer, older = load_models([new, against], threads)
    rules = row_rules(time_column, newer.manifest.every, order=order, every=every, take=take, fill=fill, gap=gap)
    specs, _ = compared_outputs(newer, older)
    limits = _limits(limit, {spec.name: labels_of_outputs(newer.manifest)[spec.name] for spec in specs})
    columns = {
        name: [column.strip() for column in text.split(",")]
        for name, text in named_values("--truth", truth or (), "NAME=COLUMN,COLUMN").items()
    }
    truths, more = chosen_truths(newer, older, specs, columns, _horizons(horizon))
    choice = replace(choice, inputs={**choice.inputs, **{spec.name: columns[name] for name, spec in more.items()}})
    recorded = open_data(data, [*joint_inputs(newer, older), *more.values()], choice, rules)
    with data_progress() as progress:
        progress.start("checking the data", None)
        total = recorded.check(progress.advance)
        progress.start("running both models", total)
        comparison = compare(newer, older, recorded, progress.advance, truths=truths)
    title = f"{new} against {against}"
    if plot is not None:
        write_atomically(plot, picture(comparison, title, limits).encode())
    beyond = [each for each in _limited(comparison) if each.largest[0] > limits.get(each.name, math.inf)]
    if as_json:
        counts = {"late": recorded.n_late, "left_out": recorded.n_left_out}
        print_json(_report(comparison, new, against, limits, ok=not beyond) | counts)
    else:
        left_out = [f"{name}: {text}" for name, text in left_out_in_words(recorded.n_late, recorded.n_left_out).items()]
        show(*_tables(comparison, title, limits), *left_out, *([f"plot: {plot}"] if plot else []))
    if beyond:
        raise BacktestError(
            "; ".join(
                f"output {each.name!r} differs by {each.largest[0]:g} (stream {comparison.streams[each.largest[1]]!r}, "
                f"step {each.largest[2]:,}), and {limits[each.name]:g} is allowed"
                for each in beyond
            )
            + "."
        )


def _horizons(text: str | None) -> tuple[int, int] | int:
    """Return how many rows later a truth is, or the truths of the first and of the last timestep ahead."""
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", "1" if text is None else text)
    if found is None or (found[2] is not None and int(found[2]) <= int(found[1])):
        raise typer.BadParameter(
            f"{text!r} is neither a number of rows nor a range such as 1-12.", param_hint="--horizon"
        )
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


def _limits(texts: Iterable[str] | None, outputs: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the limits by output, or by `NAME[LABEL]`."""
    limits = {}
    known = [*outputs, *(f"{name}[{label}]" for name, labels in outputs.items() for label in labels)]
    for name, text in named_values("--limit", texts or (), "NAME=ABS").items():
        if name not in known:
            raise typer.BadParameter(f"there is no output {name} to compare; there are {listed(known)}.",
                                     param_hint="--limit")  # fmt: skip
        try:
            limits[name] = float(text)
        except ValueError:
            limits[name] = math.nan
        if not limits[name] >= 0:
            raise typer.BadParameter(f"{name}={text}: a limit is a number of at least 0.", param_hint="--limit")
    return limits


def _limited(comparison: Comparison) -> Iterator[OutputDifferences]:
    """Yield the outputs, each with its labels behind it."""
    for each in comparison.outputs:
        yield each
        yield from each.labels.values()


def _tables(comparison: Comparison, title: str, limits: dict[str, float]) -> Iterator[Any]:
    rows = [
        (each.name, _number(each.largest[0]), _where(each, comparison), f"{each.mean:.3g}", _number(each.p99),
         "-" if each.disagree is None else f"{each.disagree / each.timesteps:.2%}", f"{each.non_finite:,}",
         f"{limits[each.name]:g}" if each.name in limits else "-")
        for each in _limited(comparison)
    ]  # fmt: skip
    columns = ("output", "largest", "at", "mean", "p99", "disagree", "non-finite", "limit")
    yield f"{title}: {comparison.timesteps:,} timesteps of {counted(len(comparison.streams), 'stream')}"
    yield table("Differences", columns, rows)
    if errors := _errors(comparison):
        yield error_table(errors)
    if worst := comparison.worst(_LISTED):
        largest = {each.name: each.of_streams(len(comparison.streams)) for each in comparison.outputs}
        yield "Streams that differ most"
        yield table(
            "",
            ("stream", *largest),
            [(comparison.streams[code], *(_number(values[code]) for values in largest.values())) for code in worst],
        )
    if comparison.not_compared:
        yield f"not compared: {', '.join(comparison.not_compared)} (in one of the models only, or random)"


def _where(each: OutputDifferences, comparison: Comparison) -> str:
    difference, code, step = each.largest
    return f"{comparison.streams[code]}, step {step:,}" if difference else "-"


def _number(value: float) -> str:
    return "not finite" if value == math.inf else f"{value:.3g}"


def _report(comparison: Comparison, new: Path, old: Path, limits: dict[str, float], *, ok: bool) -> dict[str, Any]:
    n_streams = len(comparison.streams)
    largest = {each.name: each.of_streams(n_streams) for each in comparison.outputs}
    return {
        "new": str(new),
        "against": str(old),
        "streams": n_streams,
        "timesteps": comparison.timesteps,
        "ok": ok,
        "outputs": {each.name: _output(each, comparison, limits) for each in comparison.outputs},
        "worst": [
            {"stream": comparison.streams[code], "max_abs": {name: _finite(v[code]) for name, v in largest.items()}}
            for code in comparison.worst(_LISTED)
        ],
        "not_compared": comparison.not_compared,
        "error": _errors(comparison),
    }


def _errors(comparison: Comparison) -> dict[str, Any] | None:
    """Return the errors by output and label, as a release has them; None: there is no truth."""
    return {
        name: {label: found._asdict() for label, found in labels.items()} for name, labels in comparison.errors.items()
    } or None


def _output(each: OutputDifferences, comparison: Comparison, limits: Mapping[str, float]) -> dict[str, Any]:
    difference, code, step = each.largest
    return {
        "max_abs": _finite(difference),
        "mean_abs": each.mean,
        "p99_abs": _finite(each.p99),
        "disagree": None if each.disagree is None else each.disagree / each.timesteps,
        "non_finite": each.non_finite,
        "at": {"stream": comparison.streams[code], "step": step} if difference else None,
        "limit": limits.get(each.name),
        "labels": {label: _label(found, limits.get(found.name)) for label, found in each.labels.items()},
        "over_time": [
            {"from": span.first, "to": span.last, "timesteps": span.timesteps, "p50_abs": _finite(span.p50),
             "p90_abs": _finite(span.p90), "max_abs": _finite(span.largest)}
            for span in each.over_time.spans()
        ],
    }  # fmt: skip


def _label(each: OutputDifferences, limit: float | None) -> dict[str, Any]:
    return {"max_abs": _finite(each.largest[0]), "mean_abs": each.mean, "p99_abs": _finite(each.p99), "limit": limit}


def _finite(value: float) -> float | None:
    """Return a number for JSON; null stands for a difference that is not finite."""
    return float(value) if math.isfinite(value) else None
