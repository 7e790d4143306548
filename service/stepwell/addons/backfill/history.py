"""`Past`: which rows of recorded data each stream has from earlier runs, by the sources that its record keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepwell.addons.recorded import RecordedData
from stepwell_export.runtime.manifest import Array

_SOURCE = re.compile(r"(rows:(\d+):[0-9a-f]{64})(?:#again=(\d+))?")


@dataclass(frozen=True, slots=True)
class Past:
    """What the streams of recorded data have of its rows.

    Attributes:
        sources: The source of each stream's rows in this run, by the stream's code.
        passed: How many rows, over all streams, were there in an earlier run that ended at or before the position which
            the stream has of it, `(streams,)` int64: those of the stream among them are not sent again.
        reset: The streams whose step is below the number of their rows that were applied: they were reset, or their
            state was replaced, and nothing is sent for them.
    """

    sources: list[str]
    passed: Array
    reset: list[str]


def past_of(data: RecordedData, statuses: Mapping[str, Mapping[str, Any]], *, again: bool) -> Past:
    """Return what streams have of some data.

    A run whose first rows are those of an earlier one goes on after them. Resets keep the positions of sources, so the
    rows of a stream that was reset have another source when they are applied again, `..#again=1` and so on.

    Args:
        data: The rows, which were read once.
        statuses: What the service shows of the streams that exist, by stream: `step` and `sources`.
        again: Apply the rows of streams that were reset from the first one on.

    Raises:
        RecordedDataError: A file cannot be read.
    """
    kept = {stream: list(_sources(status.get("sources", ()))) for stream, status in statuses.items()}
    total = int(data.source_id.split(":")[1])
    counts = {count for sources in kept.values() for _, count, _, _ in sources if count < total}
    same = data.source_ids_of_beginnings(counts) | {data.source_id}
    turns, ends, starts = (np.zeros(len(data.streams), np.int64) for _ in range(3))
    for stream, code in data.streams.items():
        known = [(turn, at + 1, base) for base, _, turn, at in kept.get(stream, ()) if base in same]
        if known:
            turns[code] = turn = max(turn for turn, _, _ in known)
            ends[code] = max(end for at, end, _ in known if at == turn)
            starts[code] = max((end for at, end, base in known if at == turn and base != data.source_id), default=0)
    n_applied = _rows_before(data, ends)
    steps = np.array([statuses[stream]["step"] if stream in statuses else 0 for stream in data.streams])
    is_reset = steps < n_applied
    if again:
        turns[is_reset] += 1
        starts[is_reset] = 0
    sources = [f"{data.source_id}#again={turn}" if turn else data.source_id for turn in turns.tolist()]
    reset = [] if again else [stream for stream, code in data.streams.items() if is_reset[code]]
    return Past(sources, starts, reset)


def _sources(found: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, int, int, int]]:
    """Yield of each source of recorded data its rows, their count, how often they were begun again, its position."""
    for source in found:
        if (parts := _SOURCE.fullmatch(source["id"])) is not None:
            yield parts[1], int(parts[2]), int(parts[3] or 0), int(source["at"])


def _rows_before(data: RecordedData, ends: Array) -> Array:
    """Return how many rows of each stream have a position below its end, `(streams,)`."""
    counts = np.zeros(len(ends), np.int64)
    last = int(ends.max(initial=0))
    for rows in data.read() if last else ():
        counts += np.bincount(rows.codes[rows.positions < ends[rows.codes]], minlength=len(ends))
        if rows.positions[-1] >= last:
            break
    return counts
