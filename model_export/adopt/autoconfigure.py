"""Describe a graph that already is stepwise: pair its states, find its axes, and prove it by running.

Nothing is believed because it is declared. What cannot be read from the graph is asked for, never guessed.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_export.adopt.axes import (
    Declared,
    Row,
    UnknownLengthError,
    find_batch_axes,
    find_row,
    open_axes,
    shown,
    without_ones,
)
from model_export.adopt.initial import StateRow, find_initial
from model_export.adopt.ort_graph import OrtGraph
from model_export.adopt.overrides import Kind, Overrides, flags_of
from model_export.adopt.pairing import Pairing, Tensor, pair_states
from model_export.adopt.time_axis import find_chunks
from model_export.adopt.verify_adopted import verify_adopted
from model_export.errors import ManifestError, ModelLoadError, RefusedModelError, StepwellError, UnclearModelError
from model_export.files import write_atomically
from model_export.graph.dataflow import flow_of
from model_export.graph.onnx_file import read_model
from model_export.manifest import DTYPES, NAME, Array, Manifest, PackedTensor, sidecar_of
from model_export.runtime.random_ops import random_outputs

if TYPE_CHECKING:
    import onnx

_FRAMES = (
    80, 96, 128, 160, 192, 200, 240, 256, 257, 320, 384, 400, 441, 480, 512, 576, 640, 768, 800, 882, 960, 1024, 1280,
    1536, 1600, 1920, 2048, 2560, 3072, 3200, 4096, 4800,
)  # fmt: skip
"""Lengths of a row that are usual above 64: of audio at its usual rates, of spectra."""

_MOST_NAMED = 4
"""Rows that run, of which each is offered as a flag."""

_RATES = {"sr", "fs", "rate", "samplerate", "samplingrate"}

_Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Adoption:
    """What was found.

    Attributes:
        manifest: The description, proved by running.
        batched: Whether rows are run together.
        flags: The command line's words that say what was found; with them nothing is left to guess.
        how: How each state's pair was found: `name`, `operator`, `shape`, `flow` or `said`.
        notes: What was assumed, for people to read.
    """

    manifest: Manifest
    batched: bool
    flags: list[str]
    how: dict[str, str]
    notes: list[str]


def adopt(
    path: Path, *, name: str | None = None, hints: Overrides | None = None, steps: int = 16, replace: bool = False
) -> Adoption:
    """Describe a step graph.

    Args:
        path: The ONNX file; it is read only.
        name: The model's name; the file's stem by default (the folder's, for `NAME/VERSION/model.onnx`).
        hints: What the graph does not say.
        steps: Timesteps of each proof.
        replace: Describe it even though the file has a manifest inside.

    Raises:
        UnclearModelError: Something is open; the message names the flag that says it.
        RefusedModelError: The graph is not stepwise, or chance reaches what must not depend on it.
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
        rows = _find_rows(graph, hints)
        one, two = _try(graph, rows, constants)
    except (UnknownLengthError, ModelLoadError) as exc:
        _ask_for_length(graph, hints, constants, model, exc)
        raise
    pairing = _pair(graph, model, hints, rows, one)
    notes = list(pairing.notes)
    axes, together = _find_output_axes(graph, rows, pairing, one, two)
    kinds = _find_kinds(graph, hints, pairing, axes, notes, together=together)
    _check_chance(path, pairing, kinds)

    found = _Found(graph, hints, rows, pairing, one, axes, kinds)
    initial = find_initial(found.carried(), hints.initial, {e.key: e.value for e in model.metadata_props}, notes)
    described = {
        "name": name or _name_of(path),
        **found.described({name: PackedTensor.pack(value).model_dump() for name, value in initial.items()}),
        "constants": {name: {"dtype": value.dtype.name, "value": value.tolist()} for name, value in constants.items()},
        "batch": {"mode": "stack" if together else "single"},
    }
    manifest = Manifest.from_json(json.dumps(described), where=f"the description of {path}")
    manifest, batched = verify_adopted(path, manifest, steps, notes)
    manifest = find_chunks(path, manifest, {tensor.name: tensor.dims for tensor in graph.inputs})
    return Adoption(manifest, batched, flags_of(manifest, graph.inputs, hints), pairing.how, notes)


def write_sidecar(path: Path, manifest: Manifest) -> Path:
    """Write a manifest beside its model file and return where; the model file is not touched."""
    sidecar = sidecar_of(path)
    write_atomically(sidecar, (manifest.to_json(indent=1) + "\n").encode())
    return sidecar


# ---------------------------------------------------------------- reading the graph


def _find_rows(graph: OrtGraph, hints: Overrides) -> dict[str, Row]:
    """Return the row of every input that is not a constant.

    Raises:
        UnknownLengthError: A length is not known.
        UnclearModelError: Something else is open, or what was said does not fit.
    """
    changing = [tensor for tensor in graph.inputs if tensor.name not in hints.constants]
    for tensor in changing:
        if re.sub(r"[^a-z]", "", tensor.name.lower()) in _RATES and tensor.name not in hints.shapes:
            raise UnclearModelError(
                f"Input {tensor.name!r} ({tensor.dtype}) looks like a sampling rate, which does not change.",
                fix=f"Say its value: `--constant {tensor.name}=16000`, or `--shape {tensor.name}=1` if it does change.",
            )
    axes = find_batch_axes(changing, hints.batch_axes)
    return {
        tensor.name: find_row(
            tensor,
            axes[tensor.name],
            said=hints.shapes.get(tensor.name),
            context=hints.windows.get(tensor.name),
            time_axes=hints.time_axes,
        )
        for tensor in changing
    }


def _ask_for_length(
    graph: OrtGraph, hints: Overrides, constants: Mapping[str, Array], model: onnx.ModelProto, reason: StepwellError
) -> None:
    """Ask for the length of the one row that is open, where the graph runs with few of those that are usual.

    Raises:
        UnclearModelError: It does; names the flags that let it run.
    """
    changing = [tensor for tensor in graph.inputs if tensor.name not in hints.constants]
    batch = find_batch_axes(changing, hints.batch_axes)
    open_ = {
        tensor.name: axes
        for tensor in changing
        if tensor.name not in hints.shapes
        and (axes := open_axes(tensor, batch[tensor.name], hints.time_axes.get(tensor.name)))
    }
    if len(open_) != 1 or len(next(iter(open_.values()))) != 1:
        return
    [(name, [axis])] = open_.items()
    tensor = next(tensor for tensor in changing if tensor.name == name)
    row = [length for at, length in enumerate(tensor.dims) if at not in {batch[name], hints.time_axes.get(name)}]
    place = row.index(tensor.dims[axis])
    past = hints.windows.get(name, 0)
    running: list[list[int]] = []
    lengths = _likely_lengths(model)
    for length in lengths:
        said = [d if isinstance(d, int) else length - past for d in row]
        if said[place] >= 1 and _runs(graph, replace_fields(hints, shapes={**hints.shapes, name: said}), constants):
            running.append(said)
    if not 0 < len(running) <= len(lengths) // 2:
        return
    words = ["x".join(map(str, said)) for said in running]
    flags = " or ".join(f"`--shape {name}={word}`" for word in words)
    raise UnclearModelError(
        f"Input {name!r} is declared {shown(tensor.dims)}; the length of one row is not known"
        + (", and with 1 the graph does not run." if isinstance(reason, ModelLoadError) else "."),
        fix=f"Say what is sent with each timestep: {flags}."
        if len(words) <= _MOST_NAMED
        else f"Say what is sent with each timestep: `--shape {name}=LENGTH`, with the length that the model was "
        f"trained for. Of {len(lengths)} usual lengths, the graph runs with {', '.join(words)}.",
    ) from reason


def _runs(graph: OrtGraph, hints: Overrides, constants: Mapping[str, Array]) -> bool:
    try:
        graph.shapes(_find_rows(graph, hints), constants, 1)
    except StepwellError:
        return False
    return True


def _likely_lengths(model: onnx.ModelProto) -> list[int]:
    """Return lengths that a row may have: small ones, those of audio frames, and those of the weights."""
    weights = {int(length) for tensor in model.graph.initializer for length in tensor.dims}
    return sorted({*range(1, 65), *_FRAMES, *(length for length in weights if 1 < length <= max(_FRAMES))})


def _try(graph: OrtGraph, rows: Mapping[str, Row], constants: Mapping[str, Array]) -> tuple[_Shapes, _Shapes | None]:
    """Return the outputs' shapes for one row, and for two rows if the graph takes two."""
    one = graph.shapes(rows, constants, 1)
    if any(row.batch_axis is None for row in rows.values()):
        return one, None
    try:
        return one, graph.shapes(rows, constants, 2)
    except ModelLoadError:
        return one, None


def _pair(
    graph: OrtGraph, model: onnx.ModelProto, hints: Overrides, rows: Mapping[str, Row], shapes: _Shapes
) -> Pairing:
    inputs = [Tensor(t.name, t.dtype, rows[t.name].shape(1)) for t in graph.inputs if t.name in rows]
    outputs = [Tensor(t.name, t.dtype, shapes[t.name]) for t in graph.outputs]
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
            flow=flow_of(model.graph),
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


def _find_output_axes(
    graph: OrtGraph, rows: Mapping[str, Row], pairing: Pairing, one: _Shapes, two: _Shapes | None
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
        said = hints.outputs.get(name)
        if output.dtype not in DTYPES:
            notes.append(f"output {name} is {output.dtype}, which no stream can be sent: left out")
        elif said is not None:
            kinds[name] = said
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


# ---------------------------------------------------------------- telling


@dataclass(frozen=True, slots=True)
class _Found:
    """All that was read from a graph and tried on it."""

    graph: OrtGraph
    hints: Overrides
    rows: Mapping[str, Row]
    pairing: Pairing
    shapes: _Shapes
    output_axes: Mapping[str, int | None]
    kinds: Mapping[str, Kind]

    @property
    def states(self) -> list[Declared]:
        return [tensor for tensor in self.graph.inputs if tensor.name in self.pairing.states]

    @property
    def sent(self) -> list[Declared]:
        return [t for t in self.graph.inputs if t.name in self.rows and t.name not in self.pairing.states]

    def carried(self) -> list[StateRow]:
        """Return all that is carried from step to step: the states, and the windows' past parts."""
        rows = [StateRow(tensor.name, tensor.dtype, self.rows[tensor.name].graph) for tensor in self.states]
        for tensor in [tensor for tensor in self.sent if tensor.name in self.hints.windows]:
            past, row = list(self.rows[tensor.name].graph), self.rows[tensor.name]
            past[row.window_axis or 0] = self.hints.windows[tensor.name]
            rows.append(StateRow(f"{tensor.name}.context", tensor.dtype, tuple(past)))
        return rows

    def described(self, initial: Mapping[str, Any]) -> dict[str, Any]:
        """Return the manifest's tensors, as JSON."""
        states = [
            {
                "in": tensor.name,
                "out": self.pairing.states[tensor.name],
                "dtype": tensor.dtype,
                "shape": list(self.rows[tensor.name].graph),
                "batch_axis": self.rows[tensor.name].batch_axis,
                "init": initial.get(tensor.name, "zeros"),
            }
            for tensor in self.states
        ]
        windows = [
            {
                "input": name,
                "context": length,
                "axis": self.rows[name].window_axis,
                "init": initial.get(f"{name}.context", "zeros"),
            }
            for name, length in self.hints.windows.items()
        ]
        outputs = [
            {**_tensor(tensor, self._output_row(tensor)), "kind": self.kinds[tensor.name]}
            for tensor in self.graph.outputs
            if tensor.name in self.kinds
        ]
        inputs = [_tensor(tensor, self.rows[tensor.name]) for tensor in self.sent]
        return {"inputs": inputs, "states": states, "outputs": outputs, "windows": windows}

    def _output_row(self, tensor: Declared) -> Row:
        batch_axis, said = self.output_axes[tensor.name], self.hints.shapes.get(tensor.name)
        graph = tuple(length for axis, length in enumerate(self.shapes[tensor.name]) if axis != batch_axis)
        if said is not None and math.prod(said) != math.prod(graph):
            raise UnclearModelError(
                f"Shape {list(said)} was given for output {tensor.name!r}, whose row is {list(graph)}.",
                fix="Give a shape with as many elements.",
            )
        return Row(batch_axis, graph, without_ones(graph) if said is None else tuple(said))


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


def _shown(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{t.name} {t.dtype} {list(t.shape)}" for t in tensors)
