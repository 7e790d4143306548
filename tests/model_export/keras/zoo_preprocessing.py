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


def binned(mode: str) -> Any:
    return lambda x: L.GRU(3, **RS)(L.TimeDistributed(L.Discretization(BOUNDS, output_mode=mode))(x))


def bins_looked_up(x: Any) -> Any:
    bins = L.Discretization(BOUNDS)(x)
    return L.LSTM(3, **RS)(L.Reshape((-1, 12))(L.Embedding(5, 4)(bins)))


def coded(mode: str) -> Any:
    return lambda x: L.GRU(3, **RS)(L.TimeDistributed(L.CategoryEncoding(4, output_mode=mode))(x))


def one_class(x: Any) -> Any:
    return L.LSTM(3, **RS)(L.CategoryEncoding(4, output_mode="one_hot")(x))


def of_the_stream() -> Any:
    """Classes of a static input, joined to the last state."""
    x, who = keras.Input((None, 3), name="x"), keras.Input((3,), name="who", dtype="int32")
    return keras.Model([x, who], L.Dense(2)(L.Concatenate()([L.LSTM(3)(x), L.CategoryEncoding(4)(who)])))


def scaled(x: Any) -> Any:
    mean, back = np.array([0.1, -2, 3]), np.array([0.5, 1, 2])
    y = L.Normalization(mean=mean, variance=back)(L.Rescaling(2.0, [0.1, 0.2, 0.3])(x))
    return L.SimpleRNN(3, **RS)(L.Normalization(mean=mean, variance=back, invert=True)(y))


def scaled_numbers() -> Any:
    """One number for each timestep, scaled before it becomes a row of one feature."""
    x = keras.Input((9,), name="x")
    return keras.Model(x, L.LSTM(3, **RS)(L.Reshape((9, 1))(L.Rescaling(2.0)(x))))


def one_class_of_each() -> Any:
    """One class for each timestep; Keras itself takes a sequence of one timestep for something else."""
    x = keras.Input((None,), dtype="int32", name="x")
    return keras.Model(x, L.LSTM(3)(L.CategoryEncoding(5, output_mode="one_hot")(x)))


def augmented(x: Any) -> Any:
    for layer in (L.RandomFlip(), L.RandomRotation(0.2), L.RandomContrast(0.5), L.RandomTranslation(0.1, 0.1)):
        x = L.TimeDistributed(layer)(x)
    return L.LSTM(3, **RS)(L.TimeDistributed(L.Flatten())(x))


def augmented_inside(x: Any) -> Any:
    net = keras.Sequential([keras.Input((6, 6, 1)), L.RandomFlip(), L.RandomRotation(0.1), L.Flatten(), L.Dense(3)])
    return L.LSTM(3, **RS)(L.TimeDistributed(net)(x))


def noisy(x: Any) -> Any:
    for layer in (L.GaussianNoise(0.5), L.GaussianDropout(0.5), L.AlphaDropout(0.5), L.ActivityRegularization(0.1)):
        x = layer(x)
    return L.GRU(3, **RS)(x)


ZOO: dict[str, ZooModel] = {
    "preprocessing_scaled": ZooModel(
        lambda: over(scaled), "Normalization (also inverted), Rescaling by feature", "no state of their own"
    ),
    "preprocessing_numbers": ZooModel(scaled_numbers, "Rescaling of one number for each timestep", "no state"),
    "preprocessing_classes": ZooModel(one_class_of_each, "CategoryEncoding of one class for each timestep", "no state"),
    "preprocessing_bins": ZooModel(lambda: over(bins_looked_up), "Discretization in front of Embedding", "no state"),
    "preprocessing_bins_one_hot": ZooModel(
        lambda: over(lambda x: L.GRU(3, **RS)(L.Discretization(BOUNDS, output_mode="one_hot")(x)), (1,)),
        "Discretization, output_mode one_hot",
        "no state",
    ),
    "preprocessing_bins_multi_hot": ZooModel(
        lambda: over(binned("multi_hot")), "Discretization of each timestep, output_mode multi_hot", "no state"
    ),
    "preprocessing_bins_count": ZooModel(
        lambda: over(binned("count")), "Discretization of each timestep, output_mode count", "no state"
    ),
    "preprocessing_one_hot": ZooModel(
        lambda: over(one_class, (1,), "int32"), "CategoryEncoding, output_mode one_hot", "no state"
    ),
    "preprocessing_multi_hot": ZooModel(
        lambda: over(coded("multi_hot"), (3,), "int32"), "CategoryEncoding of each timestep, multi_hot", "no state"
    ),
    "preprocessing_count": ZooModel(
        lambda: over(coded("count"), (3,), "int32"), "CategoryEncoding of each timestep, count", "no state"
    ),
    "preprocessing_count_so_far": ZooModel(
        lambda: over(L.CategoryEncoding(4, output_mode="count"), (), "int32"),
        "CategoryEncoding over the sequence, count",
        "a running sum",
    ),
    "preprocessing_static": ZooModel(of_the_stream, "CategoryEncoding of a static input", "no state"),
    "preprocessing_augmented": ZooModel(
        lambda: over(augmented, (6, 6, 1)), "random augmentation of frames", "it rests outside training"
    ),
    "preprocessing_augmented_inside": ZooModel(
        lambda: over(augmented_inside, (6, 6, 1)),
        "random augmentation in a nested network",
        "it rests outside training",
    ),
    "preprocessing_noise": ZooModel(
        lambda: over(noisy), "GaussianNoise, GaussianDropout, AlphaDropout, ActivityRegularization", "they rest"
    ),
}
