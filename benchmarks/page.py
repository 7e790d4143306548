"""Writes the benchmark results into the docs: tables and plots, so that no number is typed by hand."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "benchmarks"
PAGE = DOCS / "performance.md"

Result = Mapping[str, Any]


def write(page: Path = PAGE, results: Path = RESULTS) -> None:
    """Write the saved results into the page, and draw the plots."""
    page.write_text(filled(page.read_text(), results))
    draw(results, DOCS / "images")


def filled(text: str, results: Path = RESULTS) -> str:
    """Return the page with each `<!-- NAME -->` block filled from the saved result."""
    for name, table in _TABLES.items():
        file = results / f"{name}.json"
        if file.exists():
            before, after = f"<!-- {name} -->\n", f"<!-- /{name} -->"
            pattern = re.compile(re.escape(before) + ".*?" + re.escape(after), re.DOTALL)
            block = f"{before}{table(json.loads(file.read_text()))}\n{after}"
            text = pattern.sub(block.replace("\\", r"\\"), text)
    return text


def draw(results: Path, folder: Path) -> None:
    """Draw one SVG plot for each saved result."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update(
        {"svg.hashsalt": "stepwell", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    )
    for name, plot in _PLOTS.items():
        file = results / f"{name}.json"
        if file.exists():
            figure = plot(json.loads(file.read_text()))
            figure.savefig(folder / f"performance-{name}.svg", bbox_inches="tight", metadata={"Date": None})


# ------------------------------------------------------------------- tables


def _compared(result: Result) -> str:
    rows = [
        (
            line["name"], f"{line['rate']:,.0f}", f"{line['times_rate']:.2f}", f"{line['cpu_us']:.1f}",
            f"{line['times_cpu']:.2f}", f"{line['store_us']:.1f}", f"{line['p50_ms']:.2f}", f"{line['p99_ms']:.2f}",
        )
        for line in result["lines"]
    ]  # fmt: skip
    headers = ("", "steps/s", "times", "CPU us/step", "times less", "of it store", "p50 ms", "p99 ms")
    return _markdown(headers, rows) + _footnote(result)


def _http(result: Result) -> str:
    lines = result["lines"]
    first_own = next(at for at, line in enumerate(lines) if line["name"].startswith("Stepwell"))
    others = lines[:first_own]
    rows = [(line["name"], *(f"{_times(line, other):.2f}" for other in others)) for line in lines[first_own:]]
    return (
        f"{_compared(result)}\n\nSteps/s, in times of those of the others in the same round (medians):\n\n"
        f"{_markdown(('', *(other['name'] for other in others)), rows)}"
    )


def _times(line: Result, other: Result) -> float:
    ratios: list[float] = [a / b for a, b in zip(line["rates"], other["rates"], strict=True)]
    return statistics.median(ratios)


def _websocket(result: Result) -> str:
    table = _compared(result).split("\n\n")[0]
    shares = "; ".join(f"{line['name']}: {line['rate'] / result['in_process']:.3f}" for line in result["lines"][1:])
    alone = (
        f"onnxruntime alone, in process, batches of 256: {result['in_process']:,.0f} steps/s. Shares of it: {shares}."
    )
    return f"{table}\n\n{alone}{_footnote(result)}"


def _streams(result: Result) -> str:
    first = result["lines"][0]
    rows = [
        (
            line["name"], f"{line['rate']:,.0f}", f"{line['cpu_us']:.1f}", f"{line['cpu_us'] / first['cpu_us']:.2f}",
            f"{line['store_us']:.1f}", f"{line['store_bytes']:,.0f}",
        )
        for line in result["lines"]
    ]  # fmt: skip
    headers = ("", "steps/s", "CPU us/step", "times the first", "of it store", "store bytes/stream")
    return _markdown(headers, rows) + _footnote(result)


def _latency(result: Result) -> str:
    rows = [
        (
            line["name"], f"{line['rate']:,.0f}", f"{line['cpu_us']:.0f}", f"{line['p50_ms']:.2f}",
            f"{line['p99_ms']:.2f}",
        )
        for line in result["lines"]
    ]  # fmt: skip
    return _markdown(("due", "answered/s", "CPU us/step", "p50 ms", "p99 ms"), rows) + _footnote(result)


