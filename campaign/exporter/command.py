"""`python -m campaign exporter`."""

from __future__ import annotations

import dataclasses
import itertools
import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from campaign import result
from campaign.exporter import broken
from campaign.exporter.cases import FRONT_ENDS, find
from campaign.exporter.run import Found, Plan, run
from campaign.exporter.verdicts import VERDICTS, Outcome, judge_case

_console = Console(stderr=True)
_INTERRUPTED = 130
_SAVED_EVERY_S = 10.0
_SHOWN_EVERY_S = 60.0
"""Where the progress is written to a file, which has no bar."""


def exporter(
    *,
    minutes: Annotated[float, typer.Option(min=0.01, help="How long models are begun.")] = 10.0,
    models: Annotated[int | None, typer.Option(min=1, help="The most models.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of all models; random by default, and printed.")] = None,
    front_end: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(FRONT_ENDS)}; by default all, in turn. Repeatable.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Models judged at a time.")] = 1,
    case: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Judge this model again, in this process. Repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every model's outcome and the table as JSON.")] = False,
    save: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the JSON there.")] = None,
) -> None:
    """Generate models with something rare in them, export each, and judge it by its original.

    Exits with 0 if none was written, wrong, and not called weak; else with 1. Ctrl-C and SIGTERM end it with what was
    judged so far, and with 130 instead of 0.
    """
    if unknown := set(front_end or ()) - set(FRONT_ENDS):
        raise typer.BadParameter(f"{min(unknown)!r}; expected one of {', '.join(FRONT_ENDS)}", param_hint="--front-end")
    seed = secrets.randbelow(10**6) if seed is None else seed
    plan = Plan(
        [name for name in FRONT_ENDS if name in (front_end or FRONT_ENDS)], seed, minutes * 60, models, processes
    )
    found, ended_early = Found(), False
    if case:
        try:
            found.outcomes += [judge_case(find(name)) for name in case]
        except ValueError as exc:
            raise typer.BadParameter(f"{exc}", param_hint="--case") from None
    else:
        _console.print(f"seed {seed}")
        try:
            _run_with_progress(plan, found, save)
        except KeyboardInterrupt:
            ended_early = True
    document = _document(found, plan)
    if save is not None:
        result.save(save, document)
    if as_json:
        print(json.dumps(document, indent=1))  # noqa: T201
    else:
        _show(found, document, all_of_them=bool(case))
    if ended_early and not found.wrong:
        raise typer.Exit(_INTERRUPTED)
    raise typer.Exit(bool(found.wrong))


def exporter_mutants(
    *,
    mutants: Annotated[int, typer.Option(min=1, help="How many times the exporter is broken.")] = 100,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of what is broken; random by default.")] = None,
    front_end: Annotated[str, typer.Option(help=f"One of {', '.join(broken.PACKAGES)}.")] = "onnx",
    models: Annotated[int, typer.Option(min=1, help="Models that each broken exporter exports.")] = 6,
    as_json: Annotated[bool, typer.Option("--json", help="Print every mutant as JSON.")] = False,
) -> None:
    """Break one expression of the exporter at a time: the proof has to catch what it then makes of ordinary models.

    Exits with 0 if no model was written, wrong, and not called weak; else with 1.
    """
    if front_end not in broken.PACKAGES:
        raise typer.BadParameter(
            f"{front_end!r}; expected one of {', '.join(broken.PACKAGES)}", param_hint="--front-end"
        )
    name = next(name for name in broken.PACKAGES if name == front_end)
    seed = secrets.randbelow(10**6) if seed is None else seed
    _console.print(f"seed {seed}")
    found: list[broken.Mutant] = []
    with Progress(console=_console, transient=True) as bar:
        task = bar.add_task("starting", total=mutants)

        def update(mutant: broken.Mutant) -> None:
            found.append(mutant)
            bar.update(task, completed=len(found), description=str(broken.counted(found)))
            if mutant.fate == "escaped":
                bar.console.print(f"escaped: {mutant.what}: {mutant.by}", markup=False, highlight=False)

        breaks = itertools.islice(broken.draw_breaks(name, seed), mutants)
        broken.run(breaks, broken.plain_cases(name, seed, models), update)
    if as_json:
        print(json.dumps([dataclasses.asdict(mutant) for mutant in found], indent=1))  # noqa: T201
    else:
        Console().print(broken.counted(found))
    raise typer.Exit(any(mutant.fate == "escaped" for mutant in found))


def _run_with_progress(plan: Plan, found: Found, save: Path | None) -> None:
    """Judge models; meanwhile show how many, and save what was judged."""
    with Progress(console=_console, transient=True) as bar:
        task = bar.add_task("starting", total=plan.seconds if plan.models is None else plan.models)
        started = shown = bar.get_time()
        saved = started - _SAVED_EVERY_S

        def update(outcome: Outcome) -> None:
            nonlocal saved, shown
            now = bar.get_time()
            done = now - started if plan.models is None else len(found.outcomes)
            so_far = f"{len(found.outcomes):,} models, {len(found.wrong)} wrong"
            bar.update(task, completed=done, description=so_far)
            if outcome.verdict in ("wrong", "failed"):
                bar.console.print(_line(outcome), markup=False, highlight=False)
            if not _console.is_terminal and now > shown + _SHOWN_EVERY_S:
                _console.print(f"{so_far}, {(now - started) / 60:.0f} minutes")
                shown = now
            if save is not None and now >= saved + _SAVED_EVERY_S:
                result.save(save, _document(found, plan))
                saved = now

        run(plan, found, update)


def _document(found: Found, plan: Plan) -> dict[str, Any]:
    return {
        "campaign": "exporter",
        "seed": plan.seed,
        "front_ends": {name: found.row(name) for name in FRONT_ENDS if found.of(name)},
        "wrong": len(found.wrong),
        "models": [dataclasses.asdict(outcome) for outcome in found.outcomes],
    }


def _show(found: Found, document: dict[str, Any], *, all_of_them: bool) -> None:
    table = Table(
        title=f"{len(found.outcomes):,} generated models, seed {document['seed']}; plain: without anything rare"
    )
    for name in ("front end", "models", *VERDICTS, "plain", "written"):
        table.add_column(name, justify="left" if name == "front end" else "right")
    for name, row in document["front_ends"].items():
        share = "-" if row["plain_share"] is None else f"{row['plain_share']:.1%}"
        table.add_row(name, *(f"{row[key]:,}" for key in ("models", *VERDICTS, "plain")), share)
    console = Console()
    console.print(table)
    for outcome in found.outcomes if all_of_them else found.wrong:
        console.print(_line(outcome), markup=False, highlight=False)


def _line(outcome: Outcome) -> str:
    return f"{outcome.case}: {outcome.verdict}: {outcome.described}. {outcome.why}"
