"""Whether the states of an older version can be kept by a newer one, or be translated into its states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stepwell_export.export_sources import named_object
from stepwell_export.forecasts_after_a_move import FirstForecasts, first_forecasts
from stepwell_export.runtime.errors import FileError, RefusedModelError, StepwellError
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.operator_scan import check_operators
from stepwell_export.runtime.session import open_session
from stepwell_export.runtime.state_packing import StateField, TensorLayout, from_graph, to_graph
from stepwell_export.runtime.step_model import StepModel, random_rows

_STEPS = 8
_ROWS = 3


@dataclass(frozen=True, slots=True)
class Replacement:
    """What becomes of the states of the streams of an older version.

    Attributes:
        old: The older version's file.
        version: Its version.
        states: `compatible`: they are kept as they are. `translate`: a graph computes the new states from them.
            `incompatible`: they cannot be used; streams begin anew.
        reasons: Each state that differs, and how; empty if they are compatible.
        translation: The file of the translation; None: there is none.
        forecasts: The first forecasts after a move, by own data; None: there was none, or it shows nothing.
    """

    old: Path
    version: int
    states: Literal["compatible", "translate", "incompatible"]
    reasons: list[str]
    translation: Path | None = None
    forecasts: FirstForecasts | None = None


@dataclass(frozen=True, slots=True)
class Replaced:
    """What `stepwell export --replaces` was given.

    Attributes:
        old: The older version's file.
        translate: `package.module:callable` that makes the translation; None: none is made.
    """

    old: Path
    translate: str | None = None


def read_version(path: Path) -> int:
    """Return the version of a model file: its folder's number in `NAME/VERSION/model.onnx`, else 1."""
    number = path.absolute().parent.name
    return int(number) if path.name == "model.onnx" and number.isdecimal() else 1


def differences(old: Sequence[StateField], new: Sequence[StateField]) -> list[str]:
    """Return each state that differs in name, shape or dtype, and how; empty: states can be kept."""
    mine = {field.name: f"{field.dtype}{list(field.shape)}" for field in old}
    other = {field.name: f"{field.dtype}{list(field.shape)}" for field in new}
    lines = []
    for name in sorted(mine.keys() | other.keys()):
        if name not in mine:
            lines.append(f"state {name!r} is new: {other[name]}")
        elif name not in other:
            lines.append(f"state {name!r} is gone: {mine[name]}")
        elif mine[name] != other[name]:
            lines.append(f"state {name!r} is {other[name]}, and was {mine[name]}")
    return lines


def replaced(
    given: Replaced, content: bytes, target: Path, data: Mapping[str, Array] | None = None
) -> tuple[Replacement, bytes | None]:
    """Compare a new version with the one that it replaces.

    Args:
        given: The older version, and how its states are translated.
        content: The new version's file.
        target: Where it is written; the translation lies beside it.
        data: Own sequences, `(N, T, *row)` by input, on which the first forecasts after a move are judged.

    Returns:
        What becomes of the states, and the translation's file if one is to be written.

    Raises:
        FileError: The older version's file is not there.
        ManifestError: It has no manifest.
        ModelLoadError: onnxruntime refuses it or the translation.
        RefusedModelError: The translation cannot be made, or does not compute the new states.
    """
    if not given.old.is_file():
        raise FileError(f"{given.old} is not there; expected the version that is replaced.", fix="Check `--replaces`.")
    old, new = StepModel(given.old), StepModel(content)
    version = read_version(given.old)
    reasons = differences(old.fields, new.fields)
    if given.translate is None:
        kind: Literal["compatible", "incompatible"] = "incompatible" if reasons else "compatible"
        forecasts = None if data is None else first_forecasts(old, new, data, keeps=not reasons)
        return Replacement(given.old, version, kind, reasons, forecasts=forecasts), None
    translation = _made(given.translate, old, new)
    translate = check_translation(translation, old, new, where=given.translate)
    forecasts = None if data is None else first_forecasts(old, new, data, keeps=not reasons, translate=translate)
    path = target.with_name(f"translate-from-{version}.onnx")
    return Replacement(given.old, version, "translate", reasons, path, forecasts), translation


