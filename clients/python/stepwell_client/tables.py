"""Rows of recorded data as timesteps: tables by the names of their columns, with an optional progress bar."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from stepwell_client.errors import ClientError
from stepwell_client.input_columns import ColumnsError, input_columns
from stepwell_client.protocol.decoding import TensorInfo

T = TypeVar("T")

Columns = Sequence[str] | Mapping[str, Sequence[str]]
"""The columns of a table that make the model's input, in the order of its numbers; or those of each input, by name."""


def table_of(rows: Any) -> Any | None:
    """Return a pandas DataFrame as it is, a Series as one of one column, and None for anything else."""
    if hasattr(rows, "columns") and hasattr(rows, "to_numpy"):
        return rows
    return rows.to_frame() if hasattr(rows, "to_frame") else None


def rows_of_table(
    table: Any, columns: Mapping[str, Sequence[Any]], inputs: Sequence[TensorInfo]
) -> list[dict[str, Any]]:
    """Return the rows of a DataFrame, each as an array per input.

    Args:
        table: The DataFrame.
        columns: As `columns_by_input` returns them.
        inputs: The model's inputs.
    """
    parts = {each.name: table[list(columns[each.name])].to_numpy().reshape(len(table), *each.shape) for each in inputs}
    return [{name: part[n] for name, part in parts.items()} for n in range(len(table))]


def columns_by_input(
    inputs: Sequence[TensorInfo], available: Sequence[Any], chosen: Columns | None = None
) -> dict[str, list[Any]]:
    """Return the columns that make each input of a model: those that were chosen, else those of the input's names.

    Those are its labels, if the model has any; or the name of an input that is one number; or `NAME[0]`, `NAME[1]`
    and so on. Columns that have only numbers for names, from 0, are taken in their order by a model with one input.

    Args:
        inputs: The model's inputs.
        available: The names of the table's columns.
        chosen: The columns by input, or those of the only input; None: by name.

    Raises:
        ClientError: `bad_input`: a column is missing, there are too many or too few, or none has an input's names.
    """
    if chosen is not None and not isinstance(chosen, Mapping):
        if len(inputs) != 1:
            raise ClientError(
                "bad_input",
                f"One list of columns is given for the inputs {', '.join(each.name for each in inputs)}.",
                fix="Give a dict with the columns of each input.",
            )
        chosen = {inputs[0].name: chosen}
    if not chosen and len(inputs) == 1 and list(available) == list(range(math.prod(inputs[0].shape))):
        return {inputs[0].name: list(available)}
    try:
        return input_columns(inputs, available, chosen or {}, option="columns={{'{}': [COLUMN, COLUMN]}}")
    except ColumnsError as exc:
        raise ClientError("bad_input", exc.problem, fix=exc.fix) from exc


def with_bar(rows: Iterable[T], label: str) -> Iterator[T]:
    """Yield rows and draw a progress bar on standard error.

    Raises:
        ClientError: `missing_extra`: the package rich, which draws it, is not installed.
    """
    try:
        from rich.console import Console
        from rich.progress import track
    except ModuleNotFoundError as exc:
        raise ClientError(
            "missing_extra",
            "The progress bar needs the package rich.",
            fix="Run `pip install rich`, or ask for no bar.",
        ) from exc
    total = operator.length_hint(rows) or None
    yield from track(rows, label, total=total, console=Console(stderr=True), transient=False)
