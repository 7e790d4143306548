"""`ReleaseLog`: what the campaign's operator requested of a release, and when. Pure.

A change may take effect as soon as its request was first sent. A worker that is paused, or that cannot reach the store,
may step by the release before it until `STALE_S` after the response.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass, field
from typing import Literal

from stepwell.addons.releases.document import takes_part

STALE_S = 30.0
FACTORS = {1: 1_000_003, 2: 31}  # the multiplier of each version of the fold

Mode = Literal["shadow", "ramp", "switch"]
How = Literal["promote", "abort"]


@dataclass
class LoggedTrial:
    """A candidate beside the current version.

    Attributes:
        old: The version that was current.
        new: The candidate.
        salt: Selects the streams that take part.
        existing: Whether streams take part that were there before.
        percent: The largest share so far.
        modes: When each mode was first requested.
        how: How it ended; None: it runs.
        ended: When its end was first requested.
        known: When the response to that arrived.
    """

    old: int
    new: int
    salt: str
    existing: bool
    percent: float
    modes: dict[Mode, float]
    how: How | None = None
    ended: float = math.inf
    known: float = math.inf

    @property
    def began(self) -> float:
        """When it was first requested."""
        return min(self.modes.values())

    def has_mode(self, mode: Mode, by: float) -> bool:
        """Whether a mode was requested by a time."""
        return self.modes.get(mode, math.inf) <= by

    def takes_part(self, record: str) -> bool:
        """Whether a stream was ever in the share."""
        return takes_part(record, self.salt, self.percent)


@dataclass
class ReleaseLog:
    """The trials of a model with the versions 1 and 2, of which 1 is current at first.

    Attributes:
        trials: All trials, the oldest first.
        sweeps: When each sweep was requested.
    """

    trials: list[LoggedTrial] = field(default_factory=list)
    sweeps: list[float] = field(default_factory=list)

    @property
    def running(self) -> LoggedTrial | None:
        """The trial that has not ended."""
        return self.trials[-1] if self.trials and self.trials[-1].how is None else None

    def first_trial(self, sent: float) -> int:
        """Return the index of the first trial that a worker may still follow at a time."""
        return bisect.bisect_left(self.trials, sent - STALE_S, key=lambda trial: trial.known)

    def currents(self, sent: float, answered: float) -> set[int]:
        """Return the versions that may have been current, for any worker, between two times."""
        first = self.first_trial(sent)
        before = next((trial for trial in reversed(self.trials[:first]) if trial.how == "promote"), None)
        promoted = {
            trial.new for trial in self.trials[first:] if trial.how == "promote" and trial.ended <= answered
        }  # fmt: skip
        return promoted | {1 if before is None else before.new}

    def may_sweep(self, answered: float) -> bool:
        """Whether a sweep may have moved streams by a time; it goes on as long as it meets streams that are stepped."""
        return bool(self.sweeps) and self.sweeps[0] <= answered