def _clients(result: Result) -> str:
    lines = result["lines"]
    rows = [
        (
            client["name"], f"{client['rate']:,.0f}", f"{client['cpu_us']:.1f}", f"{generator['cpu_us']:.1f}",
            f"{generator['cpu_us'] / client['cpu_us']:.2f}", f"{client['p50_ms']:.2f}",
        )
        for client, generator in zip(lines[::2], lines[1::2], strict=True)
    ]  # fmt: skip
    headers = ("64 streams", "steps/s", "service CPU us/step", "with load.c at that rate", "ratio", "p50 ms")
    return _markdown(headers, rows) + _footnote(result)


_STARTS = {"first": "the first with a model file", "again": "later ones"}


def _startup(result: Result) -> str:
    rows = [
        (_STARTS[start["start"]], f"{start['cpu_s']:.2f}", f"{start['store_s']:.2f}", f"{start['wall_s']:.2f}")
        for start in result["starts"]
    ]
    table = _markdown(("start", "CPU s", "CPU s of the store", "seconds"), rows)
    return f"{table}\n\n{result['rounds']} rounds, medians. {result['machine']['cpu']}, {_versions(result)}."


def _profile(result: Result) -> str:
    rows = [(name, f"{share:.0%}") for name, share in result["shares"].items()]
    return _markdown(("one worker at full load, 256 connections", "share of its CPU"), rows) + _footnote(result)


def _markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["--:"] * (len(headers) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (headers, rule, *rows))


def _footnote(result: Result) -> str:
    bad = sum(line["errors"] + line["wrong"] for line in result["lines"])
    return (
        f"\n\n{result['rounds']} round(s) of {result['seconds']:g} s, medians; errors and wrong answers: {bad}. "
        f"{result['machine']['cpu']}, {_versions(result)}."
    )


def _versions(result: Result) -> str:
    return ", ".join(f"{name} {value}" for name, value in result["machine"].items() if name not in ("cpu", "system"))


_TABLES: dict[str, Callable[[Result], str]] = {
    "http": _http,
    "websocket": _websocket,
    "workers": _compared,
    "streams": _streams,
    "latency": _latency,
    "profile": _profile,
    "startup": _startup,
    "clients": _clients,
    "proxy": _compared,
}


# ------------------------------------------------------------------- plots


def _bars(result: Result) -> Any:
    """Steps per second and CPU per step, one bar per line."""
    from matplotlib import pyplot as plt

    lines = result["lines"][::-1]
    figure, sides = plt.subplots(1, 2, figsize=(9, 0.42 * len(lines) + 1), sharey=True)
    colours = ["#0b7285" if "Stepwell" in line["name"] or "msgpack" in line["name"] else "#adb5bd" for line in lines]
    names = [line["name"] for line in lines]
    for side, key, title in zip(sides, ("rate", "cpu_us"), ("steps/s", "CPU microseconds per step"), strict=True):
        bars = side.barh(names, [line[key] for line in lines], color=colours)
        side.bar_label(bars, [f" {line[key]:,.0f}" for line in lines], fontsize=8)
        side.set_title(title, loc="left", fontsize=9)
        side.set_xticks([])
        side.spines["bottom"].set_visible(False)
        side.margins(x=0.18)
    figure.tight_layout()
    return figure


def _over_rates(result: Result) -> Any:
    """p50 and p99 by offered rate."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.2))
    by_name: dict[str, list[tuple[float, float, float]]] = {}
    for line in result["lines"]:
        due, is_rate, name = line["name"].partition("/s: ")
        if is_rate:
            by_name.setdefault(name, []).append((float(due.replace(",", "")), line["p50_ms"], line["p99_ms"]))
    for (name, points), colour in zip(by_name.items(), ("#868e96", "#e8590c", "#0b7285"), strict=False):
        rates, p50, p99 = zip(*points, strict=True)
        axes.plot(rates, p99, "o-", color=colour, label=f"{name}, p99")
        axes.plot(rates, p50, "o:", color=colour, label=f"{name}, p50")
    axes.set(xscale="log", yscale="log", xlabel="requests due per second", ylabel="ms until answered")
    axes.legend(frameon=False, fontsize=8)
    return figure


_PLOTS: dict[str, Callable[[Result], Any]] = {"http": _bars, "websocket": _bars, "latency": _over_rates}
