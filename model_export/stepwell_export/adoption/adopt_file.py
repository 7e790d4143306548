"""Adopt a step graph: describe it, change it where that is wanted, and write the result."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from stepwell_export.adoption.autoconfigure import Adoption, adopt, write_sidecar
from stepwell_export.adoption.overrides import Kind, Overrides
from stepwell_export.adoption.own_data import with_own_data
from stepwell_export.adoption.recipes import Recipe, recognized, with_recipe
from stepwell_export.adoption.rewrite import Change, rewrite
from stepwell_export.arguments import check_every
from stepwell_export.converted import with_manifest
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.precision import StoreDType, StoreEffect, narrow_store
from stepwell_export.runtime.errors import FileError, UnclearModelError
from stepwell_export.runtime.feedback import with_feedback
from stepwell_export.runtime.files import check_new_file, write_atomically
from stepwell_export.runtime.manifest import NAME, Manifest


@dataclass(frozen=True, slots=True)
class Adopted:
    """The manifest that `adopt` has written, and what it found in the graph.

    Attributes:
        path: The manifest beside the graph; or the new graph, with its manifest inside.
        manifest: The manifest.
        adoption: What was found in the graph.
        store: What a narrower type in the store changes; None: it is not narrower.
        recipe: The published graph that it is; None: it is none that is known.
    """

    path: Path
    manifest: Manifest
    adoption: Adoption
    store: StoreEffect | None
    recipe: Recipe | None = None


def adopt_file(
    source: str | os.PathLike[str],
    *,
    name: str | None = None,
    states: Mapping[str, str] | None = None,
    constants: Mapping[str, Any] | None = None,
    outputs: Mapping[str, Kind] | None = None,
    windows: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    batch_axes: Mapping[str, int | None] | None = None,
    time_axes: Mapping[str, int | None] | None = None,
    initial: Mapping[str, Any] | None = None,
    feedback: Mapping[str, Any] | None = None,
    every: str | None = None,
    store_dtype: StoreDType | None = None,
    changes: Sequence[Change] = (),
    verify: str | os.PathLike[str] | None = None,
    target: str | os.PathLike[str] | None = None,
    replace: bool = False,
    use_recipe: bool = True,
) -> Adopted:
    """Write the manifest of a graph that already consumes one timestep per run, verified by running the graph.

    Args:
        source: The ONNX file; it is not changed.
        name: The model's name; the file's stem by default (the folder's, for `NAME/VERSION/model.onnx`).
        states: The state output by state input; if given, no other states are detected.
        constants: The constant value by input.
        outputs: `value`, `random` or `ignore` by output.
        windows: Timesteps of past input that the graph expects before the new one, by input.
        shapes: The shape of one row in requests or responses, by input or output.
        batch_axes: The batch axis by input; None: it has none.
        time_axes: The axis that is one timestep long, by input; None: it has none, whatever its axes are called.
        initial: The initial value by state input, or `INPUT.context` for a window: a number for all elements, or an
            array or nested lists with the elements of one row.
        feedback: For rollouts: by input, the output or the rule that makes it.
        every: The time from one timestep to the next in the training data, such as `1s`.
        store_dtype: The type in which float states are stored; None: their own.
        changes: `fold-context` makes states of the windows, `batchify` rewrites a graph for one row to run batches.
        verify: An `.npz` file with own sequences, `(T, ..)` or `(N, T, ..)` by input, which are run, too; the manifest
            keeps how they and the predictions are distributed.
        target: The ONNX file to write, if there are changes; None: a manifest is written beside the source.
        replace: Replace a manifest inside the file.
        use_recipe: Whether a published graph that is known by its structure gets what it needs; arguments win over it.

    Raises:
        UnclearModelError: Something cannot be detected, and the message names the flag that sets it; or there are
            changes without a target, or a target without changes.
        RefusedModelError: The graph is not stepwise, or random operators reach what must not depend on them.
        ModelLoadError: onnxruntime cannot load or run it.
        ParityError: The changed graph gives other values.
        TensorError: The own sequences do not fit the model.
        FileError: The target cannot be written, or there is no file of own sequences.
        MissingExtraError: The onnx package is not installed.
    """
    given = _read_arguments({
        "source": source, "name": name, "states": states, "constants": constants, "outputs": outputs,
        "windows": windows, "shapes": shapes, "batch_axes": batch_axes, "time_axes": time_axes, "initial": initial,
        "feedback": feedback, "store_dtype": store_dtype, "changes": changes, "verify": verify, "target": target,
    })  # fmt: skip
    check_every(every)
    source, target, verify = given.source, given.target, given.verify
    if bool(changes) != (target is not None):
        raise UnclearModelError(
            f"The changes are {list(changes)} and the target {target}; each needs the other.",
            fix="Give both, to write a changed graph; or none of them, to write a manifest beside the graph.",
        )
    if target is not None:
        check_new_file(target, source)
    if verify is not None and not verify.is_file():
        raise FileError(f"{verify} is not there; expected an .npz file.", fix="Check the path.")
    known = recognized(read_model(source)) if use_recipe and source.is_file() else None
    hints, notes = (given, []) if known is None else with_recipe(given, known[0], read_model(source), known[1])
    graph: Path | bytes = source
    adoption = adopt(source, name=name, hints=hints, replace=replace)
    adoption.notes.extend(notes)
    manifest, effect = with_feedback(adoption.manifest, given.feedback), None
    manifest = manifest.model_copy(update={"every": every})
    if changes:
        graph, manifest = rewrite(source, manifest, changes, adoption.notes)
    if store_dtype:
        manifest, effect = narrow_store(graph, manifest, store_dtype)
    if verify is not None:
        manifest = with_own_data(graph, manifest, verify, adoption.notes)
    if target is not None and isinstance(graph, bytes):
        write_atomically(target, with_manifest(graph, manifest))
        return Adopted(target, manifest, adoption, effect, known and known[0])
    return Adopted(write_sidecar(source, manifest), manifest, adoption, effect, known and known[0])


class _Arguments(Overrides):
    """What `adopt_file` is given."""

    source: Path
    name: Annotated[str, Field(pattern=f"^{NAME.pattern}$")] | None = None
    feedback: Mapping[str, Any] = {}
    store_dtype: StoreDType | None = None
    changes: Sequence[Change]
    verify: Path | None = None
    target: Path | None = None


def _read_arguments(given: Mapping[str, Any]) -> _Arguments:
    """Return the arguments in their types.

    Raises:
        UnclearModelError: One has another type; names it.
    """
    try:
        return _Arguments.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as exc:
        error = exc.errors()[0]
        first, *rest = error["loc"]
        place = f"[{rest[0]!r}]" if rest and isinstance(given[str(first)], Mapping | list | tuple) else ""
        raise UnclearModelError(
            f"The argument {first}{place} is {error['input']!r}: {error['msg'][0].lower()}{error['msg'][1:]}.",
            fix="Give it as the documentation of `adopt` has it.",
        ) from exc
