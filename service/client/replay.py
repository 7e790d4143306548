"""Replaying what was recorded: rows of a table or of anything, one timestep each, with a bar to look at."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

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


class ResendBar:
    """Draws what a client sends again: `with ResendBar() as bar: Client(url, on_resend=bar)`. Threads may share it."""

    def __init__(self) -> None:
        """Prepare; nothing is drawn before there is something to tell."""
        from rich.console import Console
        from rich.progress import Progress

        self._progress = Progress(console=Console(stderr=True))
        self._tasks: dict[str, Any] = {}

    def __call__(self, stream: str, done: int, total: int) -> None:
        """Draw that so many requests of a stream were sent again."""
        if stream not in self._tasks:
            self._progress.start()
            self._tasks[stream] = self._progress.add_task(f"{stream}: the store fell back, sending again", total=total)
        self._progress.update(self._tasks[stream], completed=done, total=total)
        if done == total:
            del self._tasks[stream]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
