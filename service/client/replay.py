"""Replaying what was recorded: rows of a table or of anything, one timestep each, with a bar to look at."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def timesteps_of(rows: Any, columns: Sequence[str] | None) -> Iterable[Any]:
    """Return what to send: a pandas DataFrame's rows as arrays, anything else as it comes.

    Args:
        rows: A DataFrame, or an iterable of what `step` takes.
        columns: Of a DataFrame, in the order of the model's features; None: all, as they stand.
    """
    if not hasattr(rows, "columns") or not hasattr(rows, "to_numpy"):
        return rows  # type: ignore[no-any-return]  # whatever it is, its parts are looked at as they are sent
    return (rows if columns is None else rows[list(columns)]).to_numpy()  # type: ignore[no-any-return]


def with_bar(rows: Iterable[T], words: str) -> Iterator[T]:
    """Give rows on, and draw on standard error how many have been."""
    from rich.console import Console
    from rich.progress import track

    total = operator.length_hint(rows) or None
    yield from track(rows, words, total=total, console=Console(stderr=True), transient=False)
