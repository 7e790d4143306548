"""`to_step_model`: the step graph of a Keras model as a Keras model, for people who want to look at it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import keras

from stepwell_export.keras.sequence import export_keras, plain
from stepwell_export.keras.subclassed import walkable
from stepwell_export.keras.walk import functional
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.manifest import StateSpec
from stepwell_export.streaming.step_graph import plain as as_in_states


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
    exported = export_keras(model, name="step")
    specs = exported.manifest.inputs
    inputs = {
        spec.name: keras.Input(
            (1, *spec.shape) if exported.facts[spec.name].time else spec.shape, dtype=spec.dtype, name=spec.name
        )
        for spec in specs
    }
    step = _Stepped(exported.step.layer_states)
    function = functional(walkable(model))
    answers = step.run(function, [inputs[name] for name in exported.facts], "")
    if step.left:
        name, spec = next(iter(step.left.items()))
        raise _no_form(model, model.name, f"carries {name} of row {spec.shape}")
    return keras.Model(
        {**inputs, **step.states},
        {**dict(zip(exported.timed, answers, strict=True)), **step.next_states},
        name=plain(f"{model.name}_step"),
    )


class _Stepped:
    """Calls the layers of a model on one timestep.

    Attributes:
        left: States of the step graph that no layer has taken.
        states: Symbolic states before this timestep.
        next_states: What they become.
    """

    def __init__(self, specs: list[StateSpec]) -> None:
        self.left = {spec.input: spec for spec in specs}
        self.states: dict[str, Any] = {}
        self.next_states: dict[str, Any] = {}
        self._layers: dict[str, Any] = {}

    def run(self, function: Any, inputs: list[Any], prefix: str) -> list[Any]:
        """Return the flat outputs of a functional model for one timestep."""

        def visit(operation: Any) -> Any:
            return partial(self._called, operation, prefix)

        return list(keras.tree.flatten(function._run_through_graph(inputs, operation_fn=visit)))

    def _called(self, operation: Any, prefix: str, /, *args: Any, **kwargs: Any) -> Any:
        path = f"{prefix}{operation.name}"
        kwargs = {name: value for name, value in kwargs.items() if value is not None and name != "training"}
        if (inner := functional(operation)) is not None:
            given = (
                [args[0][t.name] for t in inner.inputs] if isinstance(args[0], dict) else keras.tree.flatten(args[0])
            )
            return self.run(inner, given, f"{path}.")
        own = [spec for name, spec in self.left.items() if name.startswith(f"{as_in_states(path)}.")]
        if own:
            return self._stepped(operation, path, args, kwargs, own)
        if isinstance(operation, keras.layers.Reshape):
            target = (1, *operation.target_shape[1:])
            return self._once(path, lambda: keras.layers.Reshape(target, name=path))(*args)
        named = operation
        if isinstance(operation, keras.Layer) and path != operation.name:
            named = self._once(path, lambda: OneTimestep(operation, path))
        results = named(*args, **kwargs)
        first = next(tensor for tensor in keras.tree.flatten((args, kwargs)) if keras.backend.is_keras_tensor(tensor))
        for result in keras.tree.flatten(results):
            if len(first.shape) > 2 and first.shape[1] == 1 and len(result.shape) > 2 and result.shape[1] != 1:
                raise _no_form(operation, path, "changes the number of timesteps")
        return results

    def _stepped(self, layer: Any, path: str, args: Any, kwargs: Any, specs: list[StateSpec]) -> Any:
        """Call a layer that carries states; those of its first call are the first ones."""
        count = len(keras.tree.flatten(layer.get_initial_state(1))) if isinstance(layer, keras.layers.RNN) else 1
        specs = specs[:count]
        inputs = [self._state(spec) for spec in specs]
        if isinstance(layer, keras.layers.RNN) and len(specs) == count:
            step = self._once(path, lambda: RecurrentStep(layer, path))
            # Keras hands masks on by itself only to layers with one tensor for an argument.
            answers = step(args[0], inputs, mask=kwargs.get("mask", getattr(args[0], "_keras_mask", None)))
        elif getattr(layer, "padding", None) == "causal":
            step = self._once(path, lambda: WindowStep(layer, path))
            answers = step(args[0], *inputs)
        else:
            raise _no_form(layer, path, f"carries {', '.join(spec.input for spec in specs)}")
        self.next_states.update(zip((spec.output for spec in specs), answers[-len(specs) :], strict=True))
        results = list(answers[: -len(specs)])
        return results if len(results) > 1 else results[0]

    def _state(self, spec: StateSpec) -> Any:
        del self.left[spec.input]
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
        nested = layer.get_initial_state(1)
        before = [_with_row(s, first.shape[1:]) for s, first in zip(states, keras.tree.flatten(nested), strict=True)]
        y, after = layer.cell(x[:, 0], keras.tree.pack_sequence_as(nested, before))
        after = keras.tree.flatten(after)
        if mask is not None:
            y, after = self._held(mask, y, before, after)
        answer = [keras.ops.expand_dims(y, 1) if layer.return_sequences else y]
        carried = [_with_row(new, state.shape[1:]) for new, state in zip(after, states, strict=True)]
        return [*answer, *(after if layer.return_state else []), *carried]

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
        window = keras.ops.concatenate([_with_row(past, (past.shape[1], *x.shape[2:])), x], axis=1)
        return self.layer(window)[:, -1:], _with_row(window[:, 1:], past.shape[1:])


def _with_row(tensor: Any, row: Iterable[int]) -> Any:
    """Return a tensor with rows of another shape: a state may lack axes of length 1 that its layer has."""
    return keras.ops.reshape(tensor, (-1, *row))
