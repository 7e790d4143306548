"""`InputFacts`: what is to be drawn for the inputs of a Keras model, so that its data reach every branch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np


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
