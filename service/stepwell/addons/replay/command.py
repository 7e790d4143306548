"""`stepwell replay`: a recording through a model; its predictions to a table or a picture."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from msgspec.structs import asdict

from stepwell.addons.recorded import Rows, open_data
from stepwell.addons.recorded.flags import (
    InputColumns,
    RowClock,
    RowFill,
    RowGap,
    RowOrder,
    RowTake,
    TimeUnitFlag,
    column_choice,
    data_progress,
    left_out_in_words,
    row_rules,
)
from stepwell.addons.recorded.sender import CALL_S, RequestSizes, RowSender, failures_in_words
from stepwell.addons.replay.predictions import ReplayError, ReplayPredictions, csv_lines
from stepwell.commands.flags import check_ending
from stepwell.commands.service_calls import DEFAULT_URL, HttpApi, Key, Url, model_path
from stepwell.commands.tables import Json, key_value_table, print_json, show
from stepwell_client import Client, Model
from stepwell_client.memory import MEMORY
from stepwell_client.wire.ids import is_stream_id
from stepwell_client.wire.stream_templates import is_template
from stepwell_export.runtime.manifest import Array, InputSpec

_NAMED = 5
_DRAWN_STREAMS = 4


def replay(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The name of a served model; or a model file, which is run here.")
    ],
    file: Annotated[
        Path, typer.Argument(metavar="DATA", help="The recording: CSV, Parquet or NPZ, a row per timestep.")
    ],
    *,
    stream: Annotated[
        str | None,
        typer.Option(
            help="The stream's id; or columns in a template: 'pump-{id}'. Default: a new one, named after the file."
        ),
    ] = None,
    stream_column: Annotated[str | None, typer.Option(metavar="C", help="The column with each row's stream.")] = None,
    inputs: InputColumns = None,
    time_column: Annotated[
        str | None,
        typer.Option(
            "--time-column", "--time", metavar="C", help="Send rows at the times in this column: seconds, or ISO 8601."
        ),
    ] = None,
    time_unit: TimeUnitFlag = "s",
    order: RowOrder = None,
    every: RowClock = None,
    take: RowTake = None,
    fill: RowFill = "hold",
    gap: RowGap = 60,
    speed: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="With --time-column, how many times as fast. Default: 1; with --order or --every no pace."
        ),
    ] = None,
    rate: Annotated[float | None, typer.Option(min=0.001, help="Send so many rows per second.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Reset streams that exist.")] = False,
    append: Annotated[bool, typer.Option("--append", help="Continue streams that exist.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write predictions to this CSV file.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="OUT.svg", help="Draw the predictions as a picture.")] = None,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Replay a recording through a model: as fast as possible, or at the pace of --time-column or --rate.

    Columns are found by name, in any order: the labels of the input, or INPUT[0], INPUT[1] and so on.
    """
    if stream is not None and is_template(stream) and stream_column is None:
        stream, stream_column = None, stream
    _check_flags(stream, stream_column, time_column, speed)
    check_ending("--output", output, ".csv")
    check_ending("--plot", plot, ".svg")
    if reset and append:
        raise typer.BadParameter("a stream is either reset or continued.", param_hint="--reset, --append")
    choice = column_choice(stream_column, time_column, time_unit, inputs)
    with _client(model, url, key) as (client, name, limits):
        served = client.model(name)
        described = served.describe()
        rules = row_rules(time_column, described.every, order=order, every=every, take=take, fill=fill, gap=gap)
        due = _pace(time_column if rules is None else None, speed, rate)
        inputs_of = [InputSpec.model_validate(asdict(each)) for each in described.inputs]
        recorded = open_data([file], inputs_of, choice, rules)
        has_streams = stream_column is not None or file.suffix.lower() == ".npz"
        one = stream or (None if has_streams else _new_stream(file))
        with data_progress() as progress, csv_lines(output, described.outputs) as lines:
            progress.start("checking the data", None)
            n_rows = recorded.check(progress.advance)
            if one is None:
                recorded.check_stream_ids()
            streams = list(recorded.streams) if one is None else [one]
            steps = _opened(served, streams, reset=reset, append=append)
            predictions = ReplayPredictions(
                streams, described.outputs, lines, kept_streams=0 if plot is None else _DRAWN_STREAMS
            )
            progress.start("replaying", n_rows)
            sender = RowSender(
                client,
                name,
                streams,
                predictions,
                steps=steps,
                sizes=RequestSizes.of([*described.inputs, *described.outputs], limits),
                advance=progress.advance,
            )
            started = time.monotonic()
            rows = recorded.read() if one is None else map(_of_one_stream, recorded.read())
            if due is None:
                sender.run(rows)
            else:
                sender.run_at(rows, due)
        seconds = time.monotonic() - started
    if sender.failures:
        first = next(iter(sender.failures.values()))
        raise ReplayError(failures_in_words(sender.failures, _NAMED), fix=first.error.fix)
    if plot is not None:
        _write(plot, predictions.picture())
    report = {
        "model": served.name,
        "rows": sender.applied,
        "streams": streams,
        "late": recorded.n_late,
        "left_out": recorded.n_left_out,
        "seconds": round(seconds, 3),
        "rows_per_s": round(sender.applied / max(seconds, 1e-9), 1),
        "output": None if output is None else str(output),
        "plot": None if plot is None else str(plot),
    }
    if as_json:
        print_json(report)
    else:
        _show(report)


