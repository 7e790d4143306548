"""`LayerNames`: what nodes and messages call the layer that an equation of a trace comes from."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import keras

from stepwell_export.patched import patched


class LayerNames:
    """Finds layers by the names that a trace has them under: `encoder/both/forward_lstm`, and whatever is between."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._found: dict[str, tuple[str, str]] = {}

    def __call__(self, stack: str) -> tuple[str, str]:
        """Return a layer's name with those of what it is in, and how a message calls it; empty where there is none."""
        if stack not in self._found:
            self._found[stack] = self._find(stack)
        return self._found[stack]

    def _find(self, stack: str) -> tuple[str, str]:
        layer, path = self._model, []
        for part in stack.split("/"):
            inner = next((one for one in _inside(layer) if one.name == part), None)
            if inner is not None:
                layer = inner
                path.append(part)
        if not path:
            return "", ""
        kind = "Layer" if isinstance(layer, keras.Layer) else "Operation"
        name = ".".join(path)
        return name, f"{kind} {name!r} ({type(layer).__name__})"

    def own_class(self, described: str) -> str:
        """Return the class of people's own that a layer is of, or is in; empty: it is Keras' own, or a Lambda.

        Args:
            described: What a message calls the layer.
        """
        found, layer = "", self._model
        for part in described.partition("'")[2].partition("'")[0].split("."):
            layer = next((one for one in _inside(layer) if one.name == part), layer)
            if isinstance(layer, keras.Layer) and not type(layer).__module__.startswith("keras."):
                found = type(layer).__name__ if layer is not self._model else found
        return found


def _inside(layer: Any) -> list[Any]:
    """Return the layers and operations right inside a layer."""
    if not isinstance(layer, keras.Layer):
        return []
    own = list(layer._flatten_layers(include_self=False, recursive=False))
    function = layer._functional if isinstance(layer, keras.Sequential) else layer
    return [*getattr(function, "operations", []), *own]


@contextmanager
def named_operations() -> Iterator[None]:
    """Let the operations of a functional model, which are no layers, be named in a trace as layers are."""
    original = keras.Operation.__call__

    def call(operation: Any, *args: Any, **given: Any) -> Any:
        if isinstance(operation, keras.Layer):
            return original(operation, *args, **given)
        with jax.named_scope(operation.name):
            return original(operation, *args, **given)

    with patched((keras.Operation, "__call__", call)):
        yield
