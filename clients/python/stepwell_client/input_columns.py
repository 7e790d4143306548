"""Which columns of a table are the numbers of a model's inputs and predictions, by their names."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepwell_client.errors import ClientError
from stepwell_client.wire.texts import counted, listed, nearest


class ColumnsError(ClientError):
    """The columns that were named, or that the model's inputs need, are not those of the table: `bad_columns`."""

    def __init__(self, problem: str, *, fix: str = "") -> None:
        super().__init__("bad_columns", problem, fix=fix)


def input_columns(
    inputs: Sequence[Any],
    available: Sequence[Any],
    named: Mapping[str, Sequence[Any]],
    *,
    where: str = "The table",
    option: str = "--input {}=COLUMN,COLUMN",
) -> dict[str, list[Any]]:
    """Return the columns of each input, one for each number of a row, in C order.

    An input for which none are named has the columns of its labels; or `NAME` if it is one number; or `NAME[0]`,
    `NAME[1]` and so on.

    Args:
        inputs: The inputs, with `name`, `shape` and `labels`, as the manifest and the service describe them.
        available: The columns of the table.
        named: The columns that were named, by input.
        where: The table, for messages.
        option: How columns are named for the input `{}`, for messages.

    Raises:
        ColumnsError: A column is missing, or they are too few or too many, or they are named for another input.
    """
    check_named(inputs, named, option=option)
    return {each.name: _columns_of(each, available, named, where, option.format(each.name)) for each in inputs}


def check_named(inputs: Sequence[Any], named: Iterable[str], *, option: str = "--input {}=COLUMN,COLUMN") -> None:
    """Check that columns are named for inputs of the model alone; raises as `input_columns` does."""
    known = [each.name for each in inputs]
    if unknown := sorted({*named} - {*known}):
        raise ColumnsError(
            f"Columns are named for {listed(unknown)}; the model's inputs are {listed(known)}.",
            fix=f"Use the names of inputs: {option.format('NAME')}.",
        )


def prediction_columns(outputs: Iterable[Any]) -> list[list[str]]:
    """Return the columns of each output in a table of predictions.

    They are `y[LABEL]`, without labels `y[0]`, `y[1]` and so on; an output whose row has no axis has its name.

    Args:
        outputs: The outputs, described as the inputs of `input_columns`.
    """
    columns = []
    for output in outputs:
        labels = getattr(output, "labels", None) or range(math.prod(output.shape))
        columns.append([f"{output.name}[{label}]" for label in labels] if output.shape else [output.name])
    return columns


def _columns_of(
    each: Any, available: Sequence[Any], named: Mapping[str, Sequence[Any]], where: str, option: str
) -> list[Any]:
    size = math.prod(each.shape)
    if each.name in named:
        names = list(named[each.name])
        if missing := [name for name in names if name not in available]:
            raise ColumnsError(
                f"{where} has no column {listed([f'{name}{nearest(str(name), available)}' for name in missing])}; "
                f"it has {listed(available)}.",
                fix=f"Name its columns: {option}.",
            )
        if len(names) != size:
            raise ColumnsError(
                f"Input {each.name!r} has {counted(size, 'number')} and was given {counted(len(names), 'column')} "
                f"({listed(names)}).",
                fix=f"Name one column for each number: {option}.",
            )
        return names
    indexed = [f"{each.name}[{n}]" for n in range(size)]
    labels = list(map(str, getattr(each, "labels", None) or []))
    candidates = [names for names in (labels, [each.name] if size == 1 else [], indexed) if names]
    for names in candidates:
        if set(names) <= set(available):
            return names
    for names in candidates:
        if set(names) & set(available):  # what is missing is easily overlooked among the others
            absent = listed([name for name in names if name not in available])
            raise ColumnsError(
                f"{where} has no column {absent} for the input {each.name!r}; it has {listed(available)}.",
                fix=f"Add it, or name the input's columns, in order: {option}.",
            )
    raise ColumnsError(
        f"{where} has {listed(available)}; input {each.name!r} is made of {' or '.join(map(listed, candidates))}.",
        fix=f"Name its columns, in order: {option}.",
    )
