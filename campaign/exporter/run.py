"""Judges generated models in processes of their own, which may end or hang without ending the campaign."""

from __future__ import annotations

import contextlib
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

    Raises:
        KeyboardInterrupt: Ctrl-C. All processes have ended, and `found` has what was judged before.
    """
    names, lock, end = _names(plan), threading.Lock(), time.monotonic() + plan.seconds
    judges = [_Judge() for _ in range(plan.processes)]

    def work(judge: _Judge) -> None:
        while time.monotonic() < end:
            with lock:
                name = next(names, None)
            outcome = None if name is None else judge.outcome(name)
            if outcome is None:
                return
            with lock:
                found.outcomes.append(outcome)
                on_outcome(outcome)

    threads = [threading.Thread(target=work, args=[judge], daemon=True) for judge in judges]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    finally:
        for judge in judges:
            judge.end()
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
        self._has_ended = False
        self._lock = threading.Lock()

    def outcome(self, name: str) -> Outcome | None:
        """Return what becomes of a model; None once another thread has called `end`."""
        started = time.monotonic()
        if self._judged >= _MOST_MODELS:
            self._close()
        with self._lock:
            if self._has_ended:
                return None
            process = self._process = self._process or _start()
        self._judged += 1
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, as what it answers shows
            process.stdin.write(f"{name}\n")
            process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], _MOST_SECONDS)
        line = process.stdout.readline() if ready else ""
        if line:
            return Outcome(**json.loads(line))
        process.kill()
        code = process.wait()
        self._close()
        if self._has_ended:
            return None
        case = find(name)
        why = f"the process ended with {code}" if ready else f"it took more than {_MOST_SECONDS:g} s"
        return Outcome(name, case.described, case.rare, case.front_end, "failed", why, time.monotonic() - started)

    def end(self) -> None:
        """End the process; no other is started."""
        with self._lock:
            self._has_ended = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def _close(self) -> None:
        with self._lock:
            process, self._process, self._judged = self._process, None, 0
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    if pipe is not None:
                        pipe.close()


def _start() -> subprocess.Popen[str]:
    """Start a process that reads names; Ctrl-C in a terminal does not reach its process group."""
    return subprocess.Popen(
        [sys.executable, "-m", "campaign.exporter.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0,
    )  # fmt: skip
