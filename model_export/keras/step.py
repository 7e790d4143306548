"""`export_keras`: a Keras model as one ONNX step graph and its manifest, not yet verified."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import keras
import onnx

from model_export.errors import RefusedModelError
from model_export.keras.input_axes import only_looked_up, possible_axes
from model_export.keras.step_graph import InputFacts
from model_export.keras.subclassed import walkable
from model_export.keras.value import Value
from model_export.keras.walk import KerasWalk, functional
from model_export.manifest import DTYPES, Manifest

W = TypeVar("W", bound=KerasWalk)


@dataclass(frozen=True, slots=True)
class ExportedStep:
    """A step graph as it comes from the walk.

    Attributes:
        proto: The ONNX model, without manifest.
        manifest: What it takes, carries and gives.
        facts: What the walk learned about each input, in the order of the model's inputs.
        timed: For each output whether the original gives one answer per timestep; else it gives one per sequence,
            and the step graph gives at every timestep the one for the timesteps so far.
        bounded: Whether the original answers for no more timesteps than it declares.
    """

    proto: onnx.ModelProto
    manifest: Manifest
    facts: dict[str, InputFacts]
    timed: dict[str, bool]
    bounded: bool = False


def export_keras(model: Any, *, name: str) -> ExportedStep:
    """Emit the step graph of a Keras model.

    Args:
        model: A Sequential or functional model with weights.
        name: The model's name in its manifest.

    Raises:
        RefusedModelError: The model cannot be walked, or a layer cannot be stepped; the message has which, and why.
    """
    walk, values = walk_model(KerasWalk, model)
    timed = {walk.graph.output(output, value).name: value.time for output, value in values}
    graph = walk.graph
    manifest = Manifest(name=name, inputs=graph.inputs, states=graph.states, outputs=graph.outputs)
    proto = graph.proto(name)
    _check_states(proto, manifest)
    return ExportedStep(proto, manifest, graph.facts, timed, graph.bounded)


def walk_model(begin: Callable[[], W], model: Any) -> tuple[W, list[tuple[str, Value]]]:
    """Declare a model's inputs and walk it, with time on those inputs that let it be stepped.

    Args:
        begin: Makes a new walk.
        model: A Sequential or functional model.

    Returns:
        The walk, and each output's name and value; names may occur twice.

    Raises:
        RefusedModelError: The model cannot be walked, or a layer cannot be stepped; the message has which, and why.
    """
    function = functional(walkable(model))
    refused: RefusedModelError | None = None
    for timed in possible_axes(function):
        walk = begin()
        try:
            return walk, _walked(walk, function, timed, model.name)
        except RefusedModelError as exc:
            refused = refused or exc
    assert refused is not None
    raise refused


def _walked(walk: KerasWalk, function: Any, timed: list[bool], name: str) -> list[tuple[str, Value]]:
    values = [_declare(walk, function, tensor, time=time) for tensor, time in zip(function.inputs, timed, strict=True)]
    if not any(timed):
        raise RefusedModelError(
            f"No input of model {name!r} has a time axis; found shapes {[t.shape for t in function.inputs]}.",
            fix="A stepwise model takes (batch, time, features), or (batch, time) of ids.",
        )
    walk.graph.length = _length(function, values)
    found = zip(_output_names(function), walk.run(function, values), function.outputs, strict=True)
    return [(output, _as_declared(walk, value, tensor, output)) for output, value, tensor in found]


def _check_states(proto: onnx.ModelProto, manifest: Manifest) -> None:
    made = {name for node in proto.graph.node for name in node.output}
    for state in manifest.states:
        if state.output not in made:
            raise RefusedModelError(
                f"State {state.input!r} is declared by its layer's step rule and never gets a next value.",
                fix="Let the rule call `next_state` for each state that it declares.",
            )


def _length(function: Any, values: list[Value]) -> int | None:
    """Return the one number of timesteps that all inputs with a time axis declare; None: any, or several."""
    lengths = {tensor.shape[1] for tensor, value in zip(function.inputs, values, strict=True) if value.time}
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


def _as_declared(walk: KerasWalk, value: Value, tensor: Any, name: str) -> Value:
    """Return an output in the dtype that the model declares, where NumPy has it."""
    if value.deferred is not None:
        raise value.deferred.refusal
    if value.padding is not None and value.padding.refusal:
        raise value.padding.refusal
    if value.padding is not None:
        raise RefusedModelError(
            f"Output {name!r} has {value.padding.front} timesteps more in front and {value.padding.back} behind than "
            "the model's input has.",
            fix="A stream has one answer for each timestep: crop the padding, or use it up in a convolution.",
        )
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
    from model_export.keras.rules.cells import state_names

    return state_names(layer.cell, layer.get_initial_state(1))[index]


def plain(name: str) -> str:
    """Return a name without characters that are awkward in URLs, shells and JSON paths."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
