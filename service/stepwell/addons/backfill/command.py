"""`stepwell backfill`: recorded data into the streams of a running service, and their predictions into a file."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from stepwell.addons.backfill.history import Past, past_of
from stepwell.addons.backfill.partial_predictions import BackfillError, PartialPredictionsFile
from stepwell.addons.backfill.writers import writer_of
from stepwell.addons.recorded import RecordedData, Rows, gathered, open_data
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
from stepwell.addons.recorded.sender import CALL_S, RequestSizes, RowSender, failures_in_words
from stepwell.commands.service_calls import DEFAULT_URL, HttpApi, Key, Url, model_path
from stepwell.commands.tables import Json, key_value_table, print_json, show
from stepwell_client import Client, ClientError
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import InputSpec, OutputSpec

_NAMED = 5


def backfill(
    data: DataFiles,
    *,
    model: Annotated[str, typer.Option(metavar="M", help="The model's name.")],
    stream_column: StreamColumn = None,
    inputs: InputColumns = None,
    time_column: TimeColumn = None,
    time_unit: TimeUnitFlag = "s",
    order: RowOrder = None,
    every: RowClock = None,
    take: RowTake = None,
    fill: RowFill = "hold",
    gap: RowGap = 60,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the prediction of each row: .csv, .parquet or .npz."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Apply the rows of streams that were reset from the first one on.")
    ] = False,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Feed recorded data into the streams of a running service, each row once.

    An interrupted run is continued by the same command: rows that were applied are not applied again. Data that begins
    with the rows of an earlier run is continued after them. The files are read once before anything is sent.
    """
    started = time.monotonic()
    write = None if predictions is None else writer_of(predictions)
    choice = column_choice(stream_column, time_column, time_unit, inputs)
    with HttpApi(url, key) as service:
        described = service.get(model_path(model))
        limits = service.get("/v1/info")["limits"]
    specs = [InputSpec.model_validate(each) for each in described["inputs"]]
    outputs = [OutputSpec.model_validate(each) for each in described["outputs"]]
    grid = described.get("every")
    rules = row_rules(time_column, grid, order=order, every=every, take=take, fill=fill, gap=gap)
    recorded = open_data(data, specs, choice, rules)
    with data_progress() as progress:
        progress.start("checking the data", None)
        n_rows = recorded.check(progress.advance)
        recorded.check_stream_ids()
        with HttpApi(url, key) as service:
            past = past_of(recorded, service.statuses(model, recorded.streams), again=again)
        slots = None
        if predictions is not None:
            identity = {
                "model": model,
                "version": described["version"],
                "source": recorded.source_id,
                "again": hashlib.sha256("".join(past.sources).encode()).hexdigest(),
                "columns": [choice.stream, sorted(choice.inputs.items())],
            }
            slots = PartialPredictionsFile(predictions, n_rows, outputs, identity)
        progress.start("sending", n_rows)
        with Client(url, key, CALL_S, keep_bytes=0) as client:
            sender = RowSender(
                client,
                model,
                list(recorded.streams),
                slots,
                sources=past.sources,
                left_out=[recorded.streams[stream] for stream in past.reset],
                sizes=RequestSizes.of([*specs, *outputs], limits),
                advance=progress.advance,
            )
            n_before = _send(sender, recorded, past, slots, progress.advance)
        n_unknown = 0
        is_whole = not sender.failures and not past.reset
        if slots is not None and write is not None and is_whole:
            progress.start("writing predictions", None)
            n_unknown = slots.finish(list(recorded.streams), write)
    n_skipped = sender.skipped + n_before
    report = {
        "model": model,
        "streams": len(recorded.streams),
        "timesteps": n_rows,
        "applied": sender.applied,
        "skipped": n_skipped,
        "failed": [{"stream": stream, "code": one.error.code} for stream, one in sender.failures.items()],
        "late": recorded.n_late,
        "left_out": recorded.n_left_out,
        "reset": past.reset,
        "source": recorded.source_id,
        "predictions": str(predictions) if predictions is not None and is_whole else None,
        "unknown": n_unknown,
        "seconds": round(time.monotonic() - started, 3),
    }
    _print(report, as_json=as_json)
    _raise_if_incomplete(sender, past, predictions, n_unknown, n_skipped)


def _send(
    sender: RowSender,
    data: RecordedData,
    past: Past,
    slots: PartialPredictionsFile | None,
    advance: Callable[[int], None],
) -> int:
    """Send what was not applied by an earlier run, and return how many timesteps were."""
    n_before = 0

    def pending() -> Iterator[Rows]:
        nonlocal n_before
        for rows in gathered(data.read()):
            passed = rows.positions < past.passed[rows.codes]
            is_open = ~passed
            if slots is not None:
                slots.leave_out(rows.positions[passed])
                is_open &= slots.pending(rows.positions)
            n_done = len(rows) - int(is_open.sum())
            advance(n_done)
            n_before += n_done
            yield rows.where(is_open)
            if slots is not None:
                slots.release_memory()

    try:
        sender.run(pending())
    except ClientError as exc:
        raise BackfillError(
            f"{exc.problem} Applied before that: {counted(sender.applied, 'timestep')}.",
            fix="Run the same command again: it goes on where it stopped, and applies no row twice.",
        ) from exc
    return n_before


def _raise_if_incomplete(
    sender: RowSender, past: Past, predictions: Path | None, n_unknown: int, n_skipped: int
) -> None:
    """Raise an error for what is left to do, or if there was nothing to do."""
    written = f"; {predictions} is written then." if predictions is not None else "."
    if sender.failures:
        raise BackfillError(
            failures_in_words(sender.failures, _NAMED),
            fix="All other streams are done. Run the same command again once the cause is removed" + written,
        )
    if past.reset:
        named = ", ".join(past.reset[:_NAMED]) + (" .." if len(past.reset) > _NAMED else "")
        raise BackfillError(
            f"{counted(len(past.reset), 'stream')} had these rows and were reset since: {named}. Nothing was sent for "
            f"{'it' if len(past.reset) == 1 else 'them'}; all other streams are done.",
            fix="Give --again to apply their rows from the first one on" + written,
        )
    if n_unknown:
        raise BackfillError(
            f"{n_unknown:,} rows were applied before and their predictions are not known any more; they are empty in "
            f"{predictions}.",
            fix="`stepwell backtest` compares models on the data without a service.",
        )
    if not sender.applied and predictions is None:
        raise BackfillError(
            f"Nothing was applied: the streams had all {counted(n_skipped, 'row')} before.",
            fix="Check that these are the files you meant. To apply them anew, reset the streams and give --again.",
        )


def _print(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    facts = {
        "streams": f"{report['streams']:,}",
        "timesteps": f"{report['timesteps']:,} ({report['applied']:,} applied now, {report['skipped']:,} before)",
        "seconds": f"{report['seconds']:.1f} ({report['timesteps'] / max(report['seconds'], 1e-3):,.0f} timesteps/s)",
    }
    facts |= left_out_in_words(report["late"], report["left_out"])
    if report["predictions"] is not None:
        facts["predictions"] = report["predictions"]
    show(key_value_table(f"Backfill of {report['model']}", facts))
