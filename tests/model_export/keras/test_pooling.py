"""Pooling layers of people's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import pytest

from tests.model_export.keras.proven import export_model


class TemporalPool(keras.layers.MaxPooling1D):  # type: ignore[misc]  # Keras has no types
    """Named after what no rule may read from a name: the m of Temporal, and no Max."""


class GlobalPool(keras.layers.GlobalMaxPooling1D):  # type: ignore[misc]  # Keras has no types
    """The same over all timesteps."""


class MaxOfMeans(keras.layers.AveragePooling1D):  # type: ignore[misc]  # Keras has no types
    """An average, whatever its name is."""


@pytest.mark.parametrize(
    "layers",
    [
        (keras.layers.ZeroPadding1D((1, 0)), TemporalPool(2, 1), keras.layers.GRU(5)),
        (keras.layers.ZeroPadding1D((1, 0)), MaxOfMeans(2, 1), keras.layers.GRU(5)),
        (keras.layers.GRU(5, return_sequences=True), GlobalPool()),
    ],
    ids=["max", "mean", "global"],
)
def test_a_pooling_layer_of_ones_own_pools_as_the_class_it_is_made_of(layers: Sequence[Any]) -> None:
    model = keras.Sequential([keras.Input((None, 4)), *layers])

    assert export_model(model, name="pool", long_steps=100)[1].parity.max_abs <= 1e-5
