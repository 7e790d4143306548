"""`export_keras`: the sequence graph of a Keras model, an ONNX graph whose time axis is open, and its step graph."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import keras
import onnx

from stepwell_export.keras.code_decisions import decides_by_length
from stepwell_export.keras.graph import InputFacts, KerasGraph
from stepwell_export.keras.input_axes import only_looked_up, possible_axes
from stepwell_export.keras.subclassed import walkable
from stepwell_export.keras.value import Value
from stepwell_export.keras.walk import KerasWalk, functional
from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import DTYPES, Manifest
from stepwell_export.streaming.rules.attention import LENGTH_FIX
from stepwell_export.streaming.rules.slicing import EARLY_FIX
from stepwell_export.streaming.rules.squares import CAUSAL_FIX
from stepwell_export.streaming.step import SequenceStep, make_step

_FIXES = {
    CAUSAL_FIX: "Let each timestep look at past ones alone, and train it so: use_causal_mask=True, or a mask.",
    LENGTH_FIX: "Declare the number: keras.Input((T, ...)); or give the layer sliding_window=N, where this Keras has "
    "it, or an attention_mask of the last N timesteps.",
    EARLY_FIX: "Send such values as an input of their own, without time axis.",
}
"""The fixes of the streaming pass in Keras' terms."""


@dataclass(frozen=True, slots=True)
class ExportedStep:
    """The step graph of a Keras model, not yet verified.

    Attributes:
        step: What the streaming pass made.
        facts: What the walk learned about each input, in the order of the model's inputs.
        timed: For each output whether the original gives one answer per timestep; else it gives one per sequence,
            and the step graph gives at every timestep the one for the timesteps so far.
        bounded: Whether the original answers for no more timesteps than it declares.
        keeps_ends: Whether it has the last timesteps where the original has those from a fixed one on, which are the
            same for the declared number alone.
    """

    step: SequenceStep
    facts: dict[str, InputFacts]
    timed: dict[str, bool]
    bounded: bool = False
    keeps_ends: bool = False

    @property
    def proto(self) -> onnx.ModelProto:
        """The ONNX model, without manifest."""
        return self.step.proto

    @property
    def manifest(self) -> Manifest:
        """What it takes, carries and gives."""
        return self.step.manifest


def export_keras(model: Any, *, name: str) -> ExportedStep:
    """Make the step graph of a Keras model, with time on those inputs that let it be stepped.

    Args:
        model: A Sequential or functional model with weights.
        name: The model's name in its manifest.

    Raises:
        RefusedModelError: The model cannot be walked, or a layer cannot be stepped; the message has which, and why.
    """
    model = walkable(model)
    refused: RefusedModelError | None = None
    for timed in possible_axes(functional(model)):
        for keeps_ends in (False, True):
            walk = KerasWalk(KerasGraph(keeps_ends=keeps_ends))
            try:
                return _exported(walk, model, timed, name)
            except RefusedModelError as exc:
                exc.fix = _FIXES.get(exc.fix, exc.fix) + walk.advice(exc.layer)
                refused = refused or exc
            except UnclearModelError as exc:
                refused = refused or RefusedModelError(str(exc), fix=exc.fix)
            if not walk.graph.is_cut:  # the graph would be the same
                break
    assert refused is not None
    raise refused


def _exported(walk: KerasWalk, model: Any, timed: list[bool], name: str) -> ExportedStep:
    function = functional(model)
    values = [_declare(walk, function, tensor, time=time) for tensor, time in zip(function.inputs, timed, strict=True)]
    if not any(timed):
        raise RefusedModelError(
            f"No input of model {model.name!r} has a time axis; found shapes {[t.shape for t in function.inputs]}.",
            fix="A stepwise model takes (batch, time, features), or (batch, time) of ids.",
        )
    graph = walk.graph
    graph.length = _length(function, values)
    found = zip(_output_names(function), walk.run(function, values), function.outputs, strict=True)
    graph.bounded |= decides_by_length(function, timed, graph.length)
    outputs = [graph.output(output, _as_declared(walk, value, tensor)) for output, value, tensor in found]
    times = {name: 1 if facts.time else None for name, facts in graph.facts.items()}
    step = make_step(
        graph.proto(model.name),
        name=name,
        time_axes=times,
        batch_axes=dict.fromkeys(times, 0),
        length=graph.length if graph.bounded else None,
        starts_are_sent=True,
    )
    return ExportedStep(step, graph.facts, _timed(step, outputs), graph.bounded, graph.keeps_ends)


