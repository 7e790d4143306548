"""`stepwell adopt`: write a manifest for a graph that already is a step graph, and verify it by running the graph."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from stepwell.commands.flags import Feedback, Grid, axes_of, feedback_of, named_values
from stepwell.commands.interrupted import reported_interrupt
from stepwell.commands.tables import Json, format_bytes, parity_lines, print_json, show, tensors_table
from stepwell_export.adoption.adopt_file import Adopted, adopt_file
from stepwell_export.adoption.overrides import Kind
from stepwell_export.adoption.rewrite import Change
from stepwell_export.precision import StoreDType
from stepwell_export.runtime.errors import TensorError
from stepwell_export.runtime.files import read_npz


@reported_interrupt()
def adopt(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="A graph that consumes one timestep per run.")],
    *,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the file's name.")] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IN=OUT", help="A state input and its output. If given, no other states are detected. Repeatable."
        ),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="An input with a constant value; VALUE as JSON. Repeatable."),
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=KIND", help="value (returned), random (differs between runs) or ignore. Repeatable."
        ),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=LENGTH",
            help="Timesteps of past input that the graph expects before the new one. Repeatable.",
        ),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LENGTHxLENGTH", help="The shape of one row in requests or responses. Repeatable."),
    ] = None,
    batch_axis: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=AXIS", help="The batch axis of an input, counted from 0, or none. Repeatable."),
    ] = None,
    time_axis: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=AXIS", help="The axis of an input that is one timestep long, or none. Repeatable."),
    ] = None,
    init: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE=VALUE|FILE.npz",
            help="A state's initial value: a number for all elements, a JSON list, or arrays by name. Repeatable.",
        ),
    ] = None,
    store_dtype: Annotated[
        StoreDType | None, typer.Option(help="Store float states in this type: half the memory per stream.")
    ] = None,
    feedback: Feedback = None,
    every: Grid = None,
    verify: Annotated[
        Path | None,
        typer.Option(metavar="FILE.npz", help="Also run own sequences, and keep how they are distributed, for drift."),
    ] = None,
    fold: Annotated[
        bool, typer.Option("--fold-context", help="Fold the windows into the graph as states; needs -o.")
    ] = False,
    batch: Annotated[
        bool, typer.Option("--batchify", help="Rewrite a graph for one row to run batches; needs -o.")
    ] = False,
    target: Annotated[
        Path | None, typer.Option("-o", "--write", metavar="NEW.onnx", help="The file to write the changed graph to.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a manifest inside the file.")] = False,
    no_recipe: Annotated[
        bool,
        typer.Option("--no-recipe", help="Set nothing for a published graph that is known by its structure."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the manifest of a step graph to a file beside it; the graph itself is not changed."""
    wanted: list[tuple[Change, bool]] = [("fold-context", fold), ("batchify", batch)]
    changes = [change for change, is_wanted in wanted if is_wanted]
    if bool(changes) != (target is not None):
        raise typer.BadParameter(
            "use it together with --fold-context or --batchify; each needs the other.", param_hint="-o"
        )
    adopted = adopt_file(
        file,
        name=name,
        states=named_values("--state", state or [], "IN=OUT"),
        constants={n: _value(text, "--constant") for n, text in named_values("--constant", constant or []).items()},
        outputs={n: _kind(text) for n, text in named_values("--output", output or [], "NAME=KIND").items()},
        windows={n: _length(text) for n, text in named_values("--window", window or [], "INPUT=LENGTH").items()},
        shapes={n: _lengths(text) for n, text in named_values("--shape", shape or []).items()},
        batch_axes=axes_of("--batch-axis", batch_axis),
        time_axes=axes_of("--time-axis", time_axis),
        initial=_initial(init or []),
        feedback=feedback_of(feedback),
        every=every,
        store_dtype=store_dtype,
        changes=changes,
        verify=verify,
        target=target,
        replace=replace,
        use_recipe=not no_recipe,
    )
    arguments = [str(file), *adopted.adoption.flags, *(word for text in init or [] for word in ("--init", text))]
    arguments += [*(f"--{change}" for change in changes), *(["-o", str(target)] if target else [])]
    arguments += ["--store-dtype", store_dtype] if store_dtype else []
    arguments += [word for text in feedback or [] for word in ("--feedback", text)]
    arguments += ["--every", every] if every else []
    arguments += ["--verify", str(verify)] if verify else []
    if as_json:
        print_json(_report(adopted))
    else:
        _show(adopted, arguments)


def _report(adopted: Adopted) -> dict[str, object]:
    adoption, manifest = adopted.adoption, adopted.manifest
    return {
        "written": str(adopted.path),
        "manifest": json.loads(manifest.to_json()),
        "batched": manifest.batch.mode == "stack",
        "states_found_by": adoption.how,
        "flags": adoption.flags,
        "notes": adoption.notes,
        "recipe": adopted.recipe and adopted.recipe.name,
        "unknown": adoption.unknown,
        "store": dataclasses.asdict(adopted.store) if adopted.store else None,
    }


def _show(adopted: Adopted, arguments: Sequence[str]) -> None:
    adoption, manifest, effect = adopted.adoption, adopted.manifest, adopted.store
    verified = manifest.verified
    recipe = adopted.recipe
    lines = [
        *([f"recipe: {recipe.name}, {recipe.source}"] if recipe else []),
        *(f"note: {note}." for note in adoption.notes),
        f"checked: {parity_lines(verified.model_dump())}."
        if verified
        else "checked: the graph runs, and two runs give the same result.",
        *([f"unknown: {adoption.unknown}."] if adoption.unknown else []),
        f"rows:    {'run together' if manifest.batch.mode == 'stack' else 'run one at a time'}",
    ]
    if manifest.time.chunk == "dynamic":
        lines.append("chunks:  many timesteps in one run")
    if manifest.reference:
        n, t = manifest.reference.sequences, manifest.reference.timesteps
        lines.append(f"reference: the distributions of {n:,} own sequences with {t:,} timesteps, for drift")
    if effect:
        before, after = effect.saved
        lines.append(
            f"stored:  states as {effect.dtype}: {format_bytes(after)} per stream, {format_bytes(before)} before; "
            f"outputs changed by at most {effect.max_abs:.1e} in {effect.steps} steps"
        )
    show(
        tensors_table(manifest),
        *lines,
        f"same as: stepwell adopt {shlex.join(arguments)}",
        f"written: {adopted.path}",
    )


def _initial(texts: Sequence[str]) -> dict[str, object]:
    """Return the values given with `--init` by state name; files of arrays are read."""
    files = [text for text in texts if "=" not in text]
    values: dict[str, object] = {
        name: _value(text, "--init")
        for name, text in named_values("--init", [text for text in texts if "=" in text]).items()
    }
    for file in files:
        try:
            values |= read_npz(Path(file))
        except TensorError as exc:
            raise typer.BadParameter(f"it is not STATE=VALUE, and {exc.problem}", param_hint="--init") from exc
    return values


def _value(text: str, flag: str) -> object:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise typer.BadParameter(f"{text!r} is not a JSON number, boolean or list of them.", param_hint=flag) from exc


def _kind(text: str) -> Kind:
    if text not in get_args(Kind):
        raise typer.BadParameter(f"{text!r} is not one of {', '.join(get_args(Kind))}.", param_hint="--output")
    return cast("Kind", text)


def _length(text: str, flag: str = "--window") -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not an integer of at least 1.", param_hint=flag)
    return int(text)


def _lengths(text: str) -> list[int]:
    return [_length(part, "--shape") for part in text.replace(",", "x").split("x")] if text else []
