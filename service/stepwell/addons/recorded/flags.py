"""Flags of the commands that read recorded data, and their progress bar."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, TaskID, TextColumn, TimeRemainingColumn

from stepwell.addons.event_time.times import TimeUnit
from stepwell.addons.recorded.column_choice import ColumnChoice
from stepwell.addons.recorded.row_rules import RowRules, RowRulesError
from stepwell.commands.flags import named_values
from stepwell.commands.tables import progress_bar
from stepwell_client.wire.stream_templates import StreamTemplate, is_template
from stepwell_export.runtime.durations import duration_of

DataFiles = Annotated[
    list[Path],
    typer.Argument(metavar="DATA..", help="CSV, Parquet and NPZ files, or folders of them, in the order of time."),
]
StreamColumn = Annotated[
    str | None,
    typer.Option(
        "--stream-column",
        "--stream",
        metavar="C|TEMPLATE",
        help="The column of the stream ids, or columns in a template: 'pump-{id}'. Default: a file is a stream.",
    ),
]
TimeColumn = Annotated[
    str | None,
    typer.Option(
        "--time-column", "--time", metavar="C", help="The column by which each stream must be sorted, without --order."
    ),
]
TimeUnitFlag = Annotated[
    TimeUnit, typer.Option("--time-unit", metavar="s|ms|us|ns", help="The unit of times that are numbers.")
]
_GAP = 60
RowOrder = Annotated[
    str | None,
    typer.Option("--order", metavar="5s", help="Apply rows in the order of their times; later ones are late."),
]
RowClock = Annotated[
    str | None, typer.Option("--every", metavar="1s", help="One timestep for each tick, of the rows in it.")
]
RowTake = Annotated[
    list[str] | None,
    typer.Option(
        "--take", metavar="[NAME=]RULE", help="Of several: last, mean, sum, min, max, count. Repeatable, by input."
    ),
]
RowFill = Annotated[str, typer.Option("--fill", metavar="hold|nan|zero", help="The value of a tick without rows.")]
RowGap = Annotated[int, typer.Option("--gap", min=0, help="Ticks in a row that are filled at most.")]
InputColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=C,C",
        help="The columns of an input's numbers, in order. Default: its labels, or NAME[0], NAME[1], .. Repeatable.",
    ),
]


def column_choice(
    stream: str | None, time: str | None, time_unit: TimeUnit, inputs: Iterable[str] | None
) -> ColumnChoice:
    """Return the columns that flags name.

    Raises:
        typer.BadParameter: An `--input` is not NAME=COLUMN,COLUMN, an input is given twice, or a template of stream ids
            is none (exit code 2).
    """
    if stream is not None and is_template(stream):
        try:
            StreamTemplate(stream)
        except ValueError as exc:
            raise typer.BadParameter(f"{exc}.", param_hint="--stream") from exc
    named = named_values("--input", inputs or (), "NAME=COLUMN,COLUMN")
    return ColumnChoice(
        stream, time, {name: [column.strip() for column in text.split(",")] for name, text in named.items()}, time_unit
    )


def row_rules(
    time: str | None,
    grid: str | None,
    *,
    order: str | None,
    every: str | None,
    take: Iterable[str] | None,
    fill: str,
    gap: int,
) -> RowRules | None:
    """Return the rules that flags give; None: rows are timesteps in their order.

    Args:
        time: The column of the times.
        grid: The time between the model's timesteps, which is that of ticks unless `every` is given; None: unknown.
        order: How long a row waits for those before it.
        every: From one tick to the next.
        take: Which value of several a tick has: one rule, or rules by input.
        fill: Which value a tick has if there is none.
        gap: Ticks in a row that are filled at most.

    Raises:
        typer.BadParameter: There is no column of times, or a value is wrong (exit code 2).
    """
    if (order is not None or every is not None) and time is None:
        raise typer.BadParameter("they need the column of the times.", param_hint="--order, --every")
    if grid is not None and time is not None and every is None:
        every = grid
    elif grid is not None and (every is None or duration_of(every) != duration_of(grid)):
        told = "here each row is one" if every is None else f"--every is {every}"
        typer.echo(f"The model was trained with a timestep every {grid}; {told}.", err=True)
    takes = [word.rpartition("=")[::2] for word in take or ()]
    if len(dict(takes)) < len(takes):
        raise typer.BadParameter("an input has one rule, and one holds for all others.", param_hint="--take")
    if order is None and every is None and (takes or fill != "hold" or gap != _GAP):
        raise typer.BadParameter("they are rules of --every, which is not given.", param_hint="--take, --fill, --gap")
    try:
        return RowRules.of(order, every, dict(takes), fill, gap)
    except RowRulesError as exc:
        raise typer.BadParameter(exc.problem, param_hint="--order, --every, --take, --fill") from exc


def left_out_in_words(n_late: int, n_left_out: int) -> dict[str, str]:
    """Return what a report says of rows that are no timesteps, by its title; empty if there are none."""
    late = f"{n_late:,} rows, which newer ones of their streams go on before: not applied"
    left_out = f"{n_left_out:,} rows: their times are before 1970, or their ticks have no value of an input"
    return ({"late": late} if n_late else {}) | ({"left out": left_out} if n_left_out else {})


class DataProgress:
    """A progress bar of timesteps, with the time that is left."""

    def __init__(self, bars: Progress, task: TaskID) -> None:
        self._bars, self._task = bars, task

    def start(self, what: str, total: int | None) -> None:
        """Start another part of the work; `total` is None if its size is not known."""
        self._bars.reset(self._task, description=what, total=total)

    def advance(self, timesteps: int) -> None:
        """Count timesteps that are done."""
        self._bars.advance(self._task, timesteps)


@contextmanager
def data_progress() -> Iterator[DataProgress]:
    """Show a progress bar on standard error, if that is a terminal."""
    with progress_bar(TextColumn("{task.completed:,.0f} timesteps"), TimeRemainingColumn()) as bars:
        yield DataProgress(bars, bars.add_task("reading", total=None))
