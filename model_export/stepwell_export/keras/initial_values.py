"""Loads a Keras model without drawing the random values that the weights of its file replace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import keras
import numpy as np

_DRAWN: Final = (
    keras.initializers.Orthogonal,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.VarianceScaling,
)
_LOADING: Final = threading.Lock()


@contextmanager
def zeros_for_random_values() -> Iterator[None]:
    """Let initializers without a seed give zeros in this thread.

    Each shape of an initializer is compiled by JAX, and an orthogonal matrix of a large layer takes seconds. With a
    seed the values can be the same each time, so a layer may use them without saving them: these are drawn.
    """
    with _LOADING, ExitStack() as restored:
        for kind in _DRAWN:
            restored.callback(setattr, kind, "__call__", kind.__call__)
            kind.__call__ = _zeros(kind.__call__, threading.get_ident())
        yield


def _zeros(draw: Callable[..., Any], thread: int) -> Callable[..., Any]:
    """Return a method that gives zeros to calls of a thread, and is `draw` to others."""

    def call(initializer: Any, shape: Any, dtype: Any = None) -> Any:
        if threading.get_ident() != thread or initializer.get_config().get("seed", "unknown") is not None:
            return draw(initializer, shape, dtype)
        return keras.ops.convert_to_tensor(np.zeros(shape, np.float32), dtype)  # compiles nothing

    return call
