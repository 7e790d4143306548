"""`Backoff`: how long to wait after each failure in a row."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses that double with each failure in a row, up to a limit.

    Attributes:
        first_s: Seconds to wait after the first failure.
        longest_s: The longest pause, in seconds.
        jitter: The part of a pause that is random, from 0 to 1, so that clients retry at different times.
    """

    first_s: float
    longest_s: float
    jitter: float = 0.25

    def after(self, failures: int, random: Callable[[], float] = random.random) -> float:
        """Return the seconds to wait after so many failures in a row.

        Args:
            failures: The number of failures; the first one is 1.
            random: Returns a number from 0 to 1.
        """
        longest = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        return longest * (1 - self.jitter + self.jitter * random())
