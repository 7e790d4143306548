"""`LateTimesteps`: which timesteps came behind a newer one of their stream, and so are never applied.

To the service, both a late timestep and a repeated one are before the stream's position. Only whoever reads them in
their order can tell them apart.
"""

from __future__ import annotations

from itertools import islice
from typing import Final

from stepwell.addons.connect.mapping.poll_mapper import MappedPoll

_MOST_STREAMS: Final = 1_000_000
_RECENT: Final = 65_536
"""Positions that are remembered: a message that is delivered again comes soon after it was delivered first."""


class LateTimesteps:
    """Compares the positions of timesteps since the reader was opened; for positions that are a field of messages."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], int] = {}
        self._recent: dict[tuple[str, str, int], None] = {}

    def clear(self) -> None:
        """Forget all positions: what was not acknowledged is read again."""
        self._newest.clear()
        self._recent.clear()

    def find(self, poll: MappedPoll) -> frozenset[int]:
        """Return the indices of the timesteps in a poll that are late.

        One is late if a newer one of its stream and source was read before it, and it itself was not among the last
        65,536 that were read.
        """
        late = []
        for i, (stream, source, at) in enumerate(zip(poll.streams, poll.sources, poll.positions.tolist(), strict=True)):
            newest = self._newest.get((stream, source), -1)
            if at > newest:
                self._newest[stream, source] = at
            elif (stream, source, at) not in self._recent:
                late.append(i)
            self._recent[stream, source, at] = None
        for one in list(islice(self._recent, max(0, len(self._recent) - _RECENT))):
            del self._recent[one]
        if len(self._newest) > _MOST_STREAMS:
            self._newest.clear()
        return frozenset(late)
