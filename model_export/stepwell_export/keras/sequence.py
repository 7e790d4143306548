"""`export_keras`: the sequence graph of a Keras model, an ONNX graph whose time axis is open, and its step graph."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import keras
import onnx
from jax import export
from onnx import helper

from stepwell_export.graph.builder import element_type
from stepwell_export.jax import rules
from stepwell_export.jax.graph import JaxGraph
from stepwell_export.jax.values import JaxValue
from stepwell_export.keras.inputs import InputFacts, facts_of_inputs, only_looked_up, possible_axes
from stepwell_export.keras.layer_names import LayerNames
from stepwell_export.keras.recurrent import state_names
from stepwell_export.keras.subclassed import functional, walkable
from stepwell_export.keras.trace import UntracedError, trace
from stepwell_export.runtime.errors import RefusedModelError, UnclearModelError
from stepwell_export.runtime.manifest import DTYPES, Manifest
from stepwell_export.streaming.axes.inputs import vocabularies
from stepwell_export.streaming.normal_form.unrolled_loops import with_loops_rolled
from stepwell_export.streaming.rules.attention import CAUSAL_FIX, LENGTH_FIX
from stepwell_export.streaming.rules.slicing import EARLY_FIX
from stepwell_export.streaming.step import SequenceStep, TracedGraph, make_traced_step, traced
from stepwell_export.streaming.walk import SORTED_FIX

assert rules

ANY = export.symbolic_shape("rows, timesteps")
MANY = export.symbolic_shape("rows, timesteps", constraints=["timesteps >= 1024"])
"""Numbers of rows and timesteps; some code can be traced for many timesteps alone, as `x[:, -3:]` that is flattened."""

_FIXES = {
    CAUSAL_FIX: "Let each timestep look at past ones alone, and train it so: use_causal_mask=True, or a mask.",
    LENGTH_FIX: "Declare the number: keras.Input((T, ...)); or give the layer sliding_window=N, where this Keras has "
    "it, or an attention_mask of the last N timesteps.",
    EARLY_FIX: "Send such values as an input of their own, without time axis.",
}
"""The fixes of the streaming pass in Keras' terms."""

_SOFTMAX_MASKED = "Use Activation('softmax') for each timestep; over time, Softmax(axis=1) of (batch, timesteps)."


@dataclass(frozen=True, slots=True)
class ExportedStep:
    """The step graph of a Keras model, not yet verified.

    Attributes:
        step: What the streaming pass made.
        facts: What the walk learned about each input, in the order of the model's inputs.
        timed: For each output whether the original gives one answer per timestep; else it gives one per sequence,
            and the step graph gives at every timestep the one for the timesteps so far.
        bounded: Whether the original answers for no more timesteps than it declares.
    """

    step: SequenceStep
    facts: dict[str, InputFacts]
    timed: dict[str, bool]
    bounded: bool = False

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
        model: A Keras model with weights, on the JAX backend.
        name: The model's name in its manifest.

    Raises:
        RefusedModelError: The model cannot be traced, or a layer cannot be stepped; the message has which, and why.
    """
    model = walkable(model)
    _check_layers(model)
    refused: list[RefusedModelError] = []
    for timed in possible_axes(functional(model)):
        for attempt in _attempts(model, timed, name):
            try:
                return attempt()
            except RefusedModelError as exc:
                own = LayerNames(model).own_class(exc.layer)
                advice = f" Or write a step rule for {own}: stepwell.register_step_rule." if own else ""
                exc.fix = _fix(exc) + advice
                refused.append(exc)
            except UnclearModelError as exc:
                refused.append(_of_one_length(exc, LayerNames(model)))
    raise next((exc for exc in refused if not isinstance(exc, UntracedError)), refused[0])


def _fix(exc: RefusedModelError) -> str:
    """Return what to do about a refusal in Keras' terms, also where its trace has only the parts of an operation."""
    if exc.layer.endswith(("(Median)", "(Quantile)")):
        return SORTED_FIX
    if isinstance(exc, UntracedError) and exc.layer.endswith("(Softmax)") and "mask" in exc.problem:
        return _SOFTMAX_MASKED
    return _FIXES.get(exc.fix, exc.fix)


def _of_one_length(exc: UnclearModelError, names: LayerNames) -> RefusedModelError:
    """Return the error for a graph that onnxruntime runs for no other number of timesteps, with the layer it names."""
    node = re.search(r"Name:'([^'~]+)", str(exc))
    if node is None:
        return RefusedModelError(exc.problem, fix=exc.fix)
    _, layer = names(node[1].replace(".", "/"))
    return RefusedModelError(
        f"{layer or 'The model'} takes one number of timesteps alone: it computes along the time axis.",
        fix="Let it compute for each timestep by itself, over the features; a stream has any number of timesteps. Cut "
        "a mask or a table with a row for each of them to the input, in a layer: table[: ops.shape(x)[1]]. In front of "
        "Flatten or Reshape, take the last n timesteps: x[:, -n:].",
        layer=layer,
    )


