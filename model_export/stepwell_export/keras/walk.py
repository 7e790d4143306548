"""Walks a Keras model's graph of calls, and lets each layer's rule emit its part of the sequence graph."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import keras

from stepwell_export.keras import rules  # noqa: F401  # registers them
from stepwell_export.keras.graph import KerasGraph
from stepwell_export.keras.rule_registry import Call, RefusedCallError, to_array
from stepwell_export.keras.scan import StepScan
from stepwell_export.keras.support.broadcast import constant_result
from stepwell_export.keras.support.find_rule import checked, find_op_rule, find_rule
from stepwell_export.keras.support.tracing import RandomNumbersError, describe_cause, is_code_of_keras, trace
from stepwell_export.keras.value import Value


@dataclass(slots=True)
class KerasWalk:
    """One pass over a model.

    Attributes:
        graph: The sequence graph under construction.
        scan: The Scan whose body is under construction; None: the graph itself is.
        owners: The layers and operations of Keras whose code was traced, by their paths.
        own: Classes of people's own layers whose code was traced, by the prefix of the names in it.
    """

    graph: KerasGraph = field(default_factory=KerasGraph)
    scan: StepScan | None = None
    owners: dict[str, Any] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)

    def run(self, function: Any, inputs: list[Any], prefix: str = "") -> list[Value]:
        """Walk a functional model or a traced function.

        Args:
            function: A functional `keras.Model` or a `keras.Function`.
            inputs: One value per flat input.
            prefix: Put in front of each layer's name. Without a separator at its end it is the path of a layer of
                Keras, whose operations are named as the layer is.

        Returns:
            One value per flat output.
        """

        def visit(operation: Any) -> Callable[..., Any]:
            return partial(self.visit, operation, prefix)

        return list(keras.tree.flatten(function._run_through_graph(inputs, operation_fn=visit)))

    def visit(self, operation: Any, prefix: str, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Emit one call of a layer, a nested model or an operation; an operation on constants is just done."""
        is_layer = isinstance(operation, keras.Layer)
        own = {"mask", "training"} if is_layer else set()  # an operation takes a mask as any other argument
        given = {name: v for name, v in kwargs.items() if v is not None and name not in own}
        call = Call(self, operation, _path(operation, prefix), args, given)
        call = replace(call, mask=self._mask(call, kwargs))
        self.graph.layers.setdefault(call.path, call.described)
        if not is_layer:
            call = replace(call, owner=self.owners.get(prefix))
            if not call.operands and call.mask is None:
                if None in getattr(operation, "shape", ()):  # to a batch whose size is open; what meets it broadcasts
                    return [args[0]]
                return [to_array(result) for result in keras.tree.flatten(operation(*args, **kwargs))]
            rule = find_op_rule(operation)
            if rule is None:
                what = f"its operation {type(operation).__name__}" if call.owner else "it"
                raise call.refuse(f"there is no rule for {what}", "Write it with layers or the common `keras.ops`.")
            return checked(call, rule(call))
        if kwargs.get("training") is True and not _trains_by_default(operation):
            raise call.refuse(
                "it was called with training=True, so its answer is random or depends on the other rows of the batch",
                "Call it without `training`, then save the model again.",
            )
        if getattr(operation, "quantization_mode", None):
            raise call.refuse(
                f"its weights are quantized to {operation.quantization_mode}; expected float weights",
                "Export the model as it was before `quantize`; `--weights int8` makes the file small.",
            )
        if (function := functional(operation)) is not None:
            values = _ordered(function, args[0])
            if len(values) == 1:  # it may have got an explicit mask; several inputs carry their own
                values = [replace(values[0], mask=call.mask)]
            return self.run(function, values, f"{call.path}.")
        found = find_rule(operation)
        rule, sets_masks = found or (trace_call, False)
        results = checked(call, rule(call))
        if sets_masks:
            return results
        mask = call.mask if operation.supports_masking else None
        if found is None and type(operation).compute_mask is not keras.Layer.compute_mask:
            mask = self._own_mask(call)
        return [replace(v, mask=mask if v.is_sequence or v.time else None) for v in results]

    def _own_mask(self, call: Call) -> str | None:
        """Return the mask that a custom layer's `compute_mask` makes."""
        first = replace(call.args[0], mask=call.mask) if isinstance(call.args[0], Value) else call.args[0]
        previous = keras.tree.map_structure(_mask_of, first)
        inner = replace(call, args=(first, previous), kwargs={}, mask=None)

        def compute(inputs: Any, mask: Any) -> Any:
            made = call.layer.compute_mask(inputs, mask)
            return [] if made is None else made

        masks = self.trace(inner, compute)
        if not masks:
            return None
        if not any(keras.tree.flatten(previous)):
            self.graph.note_mask(call.value, 0)
        return _checked_mask(call, masks[0]).name

    def trace(self, call: Call, function: Callable[..., Any]) -> list[Value]:
        """Run Python code on symbolic tensors and walk the operations that it called.

        Works for every layer, cell and activation that is written with `keras.ops` or other layers.

        Raises:
            RefusedModelError: The code cannot be run that way, or does something that cannot be stepped.
        """
        try:
            recorded = trace(call, function, self.graph.length and _length_there(call, self.graph.length))
        except RandomNumbersError as exc:
            raise call.refuse(
                "it draws random numbers outside training, so no retry could get the same answer",
                "Let it give the mean where `training` is False, or draw where the answer arrives.",
            ) from exc
        except Exception as exc:
            raise call.refuse(
                f"there is no rule for it, and its code cannot be traced: {describe_cause(exc)}",
                "Write its `call` with `keras.ops`, or write a rule for it: stepwell.register_step_rule.",
            ) from exc
        prefix = f"{call.path}/"
        if not isinstance(call.layer, keras.Layer) and isinstance(call.layer, keras.Operation):
            prefix, self.owners[call.path] = call.path, call.owner or call.layer
        elif is_code_of_keras(call.layer):
            prefix, self.owners[call.path] = call.path, call.layer
        elif isinstance(call.layer, keras.Layer) and not isinstance(call.layer, keras.layers.Lambda):
            self.own[prefix] = type(call.layer).__name__
        try:
            results = recorded.replay(lambda traced, inputs: self.run(traced, inputs, prefix))
        except RefusedCallError as exc:
            if not exc.path.startswith(f"{call.path}/"):  # this layer, or the one that made what comes in
                raise
            raise call.refuse(exc.problem.rstrip("."), exc.fix + self.advice(exc.layer)) from exc
        return [v if isinstance(v, Value) else constant_result(call, v) for v in results]

    def advice(self, layer: str) -> str:
        """Return what may be done about a refusal in the code of somebody's own layer; empty: it is not in one.

        Args:
            layer: What the refusal calls the layer or operation.
        """
        paths = [path for path, described in self.graph.layers.items() if described == layer]
        own = [cls for prefix, cls in self.own.items() if any(path.startswith(prefix) for path in paths)]
        return f" Or write a step rule for {own[-1]}: stepwell.register_step_rule." if own else ""

    def _mask(self, call: Call, kwargs: Mapping[str, Any]) -> str | None:
        explicit = kwargs.get("mask")
        if isinstance(explicit, list | tuple):
            explicit = next((m for m in explicit if m is not None), None)
        if isinstance(explicit, Value):
            return _checked_mask(call, explicit).name
        first = keras.tree.flatten(call.args[0])[0] if call.args else None
        return first.mask if isinstance(first, Value) else None


