"""`stepwell replay`: a recording through a model; its predictions to a table or a picture."""

from __future__ import annotations

import contextlib
import csv
import math
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from msgspec.structs import asdict

from stepwell.addons.charts import line_chart, lines_of, stacked
from stepwell.addons.recorded import open_data
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
from stepwell.addons.replay.session import CHUNK, Predictions, ReplayError, ReplaySession
from stepwell.commands.flags import check_ending
from stepwell.commands.tables import Json, key_value_table, print_json, show
from stepwell.service_calls import DEFAULT_URL, HttpApi, Key, Url, model_path
from stepwell_client import Client, Model
from stepwell_client.columns import prediction_columns
from stepwell_client.memory import MEMORY
from stepwell_client.protocol.decoding import ModelInfo
from stepwell_client.wire.ids import is_stream_id
from stepwell_client.wire.stream_templates import is_template
from stepwell_export.runtime.manifest import InputSpec

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
    with _model(model, url, key) as (served, limits):
        described = served.describe()
        rules = row_rules(time_column, described.every, order=order, every=every, take=take, fill=fill, gap=gap)
        if speed is None and time_column is not None and rules is None:
            speed = 1.0
        if speed is not None and rate is not None:
            raise typer.BadParameter("the pace is that of the recording or a rate.", param_hint="--time-column, --rate")
        recorded = open_data(
            [file], [InputSpec.model_validate(asdict(each)) for each in described.inputs], choice, rules
        )
        has_streams = stream_column is not None or file.suffix.lower() == ".npz"
        name = stream or (None if has_streams else _new_stream(file))
        with data_progress() as progress:
            progress.start("checking the data", None)
            n_rows = recorded.check(progress.advance)
            if name is None:
                recorded.check_stream_ids()
            progress.start("replaying", n_rows)
            session = ReplaySession(
                served,
                recorded,
                name,
                reset=reset,
                append=append,
                chunk=_chunk(described, limits),
                kept_streams=0 if plot is None else _DRAWN_STREAMS,
            )
            started = time.monotonic()
            with _written(output, described) as write:
                for predictions in _sent(session, speed, rate):
                    write(predictions)
                    progress.advance(len(predictions.rows))
        seconds = time.monotonic() - started
    if plot is not None:
        _write(plot, _picture(session, described))
    report = {
        "model": served.name,
        "rows": session.n_rows,
        "streams": list(session.records),
        "late": recorded.n_late,
        "left_out": recorded.n_left_out,
        "seconds": round(seconds, 3),
        "rows_per_s": round(session.n_rows / max(seconds, 1e-9), 1),
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
def _model(model: str, url: str, key: str | None) -> Iterator[tuple[Model, Mapping[str, int]]]:
    """Yield a model of a running service and its limits; or of an engine in this process, if a model file is given."""
    if not model.endswith(".onnx"):
        with HttpApi(url, key) as api:  # fails at once if nothing responds; the client would wait for it
            api.get(model_path(model))
            limits = api.get("/v1/info")["limits"]
        with Client(url, key) as client:
            yield client.model(model), limits
        return
    path = Path(model).absolute()
    if not path.is_file():
        raise ReplayError(f"{model} is not there; expected a model file.", fix="Check the path.")
    with tempfile.TemporaryDirectory(prefix="stepwell-replay-") as folder:
        for part in path.parent.glob(f"{path.name}*"):  # with its weights and its manifest, if it has these beside it
            shutil.copy(part, folder)  # a link out of a models folder is refused
        with Client(MEMORY, models=folder) as client:
            yield client.model(path.stem), {}


def _chunk(described: ModelInfo, limits: Mapping[str, int]) -> int:
    """Return the timesteps of one request: those of large rows would not fit into the body that a service takes."""
    specs = [*described.inputs, *described.outputs]
    row_bytes = sum(math.prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in specs) or 1
    most = min(CHUNK, limits.get("max_chunk_steps", CHUNK))
    return max(1, min(most, limits.get("max_body_bytes", 8 << 20) // 2 // row_bytes))


def _sent(session: ReplaySession, speed: float | None, rate: float | None) -> Iterator[Predictions]:
    if speed is not None:
        first: list[float] = []

        def due(_position: int, seconds: float) -> float:
            first[:] = first or [seconds]
            return (seconds - first[0]) / speed

        return session.at_times(due)
    if rate is not None:
        return session.at_times(lambda position, _seconds: position / rate)
    return session.in_chunks()


@contextlib.contextmanager
def _written(path: Path | None, described: ModelInfo) -> Iterator[Any]:
    """Yield a function that writes predictions to a CSV file; without a path it does nothing."""
    if path is None:
        yield lambda _: None
        return
    try:
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow(["row", "stream", "step", *chain(*prediction_columns(described.outputs))])

            def write(predictions: Predictions) -> None:
                count = len(predictions.rows)
                # as text: the shortest that is read as the same number of the output's dtype
                flat = [predictions.outputs[each.name].reshape(count, -1).astype(str) for each in described.outputs]
                for n, row in enumerate(predictions.rows):
                    values = [value for part in flat for value in part[n]]
                    writer.writerow([row, predictions.stream, predictions.first_step + n, *values])

            yield write
    except OSError as exc:
        raise ReplayError(f"{path} cannot be written: {exc.strerror}.", fix="Check the path.") from exc


def _picture(session: ReplaySession, described: ModelInfo) -> str:
    charts = []
    for record in (record for record in session.records.values() if record.is_kept):
        for output in described.outputs:
            values = np.array([np.ravel(each[output.name]) for each in record.outputs], np.float64)
            lines = lines_of(values, output.labels)
            charts.append(line_chart(f"{output.name} of {record.stream}", lines, record.step - len(values) + 1))
    return stacked(charts)


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
