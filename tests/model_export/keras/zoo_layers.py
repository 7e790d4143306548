"""Zoo: layers and operations that see one timestep, and convolutions that look back."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.model_export.keras.zoo_parts import RS, InstantNorm, L, ZooModel, of, ops, sequence


def merges(x: Any) -> Any:
    a, b, c = (L.Dense(3)(x) for _ in range(3))
    parts = [L.Add()([a, b, c]), L.Multiply()([a, b]), L.Average()([a, b, c])]
    return L.Concatenate()([*parts, L.Maximum()([a, b]), L.Minimum()([b, c]), L.LSTM(2, return_sequences=True)(a)])


def operations(x: Any) -> Any:
    h = L.GRU(6, return_sequences=True)(x)
    gate = ops.sigmoid(h[..., :3]) * ops.tanh(h[..., 3:]) + 0.1
    norm = gate / ops.sqrt(ops.sum(ops.square(gate), axis=-1, keepdims=True) + 1e-3)
    picked = ops.where(norm > 0.2, ops.maximum(norm, 0.5), ops.exp(-norm))
    return ops.concatenate([picked, ops.clip(h, -0.2, 0.2), 1.0 - ops.abs(gate)], axis=-1)


def frames() -> Any:
    x = keras.Input((None, 8, 8, 1), name="frame")
    h = L.TimeDistributed(L.Conv2D(3, 3, activation="relu", padding="same", strides=2))(x)
    h = L.TimeDistributed(L.MaxPooling2D(2))(h)
    return keras.Model(x, L.LSTM(5, return_sequences=True)(L.TimeDistributed(L.Flatten())(h)))


def shapes(x: Any) -> Any:
    h = L.Permute((1, 3, 2))(L.Reshape((-1, 2, 3))(x))
    return L.GRU(4, return_sequences=True)(L.Reshape((-1, 6))(L.Dense(2)(h)))


def activation_layers(x: Any) -> Any:
    for layer in (L.ReLU(max_value=2.0, negative_slope=0.1, threshold=0.2), L.LeakyReLU(0.3), L.ELU(0.7),
                  L.PReLU(shared_axes=[1]), L.Softmax(), L.Activation("mish"), L.Activation("gelu")):  # fmt: skip
        x = layer(L.Dense(4)(x))
    return L.SimpleRNN(3, return_sequences=True)(x)


def tcn(x: Any) -> Any:
    for dilation in (1, 2, 4):
        y = L.Conv1D(6, 3, padding="causal", dilation_rate=dilation, activation="relu")(x)
        x = L.Add()([y, L.Conv1D(6, 1, use_bias=False)(x)])
    return L.Conv1D(4, 2, padding="causal", groups=2)(x)


def normalised(x: Any) -> Any:
    seen = np.random.default_rng(0).normal(3, 2, (50, 4)).astype("float32")
    layer = L.Normalization()
    layer.adapt(seen)
    h = L.LayerNormalization()(L.Rescaling(0.5, 0.1)(layer(x)))
    return L.LSTM(3, return_sequences=True)(L.GaussianNoise(0.5)(L.BatchNormalization()(L.Dropout(0.5)(h))))


ZOO: dict[str, ZooModel] = {
    "merges": ZooModel(
        lambda: of(merges),
        "Add, Multiply, Average, Maximum, Minimum, Concatenate",
        "no state",
    ),
    "operations": ZooModel(
        lambda: of(operations),
        "keras.ops in a functional model: arithmetic, where, clip, sums",
        "no state",
    ),
    "last_timestep_by_index": ZooModel(
        lambda: of(lambda x: L.Dense(2)(L.LSTM(4, **RS)(x)[:, -1, :])),
        "x[:, -1, :] behind an LSTM",
        "the answer for the timesteps so far",
    ),
    "activation_layers": ZooModel(
        lambda: of(activation_layers),
        "ReLU, LeakyReLU, ELU, PReLU, Softmax, Activation",
        "no state",
    ),
    "normalised": ZooModel(
        lambda: of(normalised),
        "Normalization, Rescaling, LayerNormalization, BatchNormalization",
        "learned statistics as constants",
    ),
    "shapes": ZooModel(
        lambda: of(shapes, features=6),
        "Reshape and Permute of features",
        "time stays in front",
    ),
    "frames": ZooModel(
        frames,
        "TimeDistributed Conv2D, MaxPooling2D, Flatten; LSTM",
        "run on each frame",
    ),
    "tcn": ZooModel(
        lambda: of(tcn),
        "dilated causal Conv1D with residuals, groups",
        "a state of past timesteps for each convolution",
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
}
