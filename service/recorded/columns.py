"""`ColumnChoice`: which columns of a table are the streams, the times, and the numbers of each input."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model_export.manifest import InputSpec
from service.errors import counted
from service.recorded.errors import ColumnsError, listed


@dataclass(frozen=True, slots=True)
class ColumnChoice:
    """The columns that were named.

    Attributes:
        stream: The column of the stream ids; None: each file is one stream, with the file's name without its ending.
        time: The column of the times, by which the rows of each stream are sorted; None: they are not checked.
        inputs: The columns of an input's numbers, in C order; an input that is not here has columns of its own names.
    """

    stream: str | None = None
    time: str | None = None
    inputs: Mapping[str, Sequence[str]] = field(default_factory=dict)


def input_columns(
    specs: Sequence[InputSpec], choice: ColumnChoice, available: Sequence[str], *, where: str
) -> dict[str, list[str]]:
    """Return the columns of each input.

    An input for which none are named has the columns of its labels; or `NAME` if it is one number; or `NAME[0]`,
    `NAME[1]` and so on.

    Args:
        specs: The inputs.
        choice: The columns that were named.
        available: The columns of the table.
        where: The table's file.

    Raises:
        ColumnsError: A column is missing, or an input has too many or too few.
    """
    for flag, name in (("--stream-column", choice.stream), ("--time-column", choice.time)):
        if name is not None and name not in available:
            raise ColumnsError(
                f"{where} has no column {name!r}; it has {listed(available)}.", fix=f"Name one of these with {flag}."
            )
    return {spec.name: columns_of(spec, choice.inputs.get(spec.name), available, where) for spec in specs}


def check_inputs(specs: Sequence[InputSpec], choice: ColumnChoice) -> None:
    """Check that columns are named for inputs of the model alone.

    Raises:
        ColumnsError: It names the others.
    """
    if unknown := sorted(choice.inputs.keys() - {spec.name for spec in specs}):
        raise ColumnsError(
            f"Columns are named for {listed(unknown)}; the model's inputs are {listed([spec.name for spec in specs])}.",
            fix="Use the names of inputs in --input NAME=COLUMN,COLUMN.",
        )


def columns_of(spec: InputSpec, named: Sequence[str] | None, available: Sequence[str], where: str) -> list[str]:
    """Return the columns of one input; see `input_columns`.

    Raises:
        ColumnsError: A column is missing, or they are too few or too many.
    """
    if named is None:
        candidates = [list(map(str, getattr(spec, "labels", None) or [])), *own_columns(spec.name, spec.shape)]
        for names in candidates:
            if names and set(names) <= set(available):
                return names
        for names in candidates:
            if set(names) & set(available):  # what is missing is easily overlooked among the others
                absent = listed([name for name in names if name not in available])
                raise ColumnsError(
                    f"{where} has no column {absent} for the input {spec.name!r}; it has {listed(available)}.",
                    fix=f"Add it, or name the input's columns, in order: --input {spec.name}=COLUMN,COLUMN.",
                )
        expected = " or ".join(listed(names) for names in candidates if names)
        raise ColumnsError(
            f"Input {spec.name!r} is made of {expected}; {where} has {listed(available)}.",
            fix=f"Name its columns, in order: --input {spec.name}=COLUMN,COLUMN.",
        )
    if missing := [name for name in named if name not in available]:
        raise ColumnsError(
            f"{where} has no column {listed(missing)}; it has {listed(available)}.",
            fix=f"Name columns of the file: --input {spec.name}=COLUMN,COLUMN.",
        )
    if len(named) != spec.row_size:
        raise ColumnsError(
            f"Input {spec.name!r} has {counted(spec.row_size, 'number')} and was given "
            f"{counted(len(named), 'column')} ({listed(named)}).",
            fix=f"Name one column for each number: --input {spec.name}=COLUMN,COLUMN.",
        )
    return list(named)


def own_columns(name: str, shape: Sequence[int]) -> list[list[str]]:
    """Return the names of columns that a tensor's row may have without labels, the usual ones last."""
    indexed = [f"{name}[{n}]" for n in range(math.prod(shape))]
    return [[name], indexed] if len(indexed) == 1 else [indexed]


def prediction_columns(outputs: Iterable[Any]) -> list[list[str]]:
    """Return the columns of each output in a file of predictions.

    They are `y[LABEL]`, without labels `y[0]`, `y[1]` and so on; an output whose row has no axis has its name.

    Args:
        outputs: Outputs with `name`, `shape` and `labels`, as the manifest and the service describe them.
    """
    columns = []
    for output in outputs:
        labels = getattr(output, "labels", None) or range(math.prod(output.shape))
        columns.append([f"{output.name}[{label}]" for label in labels] if output.shape else [output.name])
    return columns
