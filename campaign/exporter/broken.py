"""`python -m campaign exporter-mutants`: what becomes of models that a broken exporter exports.

A broken rule or pass has to be caught: the proof refuses what it makes, or an error ends the export. A model that a
broken exporter writes, wrong and not called weak, has escaped the proof.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from campaign.exporter.breaking import Break, count_breaks, install, modules, was_reached
from campaign.exporter.cases import FrontEnd, draw, find

PACKAGES: Final[dict[FrontEnd, tuple[str, ...]]] = {
    "onnx": ("stepwell_export.streaming", "stepwell_export.graph", "stepwell_export.chunk"),
    "keras": ("stepwell_export.keras", "stepwell_export.streaming", "stepwell_export.chunk"),
    "torch": ("stepwell_export.torch", "stepwell_export.streaming", "stepwell_export.chunk"),
    "adopt": ("stepwell_export.adoption",),
}
"""Whose expressions are changed, by the front end whose models are exported then."""

_MOST_SECONDS: Final = 600.0

Fate = Literal["not reached", "no difference", "caught", "escaped", "ended"]
"""`no difference`: every model is right, or called weak. `ended`: the process ended or hung."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """What became of a broken exporter.

    Attributes:
        what: What was changed.
        fate: What became of its models.
        by: The verdict and the reason of the model that decided.
    """

    what: str
    fate: Fate
    by: str


def draw_breaks(front_end: FrontEnd, seed: int) -> Iterator[Break]:
    """Draw expressions of a front end's packages, each as likely as any other."""
    names = modules(PACKAGES[front_end])
    counts = [count_breaks(name) for name in names]
    ends, rng = np.cumsum(counts), np.random.default_rng(seed)
    while True:
        place = int(rng.integers(ends[-1]))
        at = int(np.searchsorted(ends, place, side="right"))
        yield Break(names[at], place - int(ends[at] - counts[at]))


def plain_cases(front_end: FrontEnd, seed: int, count: int) -> list[str]:
    """Return models without anything rare: what makes them wrong is the broken exporter."""
    cases = (draw(front_end, seed, index) for index in range(10_000))
    return [case.id for case in cases if not case.rare][:count]


def run(breaks: Iterable[Break], cases: Sequence[str], on_mutant: Callable[[Mutant], None]) -> None:
    """Break the exporter in each of these ways, and export the same models."""
    for broken in breaks:
        on_mutant(_mutant(broken, cases))


def _mutant(broken: Break, cases: Sequence[str]) -> Mutant:
    command = [sys.executable, "-m", "campaign.exporter.broken", broken.module, str(broken.index), *cases]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_MOST_SECONDS, check=False)
        document: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError) as exc:
        return Mutant(f"{broken.module}, expression {broken.index}", "ended", type(exc).__name__)
    return Mutant(**document)


def main() -> None:
    """Break the exporter of this process, export models, and print the outcome as JSON."""
    module, index, *names = sys.argv[1:]
    warnings.simplefilter("ignore")
    what = install(Break(module, int(index)))
    from campaign.exporter.verdicts import judge_case

    fate: Fate = "not reached"
    by = ""
    for name in names:
        outcome = judge_case(find(name))
        if was_reached() and fate == "not reached":
            fate = "no difference"
        if outcome.verdict in ("refused", "failed") and fate != "escaped":
            fate, by = "caught", f"{outcome.case}: {outcome.verdict}: {outcome.why}"
        if outcome.verdict == "wrong":
            fate, by = "escaped", f"{outcome.case}: {outcome.described}: {outcome.why}"
            break
    print(json.dumps({"what": what, "fate": fate, "by": by}))  # noqa: T201


def counted(found: Sequence[Mutant]) -> dict[str, int]:
    """Return how many had each fate."""
    return dict(Counter(mutant.fate for mutant in found))


if __name__ == "__main__":
    main()
