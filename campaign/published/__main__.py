"""`python -m campaign.published --python VENV/bin/python`: exports every model, and writes the table of docs/models.md.

The other Python has the packages of `campaign.published.models`, and those of a clone.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from campaign.published.models import MODELS, Published

_HEADS = ("package", "model", "verdict", "difference or reason")
PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def main(
    *,
    python: Annotated[Path, typer.Option(help="A Python that has the packages.")] = Path(sys.executable),
    only: Annotated[str, typer.Option(help="A pattern: packages whose names have it, alone.")] = "",
    write: Annotated[bool, typer.Option(help="Write the table into docs/models.md.")] = False,
) -> None:
    """Export the models of published packages as their users construct them."""
    rows = []
    for model, made in _run(python, [model for model in MODELS if re.search(only, model.package)]):
        rows.append((model, made))
        took = f"{made['seconds']:.1f} s"
        typer.echo(f"{model.package} | {model.code} | {made['verdict']} | {made['why']} | {took}")
    tried = [(model, made) for model, made in rows if made["verdict"] != "not installed"]
    counts = Counter(made["verdict"] for _, made in tried)
    typer.echo(f"{len(tried)} models of {len({model.package for model, _ in tried})} packages: {dict(counts)}")
    for what, summary in (("steps", statistics.median), ("refused", max)):
        if seconds := [made["seconds"] for _, made in tried if made["verdict"] == what]:
            typer.echo(f"{what}: {summary.__name__} {summary(seconds):.1f} s of CPU time")
    if write:
        text = PAGE.read_text()
        head, rest = text.split("<!-- published -->\n", 1)
        _, tail = rest.split("<!-- /published -->", 1)
        kept = [] if not only else [line for line in rest.splitlines() if _is_of_others(line, only)]
        PAGE.write_text(f"{head}<!-- published -->\n{_table(tried, kept)}<!-- /published -->{tail}")


def _run(python: Path, models: list[Published]) -> Iterator[tuple[Published, dict[str, Any]]]:
    """Yield the verdict on each model: what, why, how long."""
    env = {"PYTHONPATH": str(PAGE.parents[1]), "KERAS_BACKEND": "jax", "PATH": "/usr/bin:/bin"}
    with subprocess.Popen(
        [str(python), "-m", "campaign.published.worker"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env,
    ) as worker:  # fmt: skip
        assert worker.stdin is not None
        assert worker.stdout is not None
        for model in models:
            worker.stdin.write(json.dumps(asdict(model)) + "\n")
            worker.stdin.flush()
            yield model, json.loads(worker.stdout.readline())
        worker.stdin.close()


def _is_of_others(line: str, only: str) -> bool:
    """Whether a line of the page is a model of a package that was not run now."""
    cells = line.split(" | ")
    return len(cells) >= 4 and "`" in cells[1] and not re.search(only, cells[0].removeprefix("| ").split()[0])


def _table(rows: list[tuple[Published, dict[str, Any]]], kept: list[str]) -> str:
    lines = list(kept)
    for model, made in rows:
        cells = [f"{model.package} {made['version']}", f"`{model.code}`", made["verdict"], made["why"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    parts = [line.split(" | ") for line in lines]
    counts = Counter(cells[2] for cells in parts)
    head = f"{len(parts)} models of {len({cells[0] for cells in parts})} packages: "
    head += ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) + "."
    return "\n".join([head, "", f"| {' | '.join(_HEADS)} |", "| --- " * len(_HEADS) + "|", *lines]) + "\n"


if __name__ == "__main__":
    typer.run(main)
