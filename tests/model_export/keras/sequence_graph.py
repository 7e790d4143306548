"""A function of `keras.ops` as a layer's code: its sequence graph run by ONNX Runtime, beside Keras itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from stepwell_export.keras.sequence import ANY, KerasSequences
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
    return all_ours_and_keras({"own": function}, *arrays)["own"]


def all_ours_and_keras(functions: Mapping[str, Callable[..., Any]], *arrays: Array) -> dict[str, tuple[Array, Array]]:
    """Return the same for each of several functions, which are one layer."""
    model = own_model(lambda *tensors: [function(*tensors) for function in functions.values()], *arrays)
    proto = KerasSequences(model, [True] * len(arrays), ANY[0], ANY[1], None).traced.graph
    session = open_session(proto.SerializeToString(), where="the sequence graph")
    found = session.run(None, dict(zip([one.name for one in proto.graph.input], arrays, strict=True)))
    with np.errstate(all="ignore"):
        expected = map(np.asarray, model.call([keras.ops.convert_to_tensor(array) for array in arrays]))
    return dict(zip(functions, zip(found, expected, strict=True), strict=True))