def _length_there(call: Call, length: int) -> int:
    """Return how many timesteps a layer takes in a model of a declared number: padding and convolutions change it."""
    given = keras.tree.flatten(getattr(call.layer, "input", None))[0]
    of_time = given is not None and any(value.is_sequence for value in call.operands[:1])
    return (given.shape[1] if of_time else None) or length


def _checked_mask(call: Call, mask: Value) -> Value:
    if mask.row not in {(None,), ()}:
        raise call.refuse(
            f"it has a mask of row shape {list(mask.row)}; expected one truth value for each timestep",
            "Mask whole timesteps. Parts of one, as mask_zero=True does inside TimeDistributed, have to be left out by "
            "the layer itself: multiply by the mask, and divide by its sum.",
        )
    return mask


def _trains_by_default(layer: Any) -> bool:
    """Whether a layer's `call` has training=True by default; a model passes False when it predicts."""
    parameter = inspect.signature(layer.call).parameters.get("training")
    return parameter is not None and parameter.default is True


def _path(operation: Any, prefix: str) -> str:
    """Return the name of a layer or operation behind those of what it is in, as `KerasWalk.run` defines it."""
    is_layer, separated = isinstance(operation, keras.Layer), prefix[-1:] in {"", ".", "/"}
    if not separated and not is_layer:
        return prefix
    name = operation.name
    # Operations of a trace are numbered by what the process did before; a layer may have its name from a person.
    if prefix.endswith("/") and not is_layer:
        name = re.sub(r"_\d+$", "", name)
    return f"{prefix}{'' if separated else '/'}{name}"


