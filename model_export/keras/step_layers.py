"""Keras layers that do one step of another layer, with its weights: recurrent layers and causal convolutions."""

from __future__ import annotations

from typing import Any

import keras

ops = keras.ops


class RecurrentStep(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """One step of a recurrent layer, by the layer's own cell.

    Args:
        layer: The recurrent layer.
        name: This layer's name.
    """

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(name=name)
        self.layer = layer
        self.supports_masking = True

    def call(self, x: Any, states: list[Any], mask: Any = None) -> Any:
        """Return the answers as the layer gives them for one timestep, then the next states in flat order."""
        layer = self.layer
        nested = keras.tree.pack_sequence_as(layer.get_initial_state(1), list(states))
        y, after = layer.cell(x[:, 0], nested)
        after = keras.tree.flatten(after)
        if mask is not None:
            y, after = self._held(mask, y, list(states), after)
        answer = [ops.expand_dims(y, 1) if layer.return_sequences else y]
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
        previous = ops.zeros_like(y) if self.layer.zero_output_for_mask else before[-last]
        return ops.where(mask, y, previous), [ops.where(mask, n, o) for o, n in zip(before, after, strict=True)]


class WindowStep(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """One step of a causal convolution: the layer itself on the timesteps that it looks back on.

    Args:
        layer: The convolution.
        name: This layer's name.
    """

    def __init__(self, layer: Any, name: str) -> None:
        super().__init__(name=name)
        self.layer = layer

    def call(self, x: Any, past: Any) -> Any:
        """Return the answer for one timestep, and the past of the next one."""
        window = ops.concatenate([past, x], axis=1)
        return self.layer(window)[:, -1:], window[:, 1:]


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
