"""The result of a campaign, as a JSON document and as a table."""

from __future__ import annotations

import json
import platform
import re
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from campaign import soak
from campaign.chaos import ChaosPlan
from campaign.clients.conformance import KitResult
from campaign.tally import Tally
from tests.servers import servers

_PACKAGES = ("stepwell", "onnxruntime", "numpy", "fastapi", "uvicorn", "redis")


def document(plan: ChaosPlan, tally: Tally, *, lacks: str | None, ended_early: bool) -> dict[str, Any]:
    """Return the result of a chaos campaign as a document; it contains nothing about the machine."""
    return {
        "campaign": "chaos",
        "transport": plan.transport,
        "client": plan.client,
        "on": datetime.now(UTC).date().isoformat(),
        "seed": plan.seed,
        "minutes": round(plan.seconds / 60, 2),
        "ended_early": ended_early,
        "broken_build": lacks and f"without {lacks}",
        "versions": _versions(),
        "streams": {"lives": dict(sorted(tally.streams.items())), "at_once": plan.streams},
        "steps": tally.steps,
        "answers": dict(sorted(tally.answers.items())),
        "faults": dict(sorted(tally.faults.items())),
        "releases": dict(sorted(tally.releases.items())),
        "streams_moved": tally.moves,
        "clients_on_purpose": dict(sorted(tally.deliberate.items())),
        "requests": {
            "sent_again": tally.retries,
            "outcome_unknown": tally.unknown,
            "resolved_by_asking_again": tally.resolved,
            "replayed": tally.replayed,
        },
        "answered_within_s": _quantiles(tally.seconds),
        "violations": tally.by_kind(),
        "examples": tally.examples(),
    }


def soak_document(plan: soak.SoakPlan, tally: Tally, samples: Sequence[soak.Sample]) -> dict[str, Any]:
    """Return the result of a soak campaign as a document."""
    return {
        "campaign": "soak",
        "on": datetime.now(UTC).date().isoformat(),
        "seed": plan.seed,
        "minutes": round(plan.seconds / 60, 2),
        "versions": _versions(),
        "streams": {"lives": dict(sorted(tally.streams.items())), "at_once": plan.streams},
        "steps": tally.steps,
        "samples": [{**sample._asdict(), "second": round(sample.second, 1)} for sample in samples],
        "grew": soak.describe_growth(samples),
        "violations": tally.by_kind(),
        "examples": tally.examples(),
    }


def kit_document(found: KitResult, seed: int, minutes: float) -> dict[str, Any]:
    """Return the result of the conformance cases under faults as a document."""
    return {
        "campaign": "conformance",
        "on": datetime.now(UTC).date().isoformat(),
        "seed": seed,
        "minutes": round(minutes, 2),
        "versions": _versions(),
        "passed": dict(found.passed),
        "skipped": found.skipped,
        "faults": dict(sorted(found.tally.faults.items())),
        "clients_on_purpose": dict(sorted(found.tally.deliberate.items())),
        "violations": len(found.violations),
        "examples": found.violations[:20],
    }


def save(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    new.write_text(json.dumps(result, indent=2) + "\n")
    new.replace(path)  # whoever reads it meanwhile gets a whole one


def show(result: dict[str, Any], console: Console) -> None:
    """Print the result of a chaos campaign."""
    table = Table(title=f"Chaos, {result['minutes']:g} minutes, seed {result['seed']}", show_header=False)
    runs, faults, requests = result["streams"]["lives"], result["faults"], result["requests"]
    response_s = result["answered_within_s"]
    table.add_row("steps checked", f"{result['steps']:,}")
    table.add_row("stream runs", f"{sum(runs.values()):,}")
    table.add_row("faults", f"{sum(faults.values())}: {_listed(faults)}")
    if releases := result["releases"]:
        table.add_row("release changes", f"{sum(releases.values()):,}: {_listed(releases)}")
        table.add_row("moves of streams", f"{result['streams_moved']:,}")
    table.add_row("deliberate client behaviour", _listed(result["clients_on_purpose"]))
    table.add_row("answers", _listed(result["answers"]))
    table.add_row("retried / replayed", f"{requests['sent_again']:,} / {requests['replayed']:,}")
    table.add_row("outcome unknown / resolved", f"{requests['outcome_unknown']:,} / "
                  f"{requests['resolved_by_asking_again']:,}")  # fmt: skip
    table.add_row("answered within", ", ".join(f"{name} {seconds:.3f} s" for name, seconds in response_s.items()))
    table.add_row("violations", _listed(result["violations"]))
    console.print(table)
    for example in result["examples"]:
        console.print(f"  {example}", markup=False, highlight=False)


def show_soak(result: dict[str, Any], console: Console) -> None:
    """Print the result of a soak campaign."""
    table = Table(title=f"Soak, {result['minutes']:g} minutes, seed {result['seed']}, {result['steps']:,} steps")
    for name in ("second", "workers' memory, MiB", "open files", "keys", "store's values, MiB"):
        table.add_column(name, justify="right")
    samples = result["samples"]
    for at in sorted({0, len(samples) // 3, 2 * len(samples) // 3, len(samples) - 2, len(samples) - 1}):
        sample = samples[at]
        memory, values = sample["memory"] / 2**20, sample["store_memory"] / 2**20
        table.add_row(
            f"{sample['second']:.0f}", f"{memory:.1f}", str(sample["files"]), f"{sample['keys']:,}", f"{values:.1f}"
        )
    console.print(table)
    for line in [*result["grew"], *result["examples"]]:
        console.print(f"  {line}", markup=False, highlight=False)


def _versions() -> dict[str, str]:
    name, binary = next(iter(servers().items()))
    printed = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    number = re.search(r"v=(\S+)", printed)
    return {
        **{package: version(package) for package in _PACKAGES},
        "python": platform.python_version(),
        "store": f"{name}, {number[1]}" if number else name,
    }


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in counts.items())


def _quantiles(seconds: list[float]) -> dict[str, float]:
    if len(seconds) < 2:
        return {}
    cuts = statistics.quantiles(seconds, n=100)
    return {"p50": round(cuts[49], 4), "p99": round(cuts[98], 4), "max": round(max(seconds), 4)}
