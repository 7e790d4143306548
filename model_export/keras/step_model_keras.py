"""`to_step_model`: the step graph of a Keras model as a Keras model, for people who want to look at it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras

from model_export.errors import RefusedModelError
from model_export.keras.step import plain, walk_model
from model_export.keras.value import Value
from model_export.keras.walk import KerasWalk, functional
from model_export.manifest import StateSpec


def to_step_model(model: Any) -> keras.Model:
    """Return a Keras model that does one timestep, with the weights of `model` itself.

    Args:
        model: A Sequential or functional model with weights, of recurrent layers, causal convolutions and layers that
            look at one timestep.

    Returns:
        A functional model from a dict to a dict. In: each input as one timestep, `(batch, 1, *row)`, static inputs as
        they are, and each state by its name, `(batch, *row)`. Out: each output, one timestep of it where the original
        has a time axis, and each next state as `NAME_next`. The layers and the original's share their weights.

    Raises:
        RefusedModelError: A layer cannot be stepped, or its state has no form in Keras.
    """
    walk, values = walk_model(_TwinWalk, model)
    answers = {name: walk.tensor(value) for name, value in values}
    return keras.Model(
        {**walk.inputs, **walk.states}, {**answers, **walk.next_states}, name=plain(f"{model.name}_step")
    )


class _TwinWalk(KerasWalk):
    """Walks a model by its rules, which decide what can be stepped, and calls the layers again on one timestep.

    Attributes:
        inputs: Symbolic inputs of the step model.
        states: Symbolic states before this timestep.
        next_states: What they become.
    """

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[str, Any] = {}
        self.states: dict[str, Any] = {}
        self.next_states: dict[str, Any] = {}
        self._tensors: dict[Value, Any] = {}
        self._layers: dict[str, Any] = {}
        self._is_inside = False

    def visit(self, operation: Any, prefix: str, /, *args: Any, **kwargs: Any) -> list[Any]:
        """Emit one call, then make it on the step model's tensors; what a layer does inside is its own affair."""
        if self._is_inside or functional(operation) is not None:
            return super().visit(operation, prefix, *args, **kwargs)
        known = len(self.graph.states)
        self._is_inside = True
        results = super().visit(operation, prefix, *args, **kwargs)
        self._is_inside = False
        if any(isinstance(result, Value) for result in results):
            path = f"{prefix}{operation.name}"
            if any(isinstance(result, Value) and (result.padding or result.deferred) for result in results):
                raise _no_form(operation, path, "changes the number of timesteps")
            tensors = self._called(operation, path, args, kwargs, self.graph.states[known:])
            for value, tensor in zip(results, tensors, strict=True):
                self._tensors[value] = tensor
                self._tensors.setdefault(replace(value, mask=None), tensor)
        return results

    def tensor(self, value: Value) -> Any:
        """Return the step model's tensor of a value; one that nothing made is an input."""
        if value not in self._tensors:
            value = replace(value, mask=None)  # the tensor has a mask of its own
        if value not in self._tensors:
            shape = (1, *value.row) if value.time else value.row
            self._tensors[value] = keras.Input(shape, dtype=value.dtype, name=value.name)
            self.inputs[value.name] = self._tensors[value]
        return self._tensors[value]

    def _called(self, operation: Any, path: str, args: Any, kwargs: Any, specs: list[StateSpec]) -> list[Any]:
        kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "training"}
        given, more = keras.tree.map_structure(lambda v: self.tensor(v) if isinstance(v, Value) else v, (args, kwargs))
        if specs:
            return self._stepped(operation, path, given, more, specs)
        if isinstance(operation, keras.layers.Reshape) and args[0].time:
            target = (1, *operation.target_shape[1:])
            operation = self._once(path, lambda: keras.layers.Reshape(target, name=path))
        elif isinstance(operation, keras.Layer) and path != operation.name:
            layer = operation
            operation = self._once(path, lambda: OneTimestep(layer, path))
        return list(keras.tree.flatten(operation(*given, **more)))

    def _stepped(self, layer: Any, path: str, args: Any, kwargs: Any, specs: list[StateSpec]) -> list[Any]:
        """Call a layer that carries states."""
        inputs = [self._state(spec) for spec in specs]
        if isinstance(layer, keras.layers.RNN) and len(specs) == len(keras.tree.flatten(layer.get_initial_state(1))):
            step = self._once(path, lambda: RecurrentStep(layer, path))
            # Keras hands masks on by itself only to layers with one tensor for an argument.
            answers = step(args[0], inputs, mask=kwargs.get("mask", getattr(args[0], "_keras_mask", None)))
        elif getattr(layer, "padding", None) == "causal" and len(specs) == 1:
            step = self._once(path, lambda: WindowStep(layer, path))
            answers = step(args[0], *inputs)
        else:
            raise _no_form(layer, path, f"carries {', '.join(spec.input for spec in specs)}")
        self.next_states.update(zip((spec.output for spec in specs), answers[-len(specs) :], strict=True))
        return list(answers[: -len(specs)])

    def _state(self, spec: StateSpec) -> Any:
        self.states[spec.input] = keras.Input(spec.row_shape, dtype=spec.dtype, name=spec.input)
        return self.states[spec.input]

    def _once(self, path: str, make: Any) -> Any:
        if path not in self._layers:
            self._layers[path] = make()
        return self._layers[path]


