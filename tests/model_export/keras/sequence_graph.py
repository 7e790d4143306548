"""A function of `keras.ops` as a layer's code: its sequence graph run by ONNX Runtime, beside Keras itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from stepwell_export.keras.rule_registry import to_array
from stepwell_export.keras.walk import KerasWalk
from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.session import open_session


class Own(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A layer of somebody's own that is one function of its inputs."""

    def __init__(self, function: Callable[..., Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.function = function

    def call(self, tensors: Any) -> Any:
        return self.function(*tensors)


def own_model(function: Callable[..., Any], *arrays: Array) -> Any:
    """Return a model that is one layer of somebody's own, for arrays `(batch, timesteps, *row)`."""
    inputs = [keras.Input((None, *array.shape[2:]), dtype=array.dtype.name) for array in arrays]
    return keras.Model(inputs, Own(function, name="own")(inputs))


def ours_and_keras(function: Callable[..., Any], *arrays: Array) -> tuple[Array, Array]:
    """Return what the sequence graph gives for arrays `(batch, timesteps, *row)`, and what Keras gives."""
    model, walk = own_model(function, *arrays), KerasWalk()
    names = [f"x{place}" for place in range(len(arrays))]
    values = [
        walk.graph.input(name, array.shape[2:], array.dtype.name, time=True)
        for name, array in zip(names, arrays, strict=True)
    ]
    output = walk.graph.output("y", walk.run(model, values)[0])
    session = open_session(walk.graph.proto("m").SerializeToString(), where="the sequence graph")
    found = session.run([output], dict(zip(names, arrays, strict=True)))[0]
    with np.errstate(all="ignore"):
        return found, to_array(model.call([keras.ops.convert_to_tensor(array) for array in arrays]))
