"""The messages of one poll as rounds of chunks, and the chunks of a round as columns."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from model_export.manifest import Array
from service.client.protocol.inputs import packed
from service.connect.mapping import MappedTimestep

_FRAME_BYTES: Final = 1 << 20
"""Bytes of one message to the service, unless one chunk alone is larger."""

_POSITION_BYTES: Final = 16
_NAMES_BYTES: Final = 400  # of a stream's id, its source's id and its `seq`, at most


@dataclass(slots=True)
class StreamChunk:
    """Consecutive timesteps of one stream from one source.

    Attributes:
        stream: The stream's id.
        timesteps: In order; their positions grow.
    """

    stream: str
    timesteps: list[MappedTimestep]


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


def rounds_of(timesteps: Iterable[MappedTimestep], limits: PollLimits) -> tuple[list[list[StreamChunk]], int]:
    """Return the rounds of a poll, and the number of timesteps that were dropped because they are there twice.

    A round has at most one chunk of each stream. The chunks of a stream are sent one after the other, and each only
    when the predictions of the one before it were written: of a stream, the service keeps the predictions of the newest
    chunk alone.

    Args:
        timesteps: The timesteps of a poll, in order.
        limits: The limits of a chunk.
    """
    chunks: dict[str, list[StreamChunk]] = {}
    n_dropped = 0
    for timestep in timesteps:
        own = chunks.setdefault(timestep.stream, [])
        last = own[-1].timesteps[-1] if own else None
        if last is not None and last.source == timestep.source:
            if timestep.at is not None and last.at is not None and timestep.at <= last.at:
                n_dropped += 1  # delivered twice, or out of order: it is before the position, so it is not applied
                continue
            follows = timestep.seq is None or last.seq is None or timestep.seq == last.seq + 1
            if follows and len(own[-1].timesteps) < limits.steps:
                own[-1].timesteps.append(timestep)
                continue
        own.append(StreamChunk(timestep.stream, [timestep]))
    n_rounds = max(map(len, chunks.values()), default=0)
    rounds = [[own[i] for own in chunks.values() if i < len(own)] for i in range(n_rounds)]
    return rounds, n_dropped


def frames_of(chunks: Sequence[StreamChunk], limits: PollLimits) -> list[list[StreamChunk]]:
    """Return the chunks in groups of equal length, each small enough for one message to the service."""
    by_length: dict[tuple[int, bool], list[StreamChunk]] = defaultdict(list)
    for chunk in chunks:
        by_length[len(chunk.timesteps), chunk.timesteps[0].seq is None].append(chunk)
    frames = []
    for (length, _), group in by_length.items():
        n_streams = max(1, limits.frame_bytes // (length * limits.row_bytes + _NAMES_BYTES))
        frames += [group[i : i + n_streams] for i in range(0, len(group), n_streams)]
    return frames


def columns_of(chunks: Sequence[StreamChunk], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Return chunks of one length as the message of a feed.

    Args:
        chunks: One for each stream, all of the same length T.
        arrays: By input, the values of all timesteps of the poll, `(rows, *row)`.
    """
    ids = [chunk.timesteps[0].source for chunk in chunks]
    rows = np.array([[timestep.row for timestep in chunk.timesteps] for chunk in chunks])
    at = [[timestep.at for timestep in chunk.timesteps] for chunk in chunks]
    document = {
        "streams": [chunk.stream for chunk in chunks],
        "inputs": packed({name: array[rows] for name, array in arrays.items()}),
        "chunk": True,
        "source": {"id": ids[0] if len(set(ids)) == 1 else ids, "at": _packed_positions(at)},
    }
    if chunks[0].timesteps[0].seq is not None:
        document["seq"] = [chunk.timesteps[0].seq for chunk in chunks]
    return document


def _packed_positions(at: Sequence[Sequence[int | None]]) -> dict[str, Any]:
    return packed({"at": np.array(at, np.int64)})["at"]  # type: ignore[no-any-return]  # a tensor in msgpack
