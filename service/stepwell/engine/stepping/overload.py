"""`QueueAdmission`: limits how many timesteps may wait for a model, by the rate of responses. No I/O, no clock."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_WINDOW_S: Final = 1.0
_MIN_SAMPLED_S: Final = 0.4  # timesteps must have waited this long without a break before a rate is computed
_MIN_ROWS: Final = 16  # timesteps that may always wait


class QueueAdmission:
    """Bounds a queue so that a timestep waits at most `max_wait_s` in it.

    Under overload, a queue that is bounded by its length alone fills up, and each timestep waits for long, possibly
    until its deadline. If the queue is bounded by waiting time, the excess is rejected at once.

    Attributes:
        max_rows: Timesteps that may wait; infinite: no limit.
    """

    def __init__(self, max_wait_s: float) -> None:
        """Start without a limit.

        Args:
            max_wait_s: Seconds that a timestep should wait at most.
        """
        self._max_wait = max_wait_s
        self._samples: deque[tuple[float, int]] = deque()  # time and responses so far, while timesteps waited
        self.max_rows: float = math.inf

    def sample(self, now: float, waiting: int, answered: int) -> None:
        """Update the limit; to be called several times a second.

        Args:
            now: Seconds, on any clock.
            waiting: Timesteps that wait.
            answered: Timesteps that have got a response since the start.
        """
        samples = self._samples
        if not waiting:
            samples.clear()
            self.max_rows = math.inf
            return
        samples.append((now, answered))
        while len(samples) > 2 and samples[1][0] <= now - _WINDOW_S:
            samples.popleft()
        oldest_time, oldest_answered = samples[0]
        if now - oldest_time < _MIN_SAMPLED_S:
            return
        # If there are no responses at all, the cause is not the load; waiting timesteps then get the actual error.
        rate = (answered - oldest_answered) / (now - oldest_time)
        self.max_rows = max(_MIN_ROWS, rate * self._max_wait) if rate else math.inf

    def excess(self, waiting: int) -> tuple[float, float] | None:
        """Return the limit and the seconds until one more may wait; None: one more may wait now."""
        limit = self.max_rows  # read once: another thread writes it
        if waiting < limit:
            return None
        return limit, (waiting - limit) / (limit / self._max_wait)