def check_translation(
    translation: bytes, old: StepModel, new: StepModel, *, where: str
) -> Callable[[Mapping[str, Array]], Mapping[str, Array]]:
    """Run a translation on states of the older version, check the states that it computes, and return it.

    Args:
        translation: An ONNX file: inputs named as the old states, outputs as the new ones, with the batch axes that
            these have in the step graphs. An output may have the name of the new state's output instead, since a graph
            cannot compute a tensor that has the name of one of its inputs.
        old: The older version.
        new: The newer version.
        where: Where the translation is from, for errors.

    Raises:
        ModelLoadError: onnxruntime refuses it, or it has operators that are not run.
        RefusedModelError: Names, shapes or dtypes are wrong, it fails, or it computes NaN or infinity.
    """
    contents = check_operators(translation)
    session = open_session(translation, where=where, contents=contents, threads=1, providers=("CPUExecutionProvider",))
    takes = {tensor.name for tensor in session.get_inputs()}
    gives = {tensor.name for tensor in session.get_outputs()}
    ours, theirs = {field.name for field in old.fields}, {field.name for field in new.fields}
    next_of = {spec.input: spec.output for spec in new.manifest.states}
    names = [field.name if field.name in gives else next_of.get(field.name, "") for field in new.fields]
    if not takes <= ours or not gives.issuperset(names):
        raise _unfit(where, f"takes {sorted(takes)} and gives {sorted(gives)}", f"{sorted(ours)}, and {sorted(theirs)}")
    layouts = _layouts(new)

    def run(states: Mapping[str, Array]) -> list[Array]:
        feeds = {
            place.name: to_graph(states[place.name], place.graph_row, place.batch_axis)
            for place in _layouts(old).values()
            if place.name in takes
        }
        try:
            made: list[Array] = session.run(names, feeds)
        except Exception as exc:
            raise RefusedModelError(
                f"The translation of {where} fails on states of the older version: {str(exc).strip()}.",
                fix="Its inputs have the shapes of the old states, with a batch axis of any length.",
            ) from exc
        return made

    def translated(states: Mapping[str, Array]) -> dict[str, Array]:
        count = len(next(iter(states.values()), np.empty(1)))
        rows = [states] if old.batched and new.batched else [
            {name: array[i : i + 1] for name, array in states.items()} for i in range(count)
        ]  # fmt: skip
        parts = [dict(zip([field.name for field in new.fields], run(one), strict=True)) for one in rows]
        each = count if len(rows) == 1 else 1
        return {
            name: np.concatenate([from_graph(part[name], layouts[name], each) for part in parts]) for name in parts[0]
        }

    count = _ROWS if old.batched and new.batched else 1
    for states in _states_of(old, count):
        for field, value in zip(new.fields, run(states), strict=True):
            _check_state(field, value, layouts[field.name], count, where)
    return translated


def _check_state(field: StateField, value: Array, place: TensorLayout, rows: int, where: str) -> None:
    batch = () if place.batch_axis is None else (rows,)
    expected = (*field.shape[: place.batch_axis or 0], *batch, *field.shape[place.batch_axis or 0 :])
    if value.shape != expected or value.dtype != field.dtype:
        raise _unfit(
            where,
            f"computes the state {field.name!r} as {value.dtype}{list(value.shape)} for {rows} streams",
            f"{field.dtype}{list(expected)}",
        )
    if value.dtype.kind == "f" and not np.isfinite(from_graph(value, place, rows)).all():
        raise RefusedModelError(
            f"The translation of {where} computes NaN or infinity in the state {field.name!r}.",
            fix="Correct the graph: it is run on initial states, and on those after some timesteps.",
        )


def _states_of(model: StepModel, rows: int) -> list[dict[str, Array]]:
    """Return initial states of the model, and those after some timesteps, each with `rows` streams."""
    rng = np.random.default_rng(0)
    initial = model.initial_states(rows)
    inputs = {spec.name: random_rows(rng, spec, (rows, _STEPS)) for spec in model.manifest.inputs}
    return [initial, model.chunk(inputs, initial)[1]]


def _layouts(model: StepModel) -> dict[str, TensorLayout]:
    axes = {spec.input: spec.batch_axis for spec in model.manifest.states}
    return {
        field.name: TensorLayout(field.name, field.shape, field.shape, axes.get(field.name, 0))
        for field in model.fields
    }  # fmt: skip


def _made(source: str, old: StepModel, new: StepModel) -> bytes:
    """Return the graph that a callable makes of both manifests, as a file."""
    module, colon, name = source.partition(":")
    if not (module and colon and name):
        raise RefusedModelError(
            f"`--translate` is {source!r}; expected package.module:callable.",
            fix="Name a function of (old manifest, new manifest) that returns an onnx.ModelProto.",
        )
    made = named_object(source, module, name)
    if callable(made):
        try:
            made = made() if not inspect.signature(made).parameters else made(old.manifest, new.manifest)
        except StepwellError:
            raise
        except Exception as exc:
            raise RefusedModelError(f"{source} failed: {type(exc).__name__}: {exc}.") from exc
    serialize: Any = getattr(made, "SerializeToString", None)
    content = made if isinstance(made, bytes) else serialize() if serialize is not None else None
    if content is None:
        raise RefusedModelError(
            f"{source} returned {type(made).__qualname__}; expected an onnx.ModelProto.",
            fix="Build the translation with onnx, for example with onnx.helper or onnx.parser.",
        )
    return bytes(content)


def _unfit(where: str, given: str, expected: str) -> RefusedModelError:
    return RefusedModelError(
        f"The translation of {where} {given}; expected {expected}.",
        fix="Name its inputs as the old states and its outputs as the new ones, with their shapes and dtypes.",
    )
