"""`stepwell adopt`: describe a graph that already is stepwise, and prove the description by running it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from model_export.adopt import Hints, Kind, write_sidecar
from model_export.adopt import adopt as adopt_graph
from service.commands.tables import named_values, parity_words, show, tensors_table


def adopt(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="A graph that consumes one timestep a run.")],
    *,
    name: Annotated[str | None, typer.Option(help="The model's name; the file's by default.")] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="IN=OUT", help="A state input and its output. With any, no other is looked for."),
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An input that never changes; VALUE as JSON.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KIND", help="value (answered), random (differs from run to run) or ignore."),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=LENGTH", help="How much past input the graph wants in front of the new part."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LENGTHxLENGTH", help="One row as a caller sends it, or as it is answered."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Describe it though it has a manifest inside.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """Write the manifest for a graph that already is stepwise, beside it; the graph itself is not touched."""
    hints = Hints(
        states=named_values("--state", state or [], "IN=OUT"),
        constants={n: _value(text) for n, text in named_values("--constant", constant or []).items()},
        outputs={n: _kind(text) for n, text in named_values("--output", output or [], "NAME=KIND").items()},
        windows={n: _length(text) for n, text in named_values("--window", window or [], "INPUT=LENGTH").items()},
        shapes={n: _lengths(text) for n, text in named_values("--shape", shape or []).items()},
    )
    found = adopt_graph(file, name=name, hints=hints, replace=replace)
    sidecar = write_sidecar(file, found.manifest)
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "sidecar": str(sidecar),
                    "manifest": json.loads(found.manifest.to_json()),
                    "batched": found.batched,
                    "states_found_by": found.how,
                    "flags": found.flags,
                    "notes": found.notes,
                },
                indent=2,
            )
        )
        return
    verified = found.manifest.verified
    show(
        tensors_table(found.manifest),
        *(f"note: {note}." for note in found.notes),
        f"proved:  {parity_words(verified.model_dump())}." if verified else "proved:  it runs, and twice the same.",
        f"rows:    {'run together' if found.batched else 'run one at a time'}",
        f"same as: stepwell adopt {shlex.join([str(file), *found.flags])}",
        f"written: {sidecar}",
    )


def _value(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text!r} is not a JSON number, boolean or list of them.", param_hint="--constant"
        ) from exc


def _kind(text: str) -> Kind:
    if text not in get_args(Kind):
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(get_args(Kind))}.", param_hint="--output")
    return cast("Kind", text)


def _length(text: str, flag: str = "--window") -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a length of at least 1.", param_hint=flag)
    return int(text)


def _lengths(text: str) -> list[int]:
    return [_length(part, "--shape") for part in text.replace(",", "x").split("x")] if text else []
