"""The inputs of a Keras model: which have a time axis, and what is drawn for them so that it reaches every branch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice, product
from typing import Any

import keras
import numpy as np

from stepwell_export.keras.subclassed import functional

_ELEMENTWISE = {"Rescaling", "Normalization", "Discretization", "Dropout", "GaussianNoise", "Identity", "Cast"}
"""What numbers may go through on their way to become rows of features."""

_MOST_READINGS = 8


def possible_axes(function: Any) -> Iterator[list[bool]]:
    """Return for each input whether axis 1 is time, once for each way to read the model, the likeliest first.

    An input of its own length beside a sequence is something static, such as the id of a machine or an image; where the
    model cannot be stepped so, it may be a sequence after all. The same goes for ids as many as there are timesteps.
    """
    tensors = function.inputs
    timed = [_has_time(function, tensor) for tensor in tensors]
    options = []
    for tensor, time in zip(tensors, timed, strict=True):
        others = {t.shape[1] for t, also in zip(tensors, timed, strict=True) if also and _is_sequence(t, tensor)}
        if not time or tensor.shape[1] is None or not others:
            options.append([time])
        else:
            options.append([True, False] if tensor.shape[1] in others else [False, True])
    return islice((list(reading) for reading in product(*options)), _MOST_READINGS)


def _is_sequence(tensor: Any, beside: Any) -> bool:
    """Whether an input is a sequence with more certainty than another one."""
    if tensor is beside:
        return False
    return tensor.shape[1] is None or (len(tensor.shape) > 2 and len(beside.shape) == 2)


def _has_time(function: Any, tensor: Any) -> bool:
    """Whether axis 1 is time: of three axes or more, of unknown length, of ids, or of numbers made a row each."""
    if len(tensor.shape) != 2 or tensor.shape[1] is None:
        return len(tensor.shape) > 1
    targets: list[Any] = [getattr(node.operation, "target_shape", ()) for node in _users(function, tensor)]
    columns = all(len(target) == 2 and target[1] in {1, -1} and target[0] != 1 for target in targets)
    return columns or _is_looked_up(function, tensor) or _becomes_rows(function, tensor)


def _becomes_rows(function: Any, tensor: Any) -> bool:
    """Whether each number becomes a row of features, for example in an embedding inside a layer of one's own."""
    outputs = [(node.operation, output) for node in _users(function, tensor) for output in node.outputs]
    return (
        tensor.shape[1] > 1
        and bool(outputs)
        and all(
            _becomes_rows(function, output)
            if type(operation).__name__ in _ELEMENTWISE and len(output.shape) == 2
            else len(output.shape) > 2 and output.shape[1] == tensor.shape[1]
            for operation, output in outputs
        )
    )


def only_looked_up(function: Any, tensor: Any) -> bool:
    """Whether an input is nothing but ids for embeddings: declared as integers then, whatever Keras' default is."""
    users = [node.operation for node in _users(function, tensor)]
    return bool(users) and all(_looks_up(user) for user in users)


def _is_looked_up(function: Any, tensor: Any) -> bool:
    """Whether an input is ids for an embedding, and perhaps for more: a mask of them, their number."""
    return any(_looks_up(node.operation) for node in _users(function, tensor))


def _looks_up(user: Any) -> bool:
    inner = functional(user)
    if inner is not None and len(inner.inputs) == 1:
        return only_looked_up(inner, inner.inputs[0])
    return isinstance(getattr(user, "layer", user), keras.layers.Embedding)  # `layer`: inside TimeDistributed


def _users(function: Any, tensor: Any) -> list[Any]:
    """Return the calls of layers and operations that take a tensor, without an embedding's own mask."""
    nodes = [node for level in function._nodes_by_depth.values() for node in level]
    users = [node for node in nodes if any(tensor is other for other in node.input_tensors)]
    return [node for node in users if type(node.operation).__name__ != "NotEqual"]


# ---------------------------------------------------------------- what is drawn for them


@dataclass(frozen=True, slots=True)
class InputFacts:
    """What is known of an input.

    Attributes:
        time: Whether the original's input has a time axis.
        vocabulary: Integers from 0 to below this are looked up in an embedding; None: no lookup.
        mask_value: The value that marks a masked timestep; None: nothing is masked by it.
        may_begin_masked: Whether the original gives a number for a sequence whose first timestep is masked.
    """

    time: bool
    vocabulary: int | None = None
    mask_value: float | None = None
    may_begin_masked: bool = True


def facts_of_inputs(model: Any, timed: Mapping[str, bool], vocabularies: Mapping[str, int]) -> dict[str, InputFacts]:
    """Return what is known of each input.

    Args:
        model: The model.
        timed: Whether each input has a time axis.
        vocabularies: How many ids an input is looked up among.
    """
    layers = model._flatten_layers()
    masks = [value for layer in layers if (value := _mask_value(layer)) is not None]
    means = any(isinstance(layer, keras.layers.GlobalAveragePooling1D) for layer in layers)  # of nothing it is NaN
    return {
        name: InputFacts(time, vocabularies.get(name), masks[-1] if masks and time else None, not means)
        for name, time in timed.items()
    }


def _mask_value(layer: Any) -> float | None:
    """Return the value that a layer masks timesteps by; None: it makes no mask."""
    if isinstance(layer, keras.layers.Masking):
        return float(np.asarray(layer.mask_value))
    is_own = type(layer).compute_mask is not keras.Layer.compute_mask and not type(layer).__module__.startswith(
        "keras."
    )
    return 0.0 if is_own or getattr(layer, "mask_zero", False) else None
