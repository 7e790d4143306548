"""What the zoo of Keras models is built from: its entry, custom layers, and short ways to write a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

L = keras.layers
ops = keras.ops
RS = {"return_sequences": True}


@dataclass(frozen=True, slots=True)
class ZooModel:
    """One small model that can be stepped.

    Attributes:
        build: Makes it; its weights are set by `zoo.build`.
        shows: What it is the example of, for readers: layers and options.
        how: How it is stepped: which states it has, or why it needs none.
        tolerance: Absolute tolerance; relative to the original's value ten times that.
        rows_alike: Whether a row in a batch comes out bit for bit as it does alone. Means and sums over features, and
            products of values, are rounded by onnxruntime in an order that depends on the batch.
    """

    build: Callable[[], Any]
    shows: str
    how: str
    tolerance: float = 1e-5
    rows_alike: bool = True


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


@keras.saving.register_keras_serializable("tests")
class LeakyPair(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A custom cell with two states of different sizes, one nested in a dict, that does not start from zeros."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units
        self.state_size = [units, 1]
        self.output_size = units

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units), name="kernel")
        self.start = self.add_weight(shape=(self.units,), name="start")

    def get_initial_state(self, batch_size: Any = None) -> Any:
        fast = ops.broadcast_to(self.start, (batch_size, self.units))
        return [fast, ops.ones((batch_size, 1))]

    def call(self, x: Any, states: Any) -> Any:
        fast, slow = states
        fast = 0.5 * fast + ops.tanh(ops.matmul(x, self.kernel) * slow)
        return fast, [fast, 0.9 * slow + 0.1 * ops.mean(fast, axis=-1, keepdims=True)]


@keras.saving.register_keras_serializable("tests")
class SkipZeros(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A custom layer that masks by a rule of its own: where the first feature is zero."""

    def call(self, x: Any) -> Any:
        return x + 1.0

    def compute_mask(self, x: Any, previous: Any = None) -> Any:
        return ops.not_equal(x[..., 0], 0.0)


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


def cells() -> Any:
    """Return three kinds of cell on top of each other."""
    return L.StackedRNNCells([L.LSTMCell(5), L.GRUCell(4), L.SimpleRNNCell(3)])


def randomise(model: Any) -> None:
    """Set every weight to random numbers of a trained model's size; variances stay positive."""
    rng = np.random.default_rng(2)
    for weight in model.weights:
        if "seed" in weight.path or "rnn_state" in weight.path or weight.path.startswith("normalization"):
            continue
        scale = 0.8 / np.sqrt(max(weight.shape[0], 1)) if len(weight.shape) > 1 else 0.3
        values = rng.standard_normal(weight.shape) * scale
        weight.assign(tensor(np.abs(values) + 0.3 if "variance" in weight.path else values, weight.dtype))


def tensor(values: Any, dtype: str) -> Any:
    """Return the backend's tensor for an array; JAX itself would compile a program for each shape to make one."""
    array = np.asarray(values).astype(dtype)
    if keras.backend.backend() != "jax":
        return array
    import jax

    return jax.device_put(array)