def _no_form(layer: Any, path: str, what: str) -> RefusedModelError:
    return RefusedModelError(
        f"{path!r} ({type(layer).__name__}) {what}, which has no form as a Keras layer of one timestep.",
        fix="Export the model: its ONNX step graph has it, and `stepwell inspect` shows its states.",
    )


class OneTimestep(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer of a nested model under its full name, so that names stay unique.

    Args:
        layer: The layer.
        name: This layer's name.
    """

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(name=name)
        self.layer = layer
        self.supports_masking = layer.supports_masking

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the layer gives."""
        return self.layer(*args, **kwargs)


class RecurrentStep(OneTimestep):
    """One step of a recurrent layer, by the layer's own cell."""

    def call(self, x: Any, states: list[Any], mask: Any = None) -> Any:
        """Return the answers as the layer gives them for one timestep, then the next states in flat order."""
        layer = self.layer
        nested = keras.tree.pack_sequence_as(layer.get_initial_state(1), list(states))
        y, after = layer.cell(x[:, 0], nested)
        after = keras.tree.flatten(after)
        if mask is not None:
            y, after = self._held(mask, y, list(states), after)
        answer = [keras.ops.expand_dims(y, 1) if layer.return_sequences else y]
        return [*answer, *(after if layer.return_state else []), *after]

    def compute_mask(self, x: Any, mask: Any = None) -> Any:
        """Hand the mask on with the answer alone."""
        count = len(keras.tree.flatten(self.layer.get_initial_state(1)))
        rest = [None] * (2 * count if self.layer.return_state else count)
        return [mask if self.layer.return_sequences else None, *rest]

    def _held(self, mask: Any, y: Any, before: list[Any], after: list[Any]) -> tuple[Any, list[Any]]:
        """Keep the states and repeat the previous output where the timestep is masked, as the layer does."""
        cells = getattr(self.layer.cell, "cells", None)
        last = len(keras.tree.flatten(cells[-1].state_size)) if cells else len(before)
        previous = keras.ops.zeros_like(y) if self.layer.zero_output_for_mask else before[-last]
        return keras.ops.where(mask, y, previous), [
            keras.ops.where(mask, n, o) for o, n in zip(before, after, strict=True)
        ]


class WindowStep(OneTimestep):
    """One step of a causal convolution: the layer itself on the timesteps that it looks back on."""

    def call(self, x: Any, past: Any) -> Any:
        """Return the answer for one timestep, and the past of the next one."""
        window = keras.ops.concatenate([past, x], axis=1)
        return self.layer(window)[:, -1:], window[:, 1:]
