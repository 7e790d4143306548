"""Rows of recorded data as timesteps, with an optional progress bar."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def timesteps_of(rows: Any, columns: Sequence[str] | None) -> Iterable[Any]:
    """Return the timesteps to send: the rows of a pandas DataFrame as arrays, any other iterable unchanged.

    Args:
        rows: A DataFrame, or an iterable of inputs as `step` accepts them.
        columns: The DataFrame's columns in the order of the model's features; None uses all in their order.
    """
    if not hasattr(rows, "columns") or not hasattr(rows, "to_numpy"):
        return rows  # type: ignore[no-any-return]  # any iterable; each element is checked when it is sent
    return (rows if columns is None else rows[list(columns)]).to_numpy()  # type: ignore[no-any-return]


def with_bar(rows: Iterable[T], label: str) -> Iterator[T]:
    """Yield rows and draw a progress bar on standard error."""
    from rich.console import Console
    from rich.progress import track

    total = operator.length_hint(rows) or None
    yield from track(rows, label, total=total, console=Console(stderr=True), transient=False)
