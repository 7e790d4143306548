"""Positions of sources: which timesteps of a request were applied before, and which answers are still stored. Pure.

A source is a log whose timesteps have growing positions: a partition of Kafka, a Redis stream, the rows of a file. The
record keeps the position of the newest timestep applied from each of the sources used last, so a timestep that is read
from its log again, after any time and in any chunk, is not applied again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from stepwell.store.record import MAX_SOURCES, Record, SourcePosition
from stepwell.types import Source


class Overlap(NamedTuple):
    """The part of a request that was applied before.

    Attributes:
        skipped: Number of its first timesteps that were applied before.
        known: For the last of these, the indices of their answers in the record's newest operation.
    """

    skipped: int
    known: tuple[int, ...]


def overlap_of(record: Record, source: Source) -> Overlap:
    """Return the part of a request that the stream's record shows to have been applied before.

    Answers are known from some timestep on; those before it are not, even if one of them is stored.
    """
    skipped = passed_timesteps(record.sources, source)
    if not skipped or record.sources[0].digest != source.digest:
        return Overlap(skipped, ())
    index_of = {at: i for i, at in enumerate(record.answered_at)}
    known: list[int] = []
    for at in reversed(source.at[:skipped]):
        if (i := index_of.get(at)) is None:
            break
        known.append(i)
    return Overlap(skipped, tuple(reversed(known)))


def passed_timesteps(sources: Sequence[SourcePosition], source: Source) -> int:
    """Return how many of a request's first timesteps are at or before the stream's position of its source."""
    position = position_of(sources, source)
    return 0 if position is None else bisect_right(source.at, position)


def position_of(sources: Sequence[SourcePosition], source: Source) -> int | None:
    """Return the stream's position of a request's source; None: its record keeps none."""
    return next((kept.at for kept in sources if kept.digest == source.digest), None)


def advanced(sources: tuple[SourcePosition, ...], source: Source) -> tuple[tuple[SourcePosition, ...], bool]:
    """Return the positions of sources after a request was applied, and whether its source replaced another one."""
    others = [kept for kept in sources if kept.digest != source.digest]
    is_replaced = len(others) >= MAX_SOURCES
    return (SourcePosition(source.digest, source.at[-1]), *others[: MAX_SOURCES - 1]), is_replaced