def functional(model: Any) -> Any:
    """Return what can be walked of a model: itself, a Sequential's functional graph, or None."""
    if isinstance(model, keras.Sequential):
        model = model._functional
    return model if isinstance(model, keras.Model) and hasattr(model, "_run_through_graph") else None


def _ordered(function: Any, inputs: Any) -> list[Value]:
    """Return a nested model's inputs in the order of its own."""
    if isinstance(inputs, dict) and not isinstance(function._inputs_struct, dict):
        return [inputs[tensor.name] for tensor in function.inputs]
    return [v for v in keras.tree.flatten(inputs) if isinstance(v, Value)]


def trace_call(call: Call) -> list[Value]:
    """The rule of a layer without one: its code is traced."""
    call = _with_masks(call)
    return call.walk.trace(call, _at_inference(call.layer))


def _with_masks(call: Call) -> Call:
    """Pass the masks of its inputs to code that takes masks, as Keras does."""
    takes = inspect.signature(call.layer.call).parameters
    if call.mask is None or not any(name == "mask" or name.endswith("_mask") for name in takes):
        return call
    if isinstance(call.layer, keras.layers.Softmax) and call.value.rank > 2:
        raise call.refuse(
            "its mask, (batch, timesteps), does not fit its values, (batch, timesteps, features); Keras itself runs it "
            "only where both sizes happen to be the same",
            "Use Activation('softmax') for each timestep; over time, Softmax(axis=1) of scores (batch, timesteps).",
        )
    first = call.args[0]
    given = [v for v in (*call.args, *call.kwargs.values()) if any(isinstance(p, Value) for p in keras.tree.flatten(v))]
    if len(given) > 1 or "mask" not in takes:
        raise call.refuse(
            "it takes several tensors and a mask, and there is no rule for what it does with that",
            "Give it one tensor, or a list of them, and `mask`; or write a step rule for it.",
        )
    if isinstance(first, Value):
        first = replace(first, mask=call.mask)  # it may have got an explicit one
    return replace(call, kwargs={**call.kwargs, "mask": keras.tree.map_structure(_mask_of, first)})


def _mask_of(value: Any) -> Value | None:
    if not isinstance(value, Value) or value.mask is None:
        return None
    return Value(value.mask, value.row[:1] if value.is_sequence else (), "bool", time=value.time)


def _at_inference(layer: Any) -> Callable[..., Any]:
    """Return a layer's code as it runs outside training, whatever its default is."""
    return partial(layer.call, training=False) if layer._call_has_training_arg else layer.call
