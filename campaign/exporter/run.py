"""Judges generated models in processes of their own, which may end or hang without ending the campaign."""

from __future__ import annotations

import itertools
import json
import select
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from campaign.exporter.cases import FrontEnd, draw, find
from campaign.exporter.verdicts import VERDICTS, Outcome

_MOST_SECONDS: Final = 300.0
"""After which a model has failed."""

_MOST_MODELS: Final = 80
"""Models of one process: frameworks keep what they compiled."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is judged.

    Attributes:
        front_ends: What models are written in, in turn.
        seed: Of all models.
        seconds: After which no model is begun.
        models: The most models; None: any number.
        processes: How many are judged at a time.
    """

    front_ends: Sequence[FrontEnd]
    seed: int
    seconds: float
    models: int | None = None
    processes: int = 1


@dataclass(slots=True)
class Found:
    """What became of the models so far, in the order in which they were judged."""

    outcomes: list[Outcome] = field(default_factory=list)

    def of(self, front_end: str) -> list[Outcome]:
        """Return the outcomes of a front end."""
        return [outcome for outcome in self.outcomes if outcome.front_end == front_end]

    @property
    def wrong(self) -> list[Outcome]:
        """The models that were written, wrong, and not called weak."""
        return [outcome for outcome in self.outcomes if outcome.verdict == "wrong"]

    def row(self, front_end: str) -> dict[str, Any]:
        """Return the counts of a front end: by verdict, of all models and of those without anything rare."""
        outcomes = self.of(front_end)
        plain = [outcome for outcome in outcomes if not outcome.rare]
        written = sum(outcome.verdict == "right" for outcome in plain)
        counts = Counter(outcome.verdict for outcome in outcomes)
        return {
            "models": len(outcomes),
            **{verdict: counts[verdict] for verdict in VERDICTS},
            "plain": len(plain),
            "plain_written": written,
            "plain_share": round(written / len(plain), 3) if plain else None,
        }


def run(plan: Plan, found: Found, on_outcome: Callable[[Outcome], None] = lambda outcome: None) -> None:
    """Judge models until the time or their number is over.

    Args:
        plan: What is judged.
        found: The outcomes are added here.
        on_outcome: Called with each.
    """
    names, lock, end = _names(plan), threading.Lock(), time.monotonic() + plan.seconds

    def work() -> None:
        judge = _Judge()
        try:
            while time.monotonic() < end:
                with lock:
                    name = next(names, None)
                if name is None:
                    return
                outcome = judge.outcome(name)
                with lock:
                    found.outcomes.append(outcome)
                    on_outcome(outcome)
        finally:
            judge.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(plan.processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _names(plan: Plan) -> Iterator[str]:
    every = (draw(front_end, plan.seed, index).id for index in itertools.count() for front_end in plan.front_ends)
    return itertools.islice(every, plan.models)


class _Judge:
    """A process that judges models, started anew when it ends, hangs or has judged many."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._judged = 0

    def outcome(self, name: str) -> Outcome:
        """Return what becomes of a model."""
        started = time.monotonic()
        if self._process is None or self._judged >= _MOST_MODELS:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "campaign.exporter.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        self._judged += 1
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _MOST_SECONDS)
        line = self._process.stdout.readline() if ready else ""
        if line:
            return Outcome(**json.loads(line))
        self._process.kill()
        code = self._process.wait()
        self.close()
        case = find(name)
        why = f"the process ended with {code}" if ready else f"it took more than {_MOST_SECONDS:g} s"
        return Outcome(name, case.described, case.rare, case.front_end, "failed", why, time.monotonic() - started)

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
        self._process, self._judged = None, 0