def _timed(step: SequenceStep, outputs: list[str]) -> dict[str, bool]:
    """Return for each output whether the original gives one answer per timestep.

    Raises:
        RefusedModelError: It gives one for more or fewer timesteps than come in, or has them on another axis than 1.
    """
    timed = {}
    for name in outputs:
        found = step.outputs.get(name)
        if found is None or found.time not in {None, 1} or found.order:
            raise RefusedModelError(
                f"Output {name!r} {'has no timesteps' if found is None else 'does not have the timesteps on axis 1'}.",
                fix="Return (batch, time, ...), or one answer for the sequence.",
            )
        if found.extra:
            than = f"{abs(found.extra)} timestep(s) {'longer' if found.extra > 0 else 'shorter'} than the model's input"
            raise RefusedModelError(
                f"{found.resized} makes output {name!r} {than}." if found.resized else f"Output {name!r} is {than}.",
                fix="A stream has one answer for each timestep: crop the padding, or pad in front of what shortens "
                "the sequence: padding='causal' (Conv1D), or ZeroPadding1D((k - 1) * dilation, 0).",
            )
        timed[name] = found.time is not None
    return timed


def _length(function: Any, values: list[Value]) -> int | None:
    """Return the one number of timesteps that all inputs with a time axis declare; None: any, or several."""
    lengths = {tensor.shape[1] for tensor, value in zip(function.inputs, values, strict=True) if value.is_sequence}
    return lengths.pop() if len(lengths) == 1 else None


def _declare(walk: KerasWalk, function: Any, tensor: Any, *, time: bool) -> Value:
    layer = tensor._keras_history.operation
    ids = only_looked_up(function, tensor)
    row = tuple(tensor.shape[1 + time :])
    if None in row or getattr(tensor, "sparse", False) or getattr(layer, "optional", False):
        raise RefusedModelError(
            f"Input {layer.name!r} has shape {tuple(tensor.shape)}; expected fixed sizes behind batch and time, "
            "dense and not optional.",
            fix="Give every feature axis a size: keras.Input((None, 16)).",
        )
    dtype = "int32" if ids else keras.backend.standardize_dtype(tensor.dtype)
    if dtype not in DTYPES:
        raise RefusedModelError(
            f"Input {layer.name!r} has dtype {dtype}; expected one of {', '.join(DTYPES)}.",
            fix="Move text look-up and other preprocessing in front of the model.",
        )
    value = walk.graph.input(plain(layer.name), row, dtype, time=time)
    if dtype in {"float16", "float64"}:  # as declared on the wire; every float is float32 in the graph
        return value.like(walk.graph.cast(value.name, "float32"), dtype="float32")
    return value


def _as_declared(walk: KerasWalk, value: Value, tensor: Any) -> Value:
    """Return an output in the dtype that the model declares, where NumPy has it."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if value.dtype == dtype or dtype not in {"float16", "float64"}:
        return value
    return value.like(walk.graph.cast(value.name, dtype), dtype=dtype)


def _output_names(function: Any) -> list[str]:
    """Return a name for each flat output: its key in a dict of outputs, else its layer's name."""
    struct = function._outputs_struct
    if isinstance(struct, dict):
        return [plain("_".join(map(str, path))) for path, _ in keras.tree.flatten_with_path(struct)]
    names = []
    for tensor in function.outputs:
        history = tensor._keras_history
        layer, index = history.operation, history.tensor_index
        part = ""
        if isinstance(layer, keras.layers.RNN) and index:
            part = f".last_{_state_name(layer, index - 1)}"
        names.append(plain(f"{layer.name}{part}"))
    return names


def _state_name(layer: Any, index: int) -> str:
    from stepwell_export.keras.rules.cells import state_names

    return state_names(layer.cell, layer.get_initial_state(1))[index]


def plain(name: str) -> str:
    """Return a name without characters that are awkward in URLs, shells and JSON paths."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
