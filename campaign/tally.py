"""`Tally`: what a campaign asked, what became of it, and every promise that was broken."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field

from campaign.checker import KINDS, Kind, Violation

_SHOWN = 20


@dataclass
class Tally:
    """Counts.

    Attributes:
        steps: Timesteps that were acknowledged and checked.
        answers: Answers that carried them, copies too, by their door.
        streams: Lives of streams that were checked, by the manner in which they were stepped.
        faults: What was done to the service and its store.
        tricks: What clients did on purpose: copies, gaps, late copies and the like.
        unknown: Requests of which the client did not learn, at first, what became of them.
        resolved: Those of which it learned by asking again.
        replayed: Answers that were told to be the first one again.
        asked_again: Requests that were sent again, for whatever reason.
        seconds: From the first sending of each step to its answer.
        violations: Broken promises.
    """

    steps: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    streams: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    tricks: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    resolved: int = 0
    replayed: int = 0
    asked_again: int = 0
    seconds: list[float] = field(default_factory=list)
    violations: list[Violation] = field(default_factory=list)
    broken: asyncio.Event = field(default_factory=asyncio.Event)

    def blame(self, kind: Kind, detail: str) -> None:
        """Note a broken promise."""
        self.add([Violation(kind, detail)])

    def add(self, violations: list[Violation]) -> None:
        """Note broken promises."""
        if violations:
            self.violations += violations
            self.broken.set()

    def by_kind(self) -> dict[str, int]:
        """Return the number of broken promises of each kind."""
        found = Counter(violation.kind for violation in self.violations)
        return {kind: found[kind] for kind in KINDS}

    def examples(self) -> list[str]:
        """Return some of the broken promises in words."""
        return [f"{kind}: {detail}" for kind, detail in self.violations[:_SHOWN]]
