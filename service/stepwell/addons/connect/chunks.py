"""The timesteps of one poll as rounds of chunks, and the chunks of a round as columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np

from stepwell.addons.connect.mapping.poll_mapper import MappedPoll
from stepwell_client.protocol.inputs import packed

_FRAME_BYTES: Final = 1 << 20
"""Bytes of one message to the service, unless one chunk alone is larger."""

_POSITION_BYTES: Final = 16
_NAMES_BYTES: Final = 400  # of a stream's id, its source's id and its `seq`, at most


@dataclass(slots=True)
class StreamChunk:
    """Consecutive timesteps of one stream from one source.

    Attributes:
        stream: The stream's id.
        timesteps: Their indices in the poll, in order; their positions grow.
    """

    stream: str
    timesteps: list[int]


class PollLimits:
    """The limits of a chunk: of the service, and of this poll's rows."""

    def __init__(self, max_steps: int, max_bytes: int, row_bytes: int) -> None:
        """Create the limits.

        Args:
            max_steps: `max_chunk_steps` of the service.
            max_bytes: `max_body_bytes` of the service.
            row_bytes: Bytes of the inputs of one timestep.
        """
        self.row_bytes = row_bytes + _POSITION_BYTES
        self.steps = max(1, min(max_steps, max_bytes * 3 // 4 // self.row_bytes))
        self.frame_bytes = min(_FRAME_BYTES, max_bytes // 2)


def rounds_of(poll: MappedPoll, limits: PollLimits) -> tuple[list[list[StreamChunk]], list[int]]:
    """Return the rounds of a poll, and the timesteps that were dropped: they are there twice, or behind a newer one.

    A round has at most one chunk of each stream. The chunks of a stream are sent one after the other, and each only
    when the predictions of the one before it were written: of a stream, the service keeps the predictions of the newest
    chunk alone.

    Args:
        poll: The timesteps.
        limits: The limits of a chunk.
    """
    by_stream: defaultdict[str, list[int]] = defaultdict(list)
    for i, stream in enumerate(poll.streams):
        by_stream[stream].append(i)
    chunks = list(map(StreamChunk, by_stream, by_stream.values()))
    if _are_whole(poll, chunks, limits):
        return [chunks] if chunks else [], []
    split = [_split(chunk, poll, limits) for chunk in chunks]
    n_rounds = max((len(own) for own, _ in split), default=0)
    rounds = [[own[i] for own, _ in split if i < len(own)] for i in range(n_rounds)]
    return rounds, [i for _, dropped in split for i in dropped]


def frames_of(chunks: Sequence[StreamChunk], poll: MappedPoll, limits: PollLimits) -> list[list[StreamChunk]]:
    """Return the chunks in groups of equal length, each small enough for one message to the service."""
    by_length: dict[tuple[int, bool], list[StreamChunk]] = defaultdict(list)
    for chunk in chunks:
        by_length[len(chunk.timesteps), poll.seq[chunk.timesteps[0]] is None].append(chunk)
    frames = []
    for (length, _), group in by_length.items():
        n_streams = max(1, limits.frame_bytes // (length * limits.row_bytes + _NAMES_BYTES))
        frames += [group[i : i + n_streams] for i in range(0, len(group), n_streams)]
    return frames


def columns_of(chunks: Sequence[StreamChunk], poll: MappedPoll) -> dict[str, Any]:
    """Return chunks of one length as the message of a feed.

    Args:
        chunks: One for each stream, all of the same length T.
        poll: Their timesteps.
    """
    firsts = [chunk.timesteps[0] for chunk in chunks]
    ids = [poll.sources[i] for i in firsts]
    rows = np.array([chunk.timesteps for chunk in chunks])
    document = {
        "streams": [chunk.stream for chunk in chunks],
        "inputs": packed({name: array[rows] for name, array in poll.inputs.items()}),
        "chunk": True,
        "source": {"id": ids[0] if len(set(ids)) == 1 else ids, "at": packed({"at": poll.positions[rows]})["at"]},
    }
    if poll.seq[firsts[0]] is not None:
        document["seq"] = [poll.seq[i] for i in firsts]
    return document


def _are_whole(poll: MappedPoll, chunks: Sequence[StreamChunk], limits: PollLimits) -> bool:
    """Whether every chunk can be sent as it is; then this is found for all of them at once."""
    lengths = [len(chunk.timesteps) for chunk in chunks]
    if max(lengths, default=0) > limits.steps or poll.seq.count(None) < len(poll.seq):
        return False
    n_rows = len(poll.rows)
    order = np.fromiter(chain.from_iterable(chunk.timesteps for chunk in chunks), np.intp, n_rows)
    grows = np.diff(poll.positions[order]) > 0
    sources = set(poll.sources)
    if len(sources) > 1:
        numbers = {source: number for number, source in enumerate(sources)}
        grows &= np.diff(np.fromiter(map(numbers.__getitem__, poll.sources), np.intp, n_rows)[order]) == 0
    grows[np.cumsum(lengths, dtype=np.intp)[:-1] - 1] = True  # from one stream to the next
    return bool(grows.all())


def _split(chunk: StreamChunk, poll: MappedPoll, limits: PollLimits) -> tuple[list[StreamChunk], list[int]]:
    """Return a stream's timesteps as chunks, and those that are not behind all others."""
    chunks: list[StreamChunk] = []
    dropped: list[int] = []
    for i in chunk.timesteps:
        last = chunks[-1].timesteps[-1] if chunks else None
        if last is not None and poll.sources[last] == poll.sources[i]:
            seq, last_seq = poll.seq[i], poll.seq[last]
            if poll.positions[i] <= poll.positions[last]:
                dropped.append(i)  # delivered twice, or late: it is before the position, so it is not applied
                continue
            follows = seq is None or last_seq is None or seq == last_seq + 1
            if follows and len(chunks[-1].timesteps) < limits.steps:
                chunks[-1].timesteps.append(i)
                continue
        chunks.append(StreamChunk(chunk.stream, [i]))
    return chunks, dropped
