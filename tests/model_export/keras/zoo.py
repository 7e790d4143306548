"""Small Keras models of every kind that can be stepped, with weights that leave nothing at its default."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

L = keras.layers
ops = keras.ops


@keras.saving.register_keras_serializable("tests")
class InstantNorm(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A custom layer in `keras.ops`: zero mean and unit variance in every timestep, with a learned gain."""

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

    def call(self, x: Any) -> Any:
        centred = x - ops.mean(x, axis=-1, keepdims=True)
        return self.gain * centred / ops.sqrt(ops.mean(ops.square(centred), axis=-1, keepdims=True) + 1e-7)


@keras.saving.register_keras_serializable("tests")
class MinimalCell(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A custom cell in `keras.ops`, one state."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = self.state_size = self.output_size = units

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.recurrent_kernel = self.add_weight(shape=(self.units, self.units), name="recurrent_kernel")

    def call(self, x: Any, states: Any, training: bool = False) -> Any:
        h = ops.matmul(x, self.kernel) + 0.5 * ops.tanh(ops.matmul(states[0], self.recurrent_kernel))
        return h, [h]


class Doubled(keras.layers.Dense):  # type: ignore[misc]  # Keras has no types
    """A subclass that computes something else than its parent."""

    def call(self, x: Any) -> Any:
        return 2 * super().call(x)


class Plain(keras.layers.LSTM):  # type: ignore[misc]  # Keras has no types
    """A subclass that computes as its parent does."""


def sequence(*layers: Any, features: int = 4) -> Any:
    """Return a Sequential model over `(batch, any time, features)`."""
    return keras.Sequential([keras.Input((None, features), name="x"), *layers])


def of(build: Callable[[Any], Any], features: int = 4) -> Any:
    """Return a functional model of one input `x`."""
    x = keras.Input((None, features), name="x")
    return keras.Model(x, build(x))


def two_inputs_two_outputs() -> Any:
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 5), name="b")
    x = L.Concatenate()([L.LSTM(6, return_sequences=True)(a), L.GRU(4, return_sequences=True)(b)])
    return keras.Model([a, b], [L.Dense(2, name="label")(x), L.LSTM(3, name="summary")(x)])


def dict_of_outputs() -> Any:
    x = keras.Input((None, 3), name="x")
    h = L.GRU(4, return_sequences=True)(x)
    return keras.Model({"x": x}, {"speed": L.Dense(1)(h), "alarm": L.Dense(2, "sigmoid")(h)})


def static_input() -> Any:
    x, who = keras.Input((None, 3), name="x"), keras.Input((5,), name="who")
    return keras.Model([x, who], L.Dense(2)(L.Concatenate()([L.LSTM(4)(x), L.Dense(3, "relu")(who)])))


def shared_layer() -> Any:
    a, b = keras.Input((None, 3), name="a"), keras.Input((None, 3), name="b")
    lstm = L.LSTM(4, return_sequences=True, name="twin")
    return keras.Model([a, b], L.Subtract(name="difference")([lstm(a), lstm(b)]))


def nested() -> Any:
    block = sequence(L.LSTM(5, return_sequences=True, name="rnn"), L.Dense(4, "relu"))
    other = keras.Sequential([keras.Input((None, 4)), L.LSTM(3, return_sequences=True, name="rnn")])
    return of(lambda x: other(block(x)))


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


def masked_branches() -> Any:
    ids = keras.Input((None,), name="ids")
    a = L.LSTM(4, return_sequences=True)(L.Embedding(6, 3, mask_zero=True)(ids))
    b = L.GRU(4, return_sequences=True)(L.Embedding(6, 3, mask_zero=True)(ids))
    return keras.Model(ids, L.LSTM(3)(L.Concatenate()([a, L.Add()([a, b])])))


def masked_nested() -> Any:
    inner = keras.Sequential([keras.Input((None, 4)), L.LSTM(3, return_sequences=True)])
    return of(lambda x: L.GRU(3, return_sequences=True)(inner(L.Masking(-1.0)(x))))


def masked_half() -> Any:
    """One branch is masked, the other is not: a sum and a concatenation of both are not masked any more."""
    x = keras.Input((None, 4), name="x")
    a, b = L.SimpleRNN(3, **RS)(L.Masking()(x)), L.SimpleRNN(3, **RS)(x)
    return keras.Model(x, [L.GRU(2, **RS)(L.Add()([a, b])), L.GRU(2, **RS)(L.Concatenate()([a, b]))])


def explicit_mask() -> Any:
    x, flag = keras.Input((None, 4), name="x"), keras.Input((None,), dtype="bool", name="flag")
    return keras.Model([x, flag], L.LSTM(3, **RS)(x, mask=flag))


def lost_mask(x: Any) -> Any:
    """Neither a convolution nor an operation hands a mask on."""
    masked = L.Masking()(x)
    return [L.GRU(2, **RS)(L.Conv1D(3, 1)(masked)), L.GRU(2, **RS)(ops.stop_gradient(masked))]


def normalised(x: Any) -> Any:
    seen = np.random.default_rng(0).normal(3, 2, (50, 4)).astype("float32")
    layer = L.Normalization()
    layer.adapt(seen)
    h = L.LayerNormalization()(L.Rescaling(0.5, 0.1)(layer(x)))
    return L.LSTM(3, return_sequences=True)(L.GaussianNoise(0.5)(L.BatchNormalization()(L.Dropout(0.5)(h))))


def cells() -> Any:
    return L.StackedRNNCells([L.LSTMCell(5), L.GRUCell(4), L.SimpleRNNCell(3)])


RS = {"return_sequences": True}

