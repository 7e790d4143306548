"""Computes medians of the rounds, and prints them as tables."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.load import Result
from benchmarks.startup import Started
from stepwell.addons.embedded_store.server import find_server

_PACKAGES = ("stepwell", "fastapi", "uvicorn", "uvloop", "httptools", "msgspec", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True)
class Line:
    """The medians of one target's rounds, and its ratios to the first target of each round.

    `rates` are those of each round.
    """

    name: str
    rate: float
    times_rate: float
    cpu_us: float
    times_cpu: float
    store_us: float
    store_bytes: float
    p50_ms: float
    p99_ms: float
    errors: int
    wrong: int
    worst: float
    first_error: str
    rates: list[float]


def lines(rounds: Sequence[Mapping[str, Result]], *, measure: str) -> list[Line]:
    """Return one line per target; ratios are medians of each round's ratio to the target `measure`."""
    compared = []
    for name in rounds[0]:
        results = [r[name] for r in rounds]
        bases = [r[measure] for r in rounds]
        compared.append(
            Line(
                name,
                statistics.median(r.rate for r in results),
                statistics.median(r.rate / b.rate for r, b in zip(results, bases, strict=True)),
                statistics.median(r.cpu_us for r in results),
                statistics.median(b.cpu_us / max(r.cpu_us, 1e-9) for r, b in zip(results, bases, strict=True)),
                statistics.median(r.store_us for r in results),
                statistics.median(r.store_bytes for r in results),
                statistics.median(r.p50_us for r in results) / 1000,
                statistics.median(r.p99_us for r in results) / 1000,
                sum(r.errors for r in results),
                sum(r.wrong for r in results),
                max(r.worst for r in results),
                next((r.first_error for r in results if r.first_error), ""),
                [r.rate for r in results],
            )
        )
    return compared


def show(title: str, lines: Sequence[Line], *, unit: str = "steps/s") -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    headers = (
        unit,
        "times",
        "CPU us/step",
        "times less",
        "of it store",
        "B/stream",
        "p50 ms",
        "p99 ms",
        "errors",
        "wrong",
    )
    for head in headers:
        table.add_column(head, justify="right")
    for line in lines:
        store_bytes = f"{line.store_bytes:,.0f}" if line.store_bytes else ""
        table.add_row(
            line.name, f"{line.rate:,.0f}", f"{line.times_rate:.2f}", f"{line.cpu_us:.2f}", f"{line.times_cpu:.2f}",
            f"{line.store_us:.2f}", store_bytes, f"{line.p50_ms:.2f}", f"{line.p99_ms:.2f}",
            str(line.errors), str(line.wrong),
        )  # fmt: skip
    console = Console(width=max(Console().width, 150))
    console.print(table)
    for line in lines:
        if line.first_error:
            console.print(f"{line.name}: {line.first_error}", style="red", highlight=False)


def show_starts(trees: Sequence[Started]) -> None:
    """Print the cost of starts."""
    table = Table(title="From the launch until ready, medians", title_justify="left", title_style="bold")
    table.add_column("", no_wrap=True)
    for head in ("", "CPU s", "of the store", "seconds"):
        table.add_column(head, justify="right")
    for started in trees:
        for kind, start in (("first start", started.first), ("later starts", started.again)):
            table.add_row(started.tree, kind, f"{start.cpu_s:.2f}", f"{start.store_s:.2f}", f"{start.wall_s:.2f}")
    Console(width=max(Console().width, 150)).print(table)


def machine() -> dict[str, str]:
    """Return the machine and the versions that a reader needs to judge the results."""
    model = "unknown"
    for text in Path("/proc/cpuinfo").read_text().splitlines():
        if text.startswith("model name"):
            model = text.split(":", 1)[1].strip()
            break
    facts = {"cpu": f"{os.cpu_count()} x {model}", "system": platform.platform(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    name, number = _store()
    return {**facts, name: number}


def _store() -> tuple[str, str]:
    """Return name and version of the server used as embedded and external store."""
    server = find_server()
    output = subprocess.run([server, "--version"], capture_output=True, text=True, check=True).stdout
    number = re.search(r"v=(\S+)", output)
    return server.name, number[1] if number else output.strip()


def save(path: Path, name: str, lines: Sequence[Line], more: Mapping[str, object] | None = None) -> None:
    """Write the result of a benchmark for the plots and the docs."""
    document = {"benchmark": name, "machine": machine(), **(more or {}), "lines": [asdict(line) for line in lines]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")
