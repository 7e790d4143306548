"""Zoo: preprocessing layers inside the model."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.model_export.keras.zoo_parts import RS, L, ZooModel

BOUNDS = [-0.7, 0.0, 0.25, 1.0]


def over(build: Any, row: tuple[int, ...] = (3,), dtype: str = "float32") -> Any:
    """Return a model of one input `x` of any number of timesteps."""
    x = keras.Input((None, *row), name="x", dtype=dtype)
    return keras.Model(x, build(x))


def scaled(x: Any) -> Any:
    mean, back = np.array([0.1, -2, 3]), np.array([0.5, 1, 2])
    y = L.Normalization(mean=mean, variance=back)(L.Rescaling(2.0, [0.1, 0.2, 0.3])(x))
    return L.SimpleRNN(3, **RS)(L.Normalization(mean=mean, variance=back, invert=True)(y))


def scaled_numbers() -> Any:
    """One number for each timestep, scaled before it becomes a row of one feature."""
    x = keras.Input((9,), name="x")
    return keras.Model(x, L.LSTM(3, **RS)(L.Reshape((9, 1))(L.Rescaling(2.0)(x))))


def augmented_inside(x: Any) -> Any:
    net = keras.Sequential([keras.Input((6, 6, 1)), L.RandomFlip(), L.RandomRotation(0.1), L.Flatten(), L.Dense(3)])
    return L.LSTM(3, **RS)(L.TimeDistributed(net)(x))


ZOO: dict[str, ZooModel] = {
    "preprocessing_scaled": ZooModel(
        lambda: over(scaled), "Normalization (also inverted), Rescaling by feature", "no state of their own"
    ),
    "preprocessing_numbers": ZooModel(scaled_numbers, "Rescaling of one number for each timestep", "no state"),
    "preprocessing_bins_one_hot": ZooModel(
        lambda: over(lambda x: L.GRU(3, **RS)(L.Discretization(BOUNDS, output_mode="one_hot")(x)), (1,)),
        "Discretization, output_mode one_hot",
        "no state",
    ),
    "preprocessing_count_so_far": ZooModel(
        lambda: over(L.CategoryEncoding(4, output_mode="count"), (), "int32"),
        "CategoryEncoding over the sequence, count",
        "a running sum",
    ),
    "preprocessing_augmented_inside": ZooModel(
        lambda: over(augmented_inside, (6, 6, 1)),
        "random augmentation in a nested network",
        "it rests outside training",
    ),
}