ZOO: dict[str, Callable[[], Any]] = {
    "lstm_softmax": lambda: sequence(L.LSTM(8, **RS), L.Dense(3, "softmax")),
    "lstm_last": lambda: sequence(L.LSTM(8), L.Dense(1, "sigmoid")),
    "lstm_no_bias": lambda: sequence(L.LSTM(8, use_bias=False, recurrent_activation="hard_sigmoid", **RS)),
    "gru_600": lambda: sequence(L.GRU(600, **RS), L.Dense(2), features=10),
    "gru_reset_before": lambda: sequence(L.GRU(7, reset_after=False, **RS)),
    "gru_no_bias": lambda: sequence(L.GRU(7, use_bias=False, activation="softsign", **RS)),
    "gru_reset_before_no_bias": lambda: sequence(L.GRU(7, use_bias=False, reset_after=False, **RS)),
    "simple_relu": lambda: sequence(L.SimpleRNN(6, activation="relu", **RS), L.TimeDistributed(L.Dense(2))),
    "stacked": lambda: sequence(L.LSTM(6, **RS), L.GRU(5, **RS), L.SimpleRNN(4, use_bias=False, **RS)),
    "stacked_last": lambda: sequence(L.LSTM(6, **RS), L.GRU(5)),
    "dropout_inside": lambda: sequence(L.LSTM(6, dropout=0.3, recurrent_dropout=0.2, **RS), L.SpatialDropout1D(0.5)),
    "stateful_fixed": lambda: keras.Sequential(
        [keras.Input(batch_shape=(32, 21, 16), name="x"), L.LSTM(6, stateful=True, **RS), L.Dense(16, "softmax")]
    ),
    "stateful_one_step": lambda: keras.Sequential(
        [keras.Input(batch_shape=(1, 1, 4), name="x"), L.GRU(5, stateful=True), L.Dense(2)]
    ),
    "unrolled": lambda: keras.Sequential([keras.Input((6, 4), name="x"), L.SimpleRNN(5, unroll=True, **RS)]),
    "fixed_reshape": lambda: keras.Sequential(
        [keras.Input((12, 6), name="x"), L.Reshape((12, 2, 3)), L.TimeDistributed(L.Flatten()), L.GRU(4)]
    ),
    "tokens": lambda: keras.Sequential([keras.Input((None,), name="ids"), L.Embedding(9, 4), L.LSTM(5, **RS)]),
    "tokens_masked": lambda: keras.Sequential(
        [keras.Input((None,), name="ids"), L.Embedding(9, 4, mask_zero=True), L.LSTM(5, **RS), L.GRU(4)]
    ),
    "masking": lambda: sequence(L.Masking(), L.SimpleRNN(5, **RS), L.Dense(3), L.GRU(4, **RS)),
    "masked_zero_output": lambda: sequence(L.Masking(), L.RNN(L.LSTMCell(4), zero_output_for_mask=True, **RS)),
    "masked_stacked_cells": lambda: sequence(L.Masking(2.0), L.RNN(cells(), **RS)),
    "masked_branches": masked_branches,
    "masked_nested": masked_nested,
    "masked_half": masked_half,
    "explicit_mask": explicit_mask,
    "lost_mask": lambda: of(lost_mask),
    "subclasses": lambda: sequence(Plain(4, **RS), Doubled(3)),
    "numbers": lambda: keras.Sequential([keras.Input((None,), name="x"), L.Reshape((-1, 1)), L.LSTM(3, **RS)]),
    "fixed_numbers": lambda: keras.Sequential([keras.Input((9,), name="x"), L.Reshape((9, 1)), L.LSTM(3, **RS)]),
    "network_of_each_timestep": lambda: sequence(
        L.TimeDistributed(keras.Sequential([keras.Input((4,)), L.Dense(3, "relu"), L.Dense(2)])), L.GRU(3, **RS)
    ),
    "cells": lambda: sequence(L.RNN(cells(), **RS)),
    "return_state": lambda: of(L.LSTM(4, return_state=True, name="rnn", **RS)),
    "two_inputs_two_outputs": two_inputs_two_outputs,
    "dict_of_outputs": dict_of_outputs,
    "static_input": static_input,
    "shared_layer": shared_layer,
    "nested": nested,
    "merges": lambda: of(merges),
    "operations": lambda: of(operations),
    "last_timestep_by_index": lambda: of(lambda x: L.Dense(2)(L.LSTM(4, **RS)(x)[:, -1, :])),
    "activation_layers": lambda: of(activation_layers),
    "normalised": lambda: of(normalised),
    "shapes": lambda: of(shapes, features=6),
    "frames": frames,
    "tcn": lambda: of(tcn),
    "custom_layer": lambda: sequence(InstantNorm(), L.LSTM(4, **RS)),
    "custom_cell": lambda: sequence(L.Masking(), L.RNN(MinimalCell(4), **RS)),
    "custom_activation": lambda: sequence(L.LSTM(4, activation=lambda x: ops.tanh(x) * 0.9, **RS)),
    "norms": lambda: sequence(L.UnitNormalization(), L.RMSNormalization(), L.GRU(4, **RS)),
}


def build(name: str) -> Any:
    """Return a model of the zoo with random weights everywhere, biases and statistics included."""
    model = ZOO[name]()
    randomise(model)
    return model


def randomise(model: Any) -> None:
    """Set every weight to random numbers of a trained model's size; variances stay positive."""
    rng = np.random.default_rng(2)
    for weight in model.weights:
        if "seed" in weight.path or "rnn_state" in weight.path or weight.path.startswith("normalization"):
            continue
        scale = 0.8 / np.sqrt(max(weight.shape[0], 1)) if len(weight.shape) > 1 else 0.3
        values = rng.standard_normal(weight.shape) * scale
        weight.assign(np.abs(values) + 0.3 if "variance" in weight.path else values)
