"""`python -m campaign.published --python VENV/bin/python`: exports every model, and writes the table of docs/models.md.

The other Python has the packages of `campaign.published.models`, and those of a clone.
"""

from __future__ import annotations

import json
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

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


def main(
    *,
    python: Annotated[Path, typer.Option(help="A Python that has the packages.")] = Path(sys.executable),
    only: Annotated[str, typer.Option(help="Packages with this text in their name alone; the page stays.")] = "",
    write: Annotated[bool, typer.Option(help="Write the table into docs/models.md.")] = False,
) -> None:
    """Export the models of published packages as their users construct them."""
    rows = []
    for model, made in _run(python, [model for model in MODELS if only in model.package]):
        rows.append((model, made))
        typer.echo(f"{model.package} | {model.code} | {made['verdict']} | {made['why']}")
    tried = [(model, made) for model, made in rows if made["verdict"] != "not installed"]
    counts = Counter(made["verdict"] for _, made in tried)
    typer.echo(f"{len(tried)} models of {len({model.package for model, _ in tried})} packages: {dict(counts)}")
    if write:
        text = PAGE.read_text()
        head, rest = text.split("<!-- published -->\n", 1)
        _, tail = rest.split("<!-- /published -->", 1)
        PAGE.write_text(f"{head}<!-- published -->\n{_table(tried)}<!-- /published -->{tail}")


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


def _table(rows: list[tuple[Published, dict[str, Any]]]) -> str:
    stepped = [made["seconds"] for _, made in rows if made["verdict"] == "steps"]
    counts = Counter(made["verdict"] for _, made in rows)
    lines = [
        f"{len(rows)} models of {len({model.package for model, _ in rows})} packages: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
        + f". The median export takes {statistics.median(stepped):.1f} s.",
        "",
        "| package | model | verdict | |",
        "| --- | --- | --- | --- |",
    ]
    for model, made in rows:
        cells = [f"{model.package} {made['version']}", f"`{model.code}`", made["verdict"], made["why"]]
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    typer.run(main)