def _check_flags(stream: str | None, stream_column: str | None, time_column: str | None, speed: float | None) -> None:
    if stream is not None and stream_column is not None:
        raise typer.BadParameter("rows have one stream, or each has its own.", param_hint="--stream, --stream-column")
    if stream is not None and not is_stream_id(stream):
        raise typer.BadParameter(
            f"{stream!r} is not a stream id: expected 1 to 128 of A-Z a-z 0-9 . _ : @ -.", param_hint="--stream"
        )
    if speed is not None and time_column is None:
        raise typer.BadParameter("it needs --time-column.", param_hint="--speed")


@contextlib.contextmanager
def _client(model: str, url: str, key: str | None) -> Iterator[tuple[Client, str, Mapping[str, int]]]:
    """Yield a client, the model's name and the service's limits; for a model file, of an engine in this process."""
    if not model.endswith(".onnx"):
        with HttpApi(url, key) as api:  # fails at once if nothing responds; the client would wait for it
            api.get(model_path(model))
            limits = api.get("/v1/info")["limits"]
        with Client(url, key, CALL_S, keep_bytes=0) as client:
            yield client, model, limits
        return
    path = Path(model).absolute()
    if not path.is_file():
        raise ReplayError(f"{model} is not there; expected a model file.", fix="Check the path.")
    with tempfile.TemporaryDirectory(prefix="stepwell-replay-") as folder:
        for part in path.parent.glob(f"{path.name}*"):  # with its weights and its manifest, if it has these beside it
            shutil.copy(part, folder)  # a link out of a models folder is refused
        with Client(MEMORY, models=folder) as client:
            yield client, path.stem, {}


def _opened(model: Model, streams: Sequence[str], *, reset: bool, append: bool) -> Array:
    """Return the step of each stream, after checking that it may take a recording, `(streams,)` int64."""
    steps = []
    for name in streams:
        stream = model.stream(name)
        step = stream.resume()
        if step and not append:
            if not reset:
                raise ReplayError(
                    f"Stream {name!r} is at step {step}; its state would mix with that of the recording.",
                    fix="Reset it with --reset, continue it with --append, or give another --stream.",
                )
            stream.reset()
            step = 0
        steps.append(step)
    return np.array(steps, np.int64)


def _pace(time_column: str | None, speed: float | None, rate: float | None) -> Callable[[int, float], float] | None:
    """Return when a row is due, by its position and its time, in seconds after the first one; None: at once.

    Raises:
        typer.BadParameter: There are two paces (exit code 2).
    """
    speed = 1.0 if speed is None and time_column is not None else speed
    if speed is not None and rate is not None:
        raise typer.BadParameter("the pace is that of the recording or a rate.", param_hint="--time-column, --rate")
    if rate is not None:
        return lambda position, _seconds: position / rate
    if speed is None:
        return None
    first: list[float] = []

    def due(_position: int, seconds: float) -> float:
        first[:] = first or [seconds]
        return (seconds - first[0]) / speed

    return due


def _of_one_stream(rows: Rows) -> Rows:
    return replace(rows, codes=np.zeros_like(rows.codes))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ReplayError(f"{path} cannot be written: {exc.strerror}.", fix="Check the path.") from exc


def _new_stream(file: Path) -> str:
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in file.stem)[:100]
    return f"{name or 'replay'}-{secrets.token_hex(3)}"


def _show(report: dict[str, Any]) -> None:
    streams = report["streams"]
    facts = {
        "rows": f"{report['rows']:,}",
        "streams": f"{len(streams):,}: {', '.join(streams[:3])}{', ...' if len(streams) > 3 else ''}",
        "time": f"{report['seconds']:.1f} s, {report['rows_per_s']:,.0f} rows/s",
    }
    facts |= left_out_in_words(report["late"], report["left_out"])
    facts |= {name: report[name] for name in ("output", "plot") if report[name]}
    if not report["output"] and not report["plot"]:
        facts["predictions"] = "not kept; -o FILE.csv writes them, --plot FILE.svg draws them"
    show(key_value_table(f"replayed through {report['model']}", facts))
