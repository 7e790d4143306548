"""Describe a graph that already is stepwise: pair its states, find its axes, and prove it by running.

Nothing is believed because it is declared. What cannot be read from the graph is asked for, never guessed.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwell_export.adoption.axes import (
    Declared,
    Row,
    ShapedTensor,
    without_ones,
)
from stepwell_export.adoption.initial import find_initial
from stepwell_export.adoption.ort_graph import OrtGraph
from stepwell_export.adoption.overrides import Kind, Overrides, write_flags
from stepwell_export.adoption.pairing import Pairing, pair_states, related
from stepwell_export.adoption.row_search import Shapes, ask_for_length, find_rows, try_rows
from stepwell_export.adoption.verify_adopted import verify_adopted
from stepwell_export.graph.nodes import read_flow
from stepwell_export.graph.onnx_file import read_model
from stepwell_export.runtime.errors import ManifestError, ModelLoadError, RefusedModelError, UnclearModelError
from stepwell_export.runtime.files import write_atomically
from stepwell_export.runtime.manifest import DTYPES, NAME, Manifest, PackedTensor, sidecar_of
from stepwell_export.runtime.random_ops import random_outputs

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was found.

    Attributes:
        manifest: The description, proved by running.
        flags: The command line's words for what was found; with them nothing is left to guess.
        how: How each state's pair was found: `name`, `operator`, `shape` or `said`.
        notes: What was assumed, for people to read.
        unknown: What was not compared, for people to read.
    """

    manifest: Manifest
    flags: list[str]
    how: dict[str, str]
    notes: list[str]
    unknown: str

    @property
    def batched(self) -> bool:
        """Whether rows are run together."""
        return self.manifest.batch.mode == "stack"


def adopt(
    path: Path, *, name: str | None = None, hints: Overrides | None = None, steps: int = 16, replace: bool = False
) -> Adoption:
    """Describe a step graph; see `adopt_file`. Each verification runs `steps` timesteps.

    Raises:
        UnclearModelError: Something is open; the message names the flag that sets it.
        RefusedModelError: The graph is not stepwise, or random operators reach what must not depend on them.
        ModelLoadError: onnxruntime cannot load or run it.
        MissingExtraError: The onnx package is not installed.
    """
    hints = hints or Overrides()
    graph = OrtGraph(path)
    if graph.has_manifest and not replace:
        raise ManifestError(
            f"{path} has a manifest inside already; expected a graph without one.",
            fix="Look at it with `stepwell inspect`; `--replace` describes the graph anew.",
        )
    hints.check(graph.inputs, [tensor.name for tensor in graph.outputs])
    model = read_model(path)
    constants = {name: graph.constant(name, value) for name, value in hints.constants.items()}
    try:
        rows = find_rows(graph, hints)
        one, two = try_rows(graph, rows, constants)
    except ModelLoadError as exc:
        ask_for_length(graph, hints, exc)
        raise
    pairing = _pair(graph, model, hints, rows, one)
    notes = list(pairing.notes)
    axes, together = _find_output_axes(graph, rows, pairing, one, two)
    kinds = _find_kinds(graph, hints, pairing, axes, notes, together=together)
    _check_chance(path, pairing, kinds)

    carried = _carried(graph, hints, rows, pairing)
    initial = find_initial(carried, hints.initial, {e.key: e.value for e in model.metadata_props}, notes)
    init = {name: PackedTensor.pack(value).model_dump() for name, value in initial.items()}
    sent = [t for t in graph.inputs if t.name in rows and t.name not in pairing.states]
    described = {
        "name": name or _name_of(path),
        "inputs": [_tensor(tensor, rows[tensor.name]) for tensor in sent],
        "states": [
            _state(state, pairing.states[state.name], rows[state.name], init.get(state.name, "zeros"))
            for state in carried
            if state.name in pairing.states
        ],
        "outputs": [
            {**_tensor(tensor, _output_row(tensor, axes, one, hints)), "kind": kinds[tensor.name]}
            for tensor in graph.outputs
            if tensor.name in kinds
        ],
        "windows": [
            {"input": i, "context": n, "axis": rows[i].window_axis, "init": init.get(f"{i}.context", "zeros")}
            for i, n in hints.windows.items()
        ],
        "constants": {name: {"dtype": value.dtype.name, "value": value.tolist()} for name, value in constants.items()},
        "batch": {"mode": "stack" if together else "single"},
    }
    manifest = Manifest.from_json(json.dumps(described), where=f"the description of {path}")
    verified, unknown = verify_adopted(path, model, manifest, steps, notes)
    return Adoption(verified, write_flags(verified, graph.inputs, hints), pairing.how, notes, unknown)