def _check_layers(model: Any) -> None:
    """Refuse what a trace does not show.

    Raises:
        RefusedModelError: A layer has quantized weights, or keeps its state and is called twice.
    """
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None):
            raise RefusedModelError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be stepped: its weights are quantized to "
                f"{layer.quantization_mode}; expected float weights.",
                fix="Export the model as it was before `quantize`; `--weights int8` makes the file small.",
            )
        default = inspect.signature(layer.call).parameters.get("training")
        trains = default is not None and default.default is True  # a model passes False when it predicts
        if not trains and any(node.arguments.kwargs.get("training") is True for node in layer._inbound_nodes):
            raise RefusedModelError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be stepped: it was called with training=True, "
                "so its answer is random or depends on the other rows of the batch.",
                fix="Call it without `training`, then save the model again.",
            )
        if getattr(layer, "stateful", False) and len(layer._inbound_nodes) > 1:
            raise RefusedModelError(
                f"Layer {layer.name!r} ({type(layer).__name__}) cannot be stepped: it is stateful and called more than "
                "once, so its calls hand their state to each other.",
                fix="Use a layer for each call.",
            )


def _attempts(model: Any, timed: Sequence[bool], name: str) -> Iterator[Callable[[], ExportedStep]]:
    """Yield the ways to read a model: of any number of timesteps, of many, of at most those it declares, and of those.

    Raises:
        RefusedModelError: It decides by a value, by the number of rows, or by an undeclared number of timesteps.
    """
    lengths = {one.shape[1] for one, time in zip(functional(model).inputs, timed, strict=True) if time}
    length = next(iter(lengths)) if len(lengths) == 1 else None
    for rows, steps in (ANY, MANY):
        sequences = KerasSequences(model, timed, rows, steps, length)
        decisions = sequences.trace.decisions
        if any(length is None or one.kind != "timesteps" for one in decisions):
            raise decisions[0].refusal()
        if not decisions:
            yield partial(sequences.step, name)
            if length is not None:
                yield partial(sequences.step, name, length)
        if decisions or sequences.trace.jaxpr is not None:
            break
    if length is not None:
        few = export.symbolic_shape("rows, timesteps", constraints=[f"timesteps <= {length}"])
        for rows, steps in (few, (ANY[0], length)):
            sequences = KerasSequences(model, timed, rows, steps, length)
            if sequences.trace.decisions and steps is length:
                raise sequences.trace.decisions[0].refusal()
            if not sequences.trace.decisions:
                yield partial(sequences.step, name, length)


def _specs(function: Any, timed: Sequence[bool], steps: Any, *, rows: Any) -> list[Any]:
    """Return shape and dtype of each input.

    Raises:
        RefusedModelError: No input has a time axis, or one has a shape or dtype that cannot be sent.
    """
    if not any(timed):
        raise RefusedModelError(
            f"No input of model {function.name!r} has a time axis; found shapes {[t.shape for t in function.inputs]}.",
            fix="A stepwise model takes (batch, time, features), or (batch, time) of ids.",
        )
    return [
        _spec(function, tensor, rows, steps if time else None)
        for tensor, time in zip(function.inputs, timed, strict=True)
    ]


def _spec(function: Any, tensor: Any, rows: Any, steps: Any) -> Any:
    layer = tensor._keras_history.operation
    row = tuple(tensor.shape[1 + (steps is not None) :])
    if None in row or getattr(tensor, "sparse", False) or getattr(layer, "optional", False):
        raise RefusedModelError(
            f"Input {layer.name!r} has shape {tuple(tensor.shape)}; expected fixed sizes behind batch and time, "
            "dense and not optional.",
            fix="Give every feature axis a size: keras.Input((None, 16)).",
        )
    dtype = "int32" if only_looked_up(function, tensor) else keras.backend.standardize_dtype(tensor.dtype)
    if dtype not in DTYPES:
        raise RefusedModelError(
            f"Input {layer.name!r} has dtype {dtype}; expected one of {', '.join(DTYPES)}.",
            fix="Move text look-up and other preprocessing in front of the model.",
        )
    return jax.ShapeDtypeStruct((rows, *(() if steps is None else (steps,)), *row), dtype)  # type: ignore[no-untyped-call]


