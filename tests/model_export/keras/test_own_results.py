"""Layers of one's own that give constants: rows that are learned, or the same for each stream."""

from __future__ import annotations

from typing import Any

import keras
import pytest
from keras import layers, ops

from tests.model_export.keras.proven import export_model


class Latents(keras.layers.Layer):  # type: ignore[misc]  # Keras has no types
    """Three learned rows, whatever comes in."""

    def build(self, shape: Any) -> None:
        self.rows = self.add_weight(shape=(1, 3, 4), initializer="random_normal")

    def call(self, x: Any) -> Any:
        return ops.broadcast_to(self.rows, (ops.shape(x)[0], 3, 4))


@pytest.mark.parametrize("attends", [False, True])
def test_learned_rows_stand_beside_a_sequence(attends: bool) -> None:
    x = keras.Input((None, 4))
    latents = Latents()(x)
    y = layers.MultiHeadAttention(2, 4)(latents, x) if attends else latents
    model = keras.Model(x, layers.Concatenate()([layers.Dense(3)(layers.Flatten()(y)), layers.LSTM(3)(x)]))
    assert export_model(model, name="m")[0]


def test_an_activation_of_ones_own_at_each_timestep_gets_one_timestep() -> None:
    x = keras.Input((None, 4))
    dense = layers.Dense(4, activation=lambda x: x - ops.max(x, axis=1, keepdims=True))
    assert export_model(keras.Model(x, layers.TimeDistributed(dense)(x)), name="m")[0]