def write_sidecar(path: Path, manifest: Manifest) -> Path:
    """Write a manifest beside its model file and return where; the model file is not touched."""
    sidecar = sidecar_of(path)
    write_atomically(sidecar, (manifest.to_json(indent=1) + "\n").encode())
    return sidecar


# ---------------------------------------------------------------- reading the graph


def _pair(
    graph: OrtGraph, model: onnx.ModelProto, hints: Overrides, rows: Mapping[str, Row], shapes: Shapes
) -> Pairing:
    inputs = [ShapedTensor(t.name, t.dtype, rows[t.name].shape(1)) for t in graph.inputs if t.name in rows]
    outputs = [ShapedTensor(t.name, t.dtype, shapes[t.name]) for t in graph.outputs]
    _check_sizes(inputs, outputs)
    if hints.states:
        pairing = Pairing(dict(hints.states), dict.fromkeys(hints.states, "said"))
        for before in inputs:
            after = next((o for o in outputs if o.name == hints.states.get(before.name)), before)
            if not before.fits(after):
                raise UnclearModelError(
                    f"State {before.name!r} is {before.dtype} {list(before.shape)}, but {after.name!r} is "
                    f"{after.dtype} {list(after.shape)}; expected the same.",
                    fix="Name an output that can be fed back.",
                )
    else:
        pairing = pair_states(
            [i for i in inputs if i.name not in hints.windows],
            [o for o in outputs if o.name not in hints.outputs],
            flow=read_flow(model.graph),
            all_may_be_states=bool(hints.windows),
        )
    sent = [tensor for tensor in inputs if tensor.name not in pairing.states]
    if not pairing.states and not hints.windows:
        raise RefusedModelError(
            f"No state was found in {graph.path}: inputs {_shown(inputs)}; outputs {_shown(outputs)}.",
            fix="Name each with `--state IN=OUT`; a graph over whole sequences goes through `stepwell export`.",
        )
    if not sent:
        raise UnclearModelError(
            f"Every input of {graph.path} is a state; expected one that a caller sends.",
            fix="Leave out a `--state`.",
        )
    for tensor in sent:
        if not tensor.shape and tensor.name not in hints.shapes:
            raise UnclearModelError(
                f"Input {tensor.name!r} ({tensor.dtype}) is a single number; is it the same for every timestep?",
                fix=f"If so: `--constant {tensor.name}=VALUE`; if not: `--shape {tensor.name}=`.",
            )
    return pairing


def _check_sizes(inputs: Sequence[ShapedTensor], outputs: Sequence[ShapedTensor]) -> None:
    """Refuse a graph with caches that are one timestep longer after each timestep.

    Raises:
        RefusedModelError: It has one.
    """
    for before, after in itertools.product(inputs, outputs):
        if before.dtype != after.dtype or len(before.shape) != len(after.shape) or len(before.shape) < 3:
            continue
        more = [b - a for a, b in zip(before.shape, after.shape, strict=True) if a != b]
        if more == [1] and related(before.name, after.name):
            raise RefusedModelError(
                f"{before.name!r} is a cache that grows: {after.name!r} is one timestep longer. A state has a fixed "
                "size.",
                fix="Export the model without caches, over whole sequences (`use_cache=False`), with the number of "
                "timesteps that it was trained with: `stepwell export` with `StepSpec(length=N)` or `--length N`.",
            )


def _find_output_axes(
    graph: OrtGraph, rows: Mapping[str, Row], pairing: Pairing, one: Shapes, two: Shapes | None
) -> tuple[dict[str, int | None], bool]:
    """Return each output's batch axis, and whether the graph takes two rows at once."""
    states = {after: rows[before].batch_axis for before, after in pairing.states.items()}
    if two is not None:
        seen = {
            name: [a for a, pair in enumerate(zip(one[name], two[name], strict=False)) if pair == (1, 2)]
            for name in one
        }
        if all(seen[name] == [axis] for name, axis in states.items()) and all(len(axes) < 2 for axes in seen.values()):
            return {name: axes[0] if axes else None for name, axes in seen.items()}, True
    sent = any(rows[t.name].batch_axis is not None for t in graph.inputs if t.name in rows)
    alone = {name: 0 if sent and shape[:1] == (1,) else None for name, shape in one.items()}
    return {**alone, **states}, False


