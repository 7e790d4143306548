"""`Tally`: counts of a campaign's requests, outcomes, faults and violations."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from campaign.checker import KINDS, Kind, Violation

_SHOWN = 20


@dataclass
class Tally:
    """Counts of a campaign.

    Attributes:
        steps: Acknowledged and checked timesteps.
        answers: Responses with these timesteps, including copies, by transport.
        streams: Checked stream runs, by client pattern.
        faults: Injected faults, by kind.
        releases: Changes of the release, by kind.
        moves: Answers by another version than the one before.
        deliberate: Deliberate client behaviour, by kind: copies, gaps, late copies and the like.
        unknown: Requests whose outcome was unknown at first.
        resolved: Unknown outcomes that a retry resolved.
        replayed: Responses marked as replayed.
        retries: Retries, for any reason.
        seconds: Time from the first attempt of each step to its response.
        violations: Broken promises.
        broken: Set once there is a violation.
    """

    steps: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    moves: int = 0
    deliberate: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    resolved: int = 0
    replayed: int = 0
    retries: int = 0
    seconds: list[float] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    broken: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, kind: Kind, detail: str) -> None:
        """Record a violation."""
        self.add([Violation(kind, detail)])

    def add(self, violations: list[Violation]) -> None:
        """Record violations."""
        if violations:
            self.violations += violations
            self.broken.set()

    def by_kind(self) -> dict[str, int]:
        """Return the number of violations of each kind."""
        counts = Counter(violation.kind for violation in self.violations)
        return {kind: counts[kind] for kind in KINDS}

    def examples(self) -> list[str]:
        """Return descriptions of the first violations."""
        return [f"{kind}: {detail}" for kind, detail in self.violations[:_SHOWN]]
