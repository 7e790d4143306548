"""Rows of recorded data as timesteps: tables by the names of their columns, with an optional progress bar."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from service.client.protocol.decoding import TensorInfo
from service.client.results import ClientError
from service.errors import counted

T = TypeVar("T")

Columns = Sequence[str] | Mapping[str, Sequence[str]]
"""The columns of a table that make the model's input, in the order of its numbers; or those of each input, by name."""

_SHOWN = 12


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
            raise _unclear(
                f"One list of columns is given for the inputs {', '.join(each.name for each in inputs)}",
                "Give a dict with the columns of each input.",
            )
        chosen = {inputs[0].name: chosen}
    if unknown := sorted(set(chosen or {}) - {each.name for each in inputs}):
        raise _unclear(
            f"Columns are given for {', '.join(unknown)}, which the model does not take",
            f"Its inputs are {', '.join(each.name for each in inputs)}.",
        )
    found = {}
    for each in inputs:
        names = chosen.get(each.name) if chosen else None
        found[each.name] = _by_name(each, available, len(inputs)) if names is None else _checked(each, available, names)
    return found


def with_bar(rows: Iterable[T], label: str) -> Iterator[T]:
    """Yield rows and draw a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    total = operator.length_hint(rows) or None
    yield from track(rows, label, total=total, console=Console(stderr=True), transient=False)


def _checked(each: TensorInfo, available: Sequence[Any], names: Sequence[str]) -> list[Any]:
    if missing := [name for name in names if name not in available]:
        raise _unclear(f"The table has no column {_some(missing)}; it has {_some(available)}", "Check the names.")
    if len(names) != math.prod(each.shape):
        raise _unclear(
            f"Input {each.name!r} is made of {counted(len(names), 'column')}; it has "
            f"{counted(math.prod(each.shape), 'number')}",
            "Give one column for each number.",
        )
    return list(names)


def _by_name(each: TensorInfo, available: Sequence[Any], n_inputs: int) -> list[Any]:
    size = math.prod(each.shape)
    indexed = [f"{each.name}[{n}]" for n in range(size)]
    candidates = [each.labels or [], [each.name] if size == 1 else [], indexed]
    for names in candidates:
        if names and all(name in available for name in names):
            return list(names)
    if n_inputs == 1 and list(available) == list(range(size)):
        return list(available)
    expected = next(names for names in candidates if names)
    raise _unclear(
        f"Input {each.name!r} is made of the columns {_some(expected)}; the table has {_some(available)}",
        "Rename the columns, or choose those of the input, in the order of its numbers: the order in the table is not "
        "relied on.",
    )


def _unclear(problem: str, fix: str) -> ClientError:
    return ClientError("bad_input", f"{problem}.", fix=fix)


def _some(names: Sequence[Any]) -> str:
    shown = ", ".join(str(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
