"""`QueueAdmission`: how many timesteps may wait for a model, by how fast they have been answered. Does no I/O, has no clock."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_WINDOW_S: Final = 1.0
_MIN_SAMPLED_S: Final = 0.4  # of waiting without a break, before a rate can be told
_MIN_ROWS: Final = 16
"""Timesteps that may always wait."""


class QueueAdmission:
    """Watches a queue, and says how many may stand in it without waiting longer than is good.

    Under more load than a model can bear, a queue that is bounded by its length alone fills up, and each timestep
    waits, in vain at worst, until its deadline. Bounded by time, the surplus is told at once.
    """

    def __init__(self, patience_s: float) -> None:
        """Begin with room for everyone.

        Args:
            patience_s: Seconds that a timestep should wait at most.
        """
        self._patience = patience_s
        self._samples: deque[tuple[float, int]] = deque()  # time and answers so far, while something waited
        self.max_rows: float = math.inf

    def sample(self, now: float, waiting: int, answered: int) -> None:
        """Look at the queue; to be called several times a second.

        Args:
            now: Seconds, on any clock.
            waiting: Timesteps that wait.
            answered: Timesteps that were answered, since the beginning.
        """
        seen = self._samples
        if not waiting:
            seen.clear()
            self.max_rows = math.inf
            return
        seen.append((now, answered))
        while len(seen) > 2 and seen[1][0] <= now - _WINDOW_S:
            seen.popleft()
        then, before = seen[0]
        if now - then < _MIN_SAMPLED_S:
            return
        # Where nothing at all is answered it is not the load's fault, and those who wait are told the reason.
        rate = (answered - before) / (now - then)
        self.max_rows = max(_MIN_ROWS, rate * self._patience) if rate else math.inf

    def excess(self, waiting: int) -> tuple[float, float] | None:
        """Return how many may wait, and the seconds until there is room for one more; None: there is room now."""
        room = self.max_rows  # read once: another thread writes it
        if waiting < room:
            return None
        return room, (waiting - room) / (room / self._patience)
