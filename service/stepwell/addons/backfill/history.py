"""`Past`: which rows of recorded data each stream has from earlier runs, by the sources that its record keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from stepwell.addons.backfill.partial_predictions import BackfillError
from stepwell.addons.recorded import RecordedData
from stepwell_client.wire.texts import counted
from stepwell_export.runtime.manifest import Array

_SOURCE = re.compile(r"(rows:(\d+):[0-9a-f]{64}((?:#time|#every=[0-9a-z]+)?))(?:#again=(\d+))?")
_NAMED = 5


class _Source(NamedTuple):
    """How far a stream has recorded data.

    Attributes:
        rows: The source of the rows.
        n_rows: How many there were, of all streams.
        rules: The suffix of the rules by which they became timesteps; empty: there were none.
        turn: How often they were begun again.
        position: The position of the newest timestep that was applied.
    """

    rows: str
    n_rows: int
    rules: str
    turn: int
    position: int


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
        again: Apply the rows of streams that were reset, or have other timesteps, from the first one on.

    Raises:
        BackfillError: By the rules of the data, a stream has other timesteps than those of the data; not with `again`.
        RecordedDataError: A file cannot be read.
    """
    kept = {stream: list(_sources(status.get("sources", ()))) for stream, status in statuses.items()}
    total = int(data.source_id.split(":")[1])
    counts = {one.n_rows for sources in kept.values() for one in sources if one.n_rows < total}
    same = data.source_ids_of_beginnings(counts) | {data.source_id}
    turns, ends, starts = (np.zeros(len(data.streams), np.int64) for _ in range(3))
    changed = []
    for stream, code in data.streams.items():
        of_rules = [one for one in kept.get(stream, ()) if data.rules is not None and one.rules == data.rules.suffix]
        known = [one for one in kept.get(stream, ()) if one.rows in same]
        turns[code] = turn = max((one.turn for one in known or of_rules), default=0)
        newest = [one for one in known if one.turn == turn]
        before = max((one for one in newest if one.rows != data.source_id), key=lambda one: one.n_rows, default=None)
        start = 0 if before is None else data.end_after_beginning(before.n_rows, stream, before.position)
        if start is None or (of_rules and not known):
            changed.append(stream)
        else:
            starts[code] = start
            ends[code] = max([start, *(one.position + 1 for one in newest if one.rows == data.source_id)])
    if changed and not again:
        raise _changed(changed)
    turns[[data.streams[stream] for stream in changed]] += 1
    n_applied = _rows_before(data, ends)
    steps = np.array([statuses[stream]["step"] if stream in statuses else 0 for stream in data.streams])
    is_reset = steps < n_applied
    if again:
        turns[is_reset] += 1
        starts[is_reset] = 0
    sources = [f"{data.source_id}#again={turn}" if turn else data.source_id for turn in turns.tolist()]
    reset = [] if again else [stream for stream, code in data.streams.items() if is_reset[code]]
    return Past(sources, starts, reset)


def _changed(streams: Sequence[str]) -> BackfillError:
    named = ", ".join(streams[:_NAMED]) + (" .." if len(streams) > _NAMED else "")
    return BackfillError(
        f"{counted(len(streams), 'stream')} had other timesteps by these rules before: {named}. Rows were changed, or "
        "ones that followed belong before or into timesteps that were applied. Nothing was sent.",
        fix="Give the rows of the earlier run first. To apply all rows of these streams from the first one on, reset "
        "the streams and give --again.",
    )


def _sources(found: Iterable[Mapping[str, Any]]) -> Iterable[_Source]:
    """Yield the sources that are of recorded data."""
    for source in found:
        if (parts := _SOURCE.fullmatch(source["id"])) is not None:
            rows, count, rules, turn = parts.groups()
            yield _Source(rows, int(count), rules, int(turn or 0), int(source["at"]))


def _rows_before(data: RecordedData, ends: Array) -> Array:
    """Return how many rows of each stream have a position below its end, `(streams,)`."""
    counts = np.zeros(len(ends), np.int64)
    last = int(ends.max(initial=0))
    for rows in data.read() if last else ():
        counts += np.bincount(rows.codes[rows.positions < ends[rows.codes]], minlength=len(ends))
        if rows.positions[-1] >= last:
            break
    return counts
