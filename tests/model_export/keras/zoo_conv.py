"""Zoo: convolutions, pooling and padding, over time where they are causal and inside one timestep."""

from __future__ import annotations

from typing import Any

import keras

from tests.model_export.keras.zoo_parts import RS, L, ZooModel, of, ops, sequence


def frames() -> Any:
    x = keras.Input((None, 8, 8, 1), name="frame")
    h = L.TimeDistributed(L.Conv2D(3, 3, activation="relu", padding="same", strides=2))(x)
    h = L.TimeDistributed(L.MaxPooling2D(2))(h)
    return keras.Model(x, L.LSTM(5, return_sequences=True)(L.TimeDistributed(L.Flatten())(h)))


def tcn(x: Any) -> Any:
    for dilation in (1, 2, 4):
        y = L.Conv1D(6, 3, padding="causal", dilation_rate=dilation, activation="relu")(x)
        x = L.Add()([y, L.Conv1D(6, 1, use_bias=False)(x)])
    return L.Conv1D(4, 2, padding="causal", groups=2)(x)


def bands(*layers: Any) -> Any:
    """Return a model over `(batch, any time, 9 bands, 2 channels)`."""
    return keras.Sequential([keras.Input((None, 9, 2), name="x"), *layers])


def encoder_and_decoder() -> Any:
    """Convolutions over time and frequency with a recurrent middle, as in speech enhancement."""
    return bands(
        L.ZeroPadding2D(((1, 0), (0, 0))),
        L.Conv2D(3, (2, 3), strides=(1, 2)),
        L.BatchNormalization(),
        L.ELU(),
        L.Reshape((-1, 12)),
        L.GRU(12, **RS),
        L.Reshape((-1, 4, 3)),
        L.Conv2DTranspose(1, (2, 3), strides=(1, 2)),
        L.Cropping2D(((0, 1), (0, 0))),
    )


def padded_once() -> Any:
    """All the padding in front of the first layer: what the layers behind it make of it is their past."""
    return sequence(
        L.ZeroPadding1D((7, 0)),
        L.Conv1D(4, 2, activation="relu"),
        L.Conv1D(4, 3, dilation_rate=2, activation="sigmoid"),
        L.Dropout(0.2),
        L.Dense(3, "relu"),
        L.Conv1D(4, 3),
    )


def in_each_frame() -> Any:
    layers = [
        L.Conv2DTranspose(2, 3, strides=2, padding="same"), L.Conv2DTranspose(2, 2, strides=3), L.ZeroPadding2D(1),
        L.Cropping2D(((2, 1), (0, 1))), L.UpSampling2D(2, interpolation="bilinear"), L.UpSampling2D((1, 2)),
        L.SeparableConv2D(3, 3, strides=3, padding="same", activation="relu"), L.DepthwiseConv2D(2),
        L.AveragePooling2D(2, padding="same"), L.GlobalMaxPooling2D(),
    ]  # fmt: skip
    return keras.Sequential([keras.Input((None, 3, 3, 2), name="frame"), *map(L.TimeDistributed, layers)])


def so_far(x: Any) -> Any:
    """Statistics over time that answer for the timesteps so far."""
    return [
        L.Dense(2)(L.GlobalAveragePooling1D()(x)),
        L.GlobalMaxPooling1D()(x),
        ops.min(x, axis=1),
        ops.mean(x, axis=(1, 2)),
        ops.cumsum(x, axis=1) * 0.1,
    ]


ZOO: dict[str, ZooModel] = {
    "resized_bands": ZooModel(
        lambda: keras.Sequential(
            [
                keras.Input((None, 4, 2), name="x"),
                L.UpSampling2D((1, 2), interpolation="bilinear"),
                L.TimeDistributed(L.Flatten()),
                L.GRU(2, **RS),
            ]
        ),
        "UpSampling2D of the bands, bilinear",
        "no state",
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
    "padded_once": ZooModel(
        padded_once,
        "ZeroPadding1D once in front of several Conv1D with padding valid",
        "a state of past timesteps for each, which starts from what the layer gives for padding",
    ),
    "time_and_frequency": ZooModel(
        lambda: bands(
            L.ZeroPadding2D(((2, 0), (1, 1))),
            L.Conv2D(3, (3, 3), strides=(1, 2), activation="relu"),
            L.MaxPooling2D((1, 2)),
            L.UpSampling2D((1, 2)),
            L.Conv2D(2, (1, 3), padding="same"),
        ),
        "Conv2D over (time, frequency), padded in front; pooling over frequency",
        "a state of past timesteps",
    ),
    "encoder_and_decoder": ZooModel(
        encoder_and_decoder,
        "Conv2D, GRU, Conv2DTranspose over (time, frequency), the end cut off",
        "a state of past timesteps for each convolution",
    ),
    "so_far": ZooModel(
        lambda: of(so_far),
        "GlobalAveragePooling1D, GlobalMaxPooling1D, ops.min, ops.mean, ops.cumsum over time",
        "the statistic of the timesteps so far as a state",
    ),
    "in_each_frame": ZooModel(
        in_each_frame,
        "TimeDistributed transposed, separable and depthwise convolution, padding, up-sampling, pooling",
        "run on each frame",
    ),
}