class KerasSequences:
    """A model over whole sequences.

    Args:
        model: The model.
        timed: For each flat input whether axis 1 is time.
        rows: The number of rows, open.
        steps: The number of timesteps, open or as declared.
        length: The number that the model declares; None: any.

    Attributes:
        trace: What running its code on abstract arrays gave.
    """

    def __init__(self, model: Any, timed: Sequence[bool], rows: Any, steps: Any, length: int | None) -> None:
        self._model, self._function, self._timed, self._steps = model, functional(model), timed, steps
        self._graph = JaxGraph(LayerNames(model), computes_in_float32=True)
        self._specs = _specs(self._function, timed, steps, rows=rows)
        self.trace = trace(model, self._function, self._specs, self._graph, steps=steps, length=length)

    @cached_property
    def traced(self) -> TracedGraph:
        """The sequence graph: time is open, and a loop over so many timesteps a Scan.

        Raises:
            RefusedModelError: The model cannot be traced, or something in it has no place in a graph.
        """
        if self.trace.jaxpr is None:
            assert self.trace.failure is not None
            raise self.trace.failure
        graph, closed, function = self._graph, self.trace.jaxpr, self._function
        names = [plain(tensor._keras_history.operation.name) for tensor in function.inputs]
        takes = [graph.take(one, spec.shape, str(spec.dtype)) for one, spec in zip(names, self._specs, strict=True)]
        dtypes = [str(variable.aval.dtype) for variable in closed.jaxpr.invars]
        given = [
            value
            if value.dtype == dtype == graph.dtype(dtype)
            else replace(value, dtype=dtype, tensor=graph.cast(value.tensor, dtype))
            for value, dtype in zip(takes, dtypes, strict=True)
        ]
        results = graph.run(closed.jaxpr, closed.consts, given)
        for one, value, tensor in zip(_output_names(function), results, function.outputs, strict=True):
            self._check_time(tensor, value)
            graph.give(one, _as_declared(graph, value, tensor))
        proto = graph.proto(self._model.name)
        axes = [(0, 1 if time else None) for time in self._timed]
        made = traced(proto, dict(zip((value.name for value in proto.graph.input), axes, strict=True)))
        return replace(made, graph=with_loops_rolled(made.graph)) if isinstance(self._steps, int) else made

    def _check_time(self, tensor: Any, value: JaxValue) -> None:
        """Refuse an output that has not one timestep more for each timestep of the inputs.

        Raises:
            RefusedModelError: It has several timesteps for one, or one for several.
        """
        found: Any = value.shape[1] if len(value.shape) > 1 else 0
        many, more = ({"rows": 2, "timesteps": n} for n in (5040, 5041))
        if "timesteps" in str(found) and found._evaluate(more) - found._evaluate(many) != 1:
            layer = tensor._keras_history.operation
            kind = "Layer" if isinstance(layer, keras.Layer) else "Operation"
            raise RefusedModelError(
                f"{kind} {layer.name!r} ({type(layer).__name__}) gives {found} timesteps for {self._steps} of the "
                "inputs: it resamples time.",
                fix="Give one answer for each timestep; if n samples are one timestep, let the model take timesteps of "
                "n numbers, (batch, T, n).",
            )

    def step(self, name: str, length: int | None = None) -> ExportedStep:
        """Make the step graph.

        Args:
            name: The model's name in its manifest.
            length: The only number of timesteps for which the step graph is that of the model; None: any.

        Raises:
            RefusedModelError: A layer cannot be stepped.
        """
        graph = self.traced.graph.graph
        step = make_traced_step(self.traced, name=name, length=length)
        timed = {layout.name: layout.time is not None for layout in self.traced.inputs.inputs}
        facts = facts_of_inputs(self._model, timed, vocabularies(graph))
        return ExportedStep(step, facts, _timed(step, [one.name for one in graph.output]), length is not None)


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


def _as_declared(graph: JaxGraph, value: JaxValue, tensor: Any) -> JaxValue:
    """Return an output in the dtype that the model declares, where NumPy has it."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype not in {"float16", "float64"}:
        return replace(value, dtype="float32") if dtype == "bfloat16" else value
    made = helper.make_node("Cast", [graph.whole(value)], [name := graph.fresh("declared")], to=element_type(dtype))
    graph.nodes.append(made)
    return JaxValue(value.shape, dtype, name)


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
            part = f".last_{state_names(layer.cell, layer.get_initial_state(1))[index - 1]}"
        names.append(plain(f"{layer.name}{part}"))
    return names


def plain(name: str) -> str:
    """Return a name without characters that are awkward in URLs, shells and JSON paths."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