def _find_kinds(
    graph: OrtGraph,
    hints: Overrides,
    pairing: Pairing,
    axes: Mapping[str, int | None],
    notes: list[str],
    *,
    together: bool,
) -> dict[str, Kind]:
    """Return what becomes of each output that is described."""
    carried = set(pairing.states.values())
    kinds: dict[str, Kind] = {}
    for output in graph.outputs:
        name = output.name
        given = hints.outputs.get(name)
        if output.dtype not in DTYPES:
            notes.append(f"output {name} is {output.dtype}, which no stream can be sent: left out")
        elif given is not None:
            kinds[name] = given
        elif name not in carried and together and axes[name] is None:
            kinds[name] = "ignore"
            notes.append(f"output {name} is the same for every row: left out; `--output {name}=value` answers it")
        elif name not in carried:
            kinds[name] = "value"
    if all(kind == "ignore" for kind in kinds.values()):
        kinds |= dict.fromkeys((o.name for o in graph.outputs if o.name in carried), "value")
        notes.append("no other output is answered, so the next states are the answer too")
    return kinds


def _check_chance(path: Path, pairing: Pairing, kinds: Mapping[str, Kind]) -> None:
    for name, operator in random_outputs(path).items():
        if name in pairing.states.values():
            raise RefusedModelError(
                f"Random operator {operator} reaches state output {name!r}; expected states that follow from the "
                "inputs alone, for a retry to give the same answer.",
                fix="Draw the random numbers outside and send them as an input.",
            )
        if kinds.get(name) == "value":
            raise RefusedModelError(
                f"Random operator {operator} reaches output {name!r}, which is answered as a value.",
                fix=f"Say that it is drawn at random, or leave it out: `--output {name}=random` or "
                f"`--output {name}=ignore`.",
            )


# ---------------------------------------------------------------- description


def _carried(graph: OrtGraph, hints: Overrides, rows: Mapping[str, Row], pairing: Pairing) -> list[ShapedTensor]:
    """Return all that is carried from step to step: the states, and the windows' past parts."""
    found = [ShapedTensor(t.name, t.dtype, rows[t.name].graph) for t in graph.inputs if t.name in pairing.states]
    for tensor in [tensor for tensor in graph.inputs if tensor.name in hints.windows]:
        past, axis = list(rows[tensor.name].graph), rows[tensor.name].window_axis or 0
        past[axis] = hints.windows[tensor.name]
        found.append(ShapedTensor(f"{tensor.name}.context", tensor.dtype, tuple(past)))
    return found


def _output_row(tensor: Declared, axes: Mapping[str, int | None], shapes: Shapes, hints: Overrides) -> Row:
    batch_axis, given = axes[tensor.name], hints.shapes.get(tensor.name)
    graph = tuple(length for axis, length in enumerate(shapes[tensor.name]) if axis != batch_axis)
    if given is not None and math.prod(given) != math.prod(graph):
        raise UnclearModelError(
            f"Shape {list(given)} was given for output {tensor.name!r}, whose row is {list(graph)}.",
            fix="Give a shape with as many elements.",
        )
    return Row(batch_axis, graph, without_ones(graph) if given is None else tuple(given))


def _state(tensor: ShapedTensor, after: str, row: Row, init: Any) -> dict[str, Any]:
    return {
        "in": tensor.name, "out": after, "dtype": tensor.dtype, "shape": list(tensor.shape),
        "batch_axis": row.batch_axis, "init": init,
    }  # fmt: skip


def _tensor(tensor: Declared, row: Row) -> dict[str, Any]:
    described = {
        "name": tensor.name, "dtype": tensor.dtype, "shape": list(row.wire), "batch_axis": row.batch_axis
    }  # fmt: skip
    if row.window_axis is None and row.graph != row.wire:
        described["graph_shape"] = list(row.graph)
    return described


def _name_of(path: Path) -> str:
    stem = path.parent.parent.name if path.name == "model.onnx" and path.parent.name.isdigit() else path.stem
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).lstrip("._-")[:64]
    if not NAME.fullmatch(name):
        raise UnclearModelError(f"No name can be made of {path.name!r}.", fix="Give one: `--name NAME`.")
    return name


def _shown(tensors: Sequence[ShapedTensor]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in tensors)
