"""Zoo: layers that see one timestep: merges, activations, normalisations, shapes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.model_export.keras.zoo_parts import RS, InstantNorm, L, ZooModel, of, sequence


def merges(x: Any) -> Any:
    a, b, c = (L.Dense(3)(x) for _ in range(3))
    parts = [L.Add()([a, b, c]), L.Multiply()([a, b]), L.Average()([a, b, c])]
    return L.Concatenate()([*parts, L.Maximum()([a, b]), L.Minimum()([b, c]), L.LSTM(2, return_sequences=True)(a)])


def shapes(x: Any) -> Any:
    h = L.Permute((1, 3, 2))(L.Reshape((-1, 2, 3))(x))
    return L.GRU(4, return_sequences=True)(L.Reshape((-1, 6))(L.Dense(2)(h)))


def normalised(x: Any) -> Any:
    seen = np.random.default_rng(0).normal(3, 2, (50, 4)).astype("float32")
    layer = L.Normalization()
    layer.adapt(seen)
    h = L.LayerNormalization()(L.Rescaling(0.5, 0.1)(layer(x)))
    return L.LSTM(3, return_sequences=True)(L.GaussianNoise(0.5)(L.BatchNormalization()(L.Dropout(0.5)(h))))


def every_activation(x: Any) -> Any:
    names = sorted(fn.__name__ for fn in keras.src.activations.ALL_OBJECTS if fn.__name__ not in {"threshold", "glu"})
    parts = [L.Activation(name)(x) for name in names]
    parts += [keras.activations.glu(x), keras.activations.threshold(x, 0.1, -1.0)]
    return L.Concatenate()(parts)


ZOO: dict[str, ZooModel] = {
    "merges": ZooModel(
        lambda: of(merges),
        "Add, Multiply, Average, Maximum, Minimum, Concatenate",
        "no state",
    ),
    "normalised": ZooModel(
        lambda: of(normalised),
        "Normalization, Rescaling, LayerNormalization, BatchNormalization",
        "learned statistics as constants",
    ),
    "custom_layer": ZooModel(
        lambda: sequence(InstantNorm(), L.LSTM(4, **RS)),
        "a custom layer in keras.ops",
        "its `call` is traced",
    ),
    "norms": ZooModel(
        lambda: sequence(L.UnitNormalization(), L.RMSNormalization(), L.GRU(4, **RS)),
        "UnitNormalization, RMSNormalization",
        "no state",
    ),
    "group_norm_of_frames": ZooModel(
        lambda: keras.Sequential(
            [
                keras.Input((None, 3, 4), name="x"),
                L.TimeDistributed(L.GroupNormalization(2)),
                L.TimeDistributed(L.Flatten()),
                L.SpectralNormalization(L.Dense(3)),
                L.GRU(2, **RS),
            ]
        ),
        "TimeDistributed(GroupNormalization), SpectralNormalization",
        "statistics of each timestep by itself",
    ),
    "every_activation": ZooModel(
        lambda: of(every_activation),
        "every function of keras.activations",
        "no state",
    ),
}
