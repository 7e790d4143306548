"""Runs what Keras repeats for each timestep on all timesteps at once.

TimeDistributed compiles, or runs, its layer once for each timestep: for a network of some size that takes minutes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np


def find_wrappers(model: Any) -> list[Any]:
    """Return the layers of a model that run another one at each timestep."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.TimeDistributed)]


def may_spread_timesteps(model: Any, inputs: Any) -> bool:
    """Return whether such layers give the same on all timesteps at once, compared with Keras' own way once.

    Args:
        model: The model.
        inputs: A short sequence of several rows, as the model takes it.
    """
    if not find_wrappers(model):
        return False
    try:
        want = keras.tree.flatten(model.call(inputs, training=False))
        with timesteps_as_rows(model):
            found = keras.tree.flatten(model.call(inputs, training=False))
    except Exception:  # noqa: BLE001  # whatever the reason, Keras' own way will report it
        return False
    return all(
        np.allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-5) for a, b in zip(want, found, strict=True)
    )


@contextmanager
def timesteps_as_rows(model: Any) -> Iterator[None]:
    """Let TimeDistributed run its layer on all timesteps at once, as rows of one batch."""

    def spread(wrapper: Any) -> Any:
        inner = wrapper.layer

        def call(inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
            given = {"training": training} if inner._call_has_training_arg else {}
            if inner._call_has_mask_arg and mask is not None:
                given["mask"] = keras.ops.reshape(mask, (-1, *mask.shape[2:]))
            rows, steps = keras.ops.shape(inputs)[:2]
            with keras.name_scope(inner.name):
                results = inner.call(keras.ops.reshape(inputs, (-1, *inputs.shape[2:])), **given)
            return keras.tree.map_structure(
                lambda result: keras.ops.reshape(result, (rows, steps, *result.shape[1:])), results
            )

        return call

    wrappers = find_wrappers(model)
    for wrapper in wrappers:
        vars(wrapper)["call"] = spread(wrapper)
    try:
        yield
    finally:
        for wrapper in wrappers:
            vars(wrapper).pop("call", None)
