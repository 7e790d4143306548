"""`stepwell adopt`: write a manifest for a graph that already is a step graph, and verify it by running the graph."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, cast, get_args

import numpy as np
import typer

from model_export.adopt.autoconfigure import Adoption, write_sidecar
from model_export.adopt.autoconfigure import adopt as adopt_graph
from model_export.adopt.overrides import Kind, Overrides
from model_export.adopt.rewrite import Change, rewrite, write_new_file
from model_export.feedback import with_feedback
from model_export.files import check_new_file
from model_export.manifest import Manifest
from model_export.precision import StoreDType, StoreEffect, narrow_store
from service.commands.flags import Feedback, axes_of, feedback_of, named_values
from service.commands.tables import format_bytes, parity_lines, show, tensors_table


def adopt(
    file: Annotated[Path, typer.Argument(metavar="FILE.onnx", help="A graph that consumes one timestep per run.")],
    *,
    name: Annotated[str | None, typer.Option(help="The model's name; by default the file's name.")] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="IN=OUT", help="A state input and its output. If given, no other states are detected."),
    ] = None,
    constant: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="An input with a constant value; VALUE as JSON.")
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=KIND", help="value (returned), random (differs between runs) or ignore."),
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(metavar="INPUT=LENGTH", help="Timesteps of past input that the graph expects before the new one."),
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=LENGTHxLENGTH", help="The shape of one row in requests or responses."),
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
            help="A state's initial value: one number for all elements, a JSON list, or arrays by state name.",
        ),
    ] = None,
    store_dtype: Annotated[
        StoreDType | None, typer.Option(help="Store float states in this type: half the memory per stream.")
    ] = None,
    feedback: Feedback = None,
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write the manifest of a step graph to a file beside it; the graph itself is not changed."""
    hints = Overrides(
        states=named_values("--state", state or [], "IN=OUT"),
        constants={n: _value(text, "--constant") for n, text in named_values("--constant", constant or []).items()},
        outputs={n: _kind(text) for n, text in named_values("--output", output or [], "NAME=KIND").items()},
        windows={n: _length(text) for n, text in named_values("--window", window or [], "INPUT=LENGTH").items()},
        shapes={n: _lengths(text) for n, text in named_values("--shape", shape or []).items()},
        batch_axes=axes_of("--batch-axis", batch_axis),
        time_axes=axes_of("--time-axis", time_axis),
        initial=_initial(init or []),
    )
    rules = feedback_of(feedback)
    wanted: list[tuple[Change, bool]] = [("fold-context", fold), ("batchify", batch)]
    changes = [change for change, is_wanted in wanted if is_wanted]
    if bool(changes) != (target is not None):
        raise typer.BadParameter(
            "use it together with --fold-context or --batchify; each needs the other.", param_hint="-o"
        )
    if target is not None:
        check_new_file(target, source=file)
    adoption = adopt_graph(file, name=name, hints=hints, replace=replace)
    source: Path | bytes = file
    manifest, effect = with_feedback(adoption.manifest, rules), None
    if changes:
        source, manifest = rewrite(file, manifest, changes)
    if store_dtype:
        manifest, effect = narrow_store(source, manifest, store_dtype)
    if target is not None and isinstance(source, bytes):
        write_new_file(target, source, manifest)
    written = write_sidecar(file, manifest) if target is None else target
    arguments = [str(file), *adoption.flags, *(word for text in init or [] for word in ("--init", text))]
    arguments += [*(f"--{change}" for change in changes), *(["-o", str(target)] if target else [])]
    arguments += ["--store-dtype", store_dtype] if store_dtype else []
    arguments += [word for text in feedback or [] for word in ("--feedback", text)]
    if as_json:
        typer.echo(json.dumps(_report(adoption, manifest, effect, written), indent=2))
    else:
        _show(adoption, manifest, effect, written, arguments)


def _report(adoption: Adoption, manifest: Manifest, effect: StoreEffect | None, written: Path) -> dict[str, object]:
    return {
        "written": str(written),
        "manifest": json.loads(manifest.to_json()),
        "batched": manifest.batch.mode == "stack",
        "states_found_by": adoption.how,
        "flags": adoption.flags,
        "notes": adoption.notes,
        "store": dataclasses.asdict(effect) if effect else None,
    }


def _show(
    adoption: Adoption, manifest: Manifest, effect: StoreEffect | None, written: Path, arguments: Sequence[str]
) -> None:
    verified = manifest.verified
    lines = [
        *(f"note: {note}." for note in adoption.notes),
        f"checked: {parity_lines(verified.model_dump())}."
        if verified
        else "checked: the graph runs, and two runs give the same result.",
        f"rows:    {'run together' if manifest.batch.mode == 'stack' else 'run one at a time'}",
    ]
    if manifest.time.chunk == "dynamic":
        lines.append("chunks:  many timesteps in one run")
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
        f"written: {written}",
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
            with np.load(file, allow_pickle=False) as arrays:
                values |= {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, AttributeError) as exc:
            raise typer.BadParameter(
                f"{file!r} is neither STATE=VALUE nor an .npz file: {exc}.", param_hint="--init"
            ) from exc
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
