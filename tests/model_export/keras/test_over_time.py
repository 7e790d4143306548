"""Whole kinds of models that the sequence graph lets stream: each equals Keras, step by step and row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from tests.model_export.keras.proven import export_model
from tests.model_export.keras.zoo_attention import T, over
from tests.model_export.keras.zoo_parts import RS, L, of, ops, randomise, sequence


class Learned(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Attention between a sequence and vectors that are weights.

    Args:
        queries: Whether the weights are the queries, so that there is one answer for the sequence; else the keys.
    """

    def __init__(self, *, queries: bool) -> None:
        super().__init__()
        self.queries, self.attend = queries, L.MultiHeadAttention(2, 3)

    def build(self, shape: Any) -> None:
        self.vectors = self.add_weight(shape=(1, 2, shape[-1]), name="vectors")
        self.attend.build(shape, shape)

    def call(self, x: Any) -> Any:
        vectors = ops.broadcast_to(self.vectors, (ops.shape(x)[0], 2, x.shape[-1]))
        return self.attend(vectors, x) if self.queries else x + self.attend(x, vectors)


def masked_from_an_input() -> Any:
    x, start = keras.Input((None, 4), name="x"), keras.Input((5,), name="start")
    return keras.Model([x, start], L.GRU(5, **RS)(L.Masking()(x), initial_state=start))


def statistics(x: Any) -> Any:
    h = L.Dense(5, "tanh")(x)
    mean = ops.mean(h, axis=1)
    return L.Dense(2)(ops.concatenate([mean, ops.sqrt(ops.mean(h * h, axis=1) - mean * mean + 1e-6)], axis=-1))


def attention_inside(x: Any) -> Any:
    parts = keras.Input((4, 2))
    within = keras.Model(parts, L.MultiHeadAttention(2, 3)(parts, parts))
    return L.GRU(3, **RS)(L.TimeDistributed(L.Flatten())(L.TimeDistributed(within)(L.Reshape((-1, 4, 2))(x))))


def extremes(x: Any) -> Any:
    return ops.cast(ops.stack([ops.any(x > 1.5, axis=1), ops.all(x < 2.0, axis=1)], axis=-1), "float32")


class NearKeys(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """Attention to the last three timesteps."""

    def call(self, q: Any, k: Any, v: Any) -> Any:
        places = ops.arange(ops.shape(q)[1])
        age = places[:, None] - places
        return ops.dot_product_attention(q, k, v, mask=ops.logical_and(age >= 0, age < 3)[None, None])


def product_with_mask(x: Any) -> Any:
    q, k, v = (L.Reshape((T, 2, 4))(L.Dense(8)(x)) for _ in range(3))
    return L.Reshape((T, 8))(NearKeys()(q, k, v))


def softmax_with_mask(x: Any) -> Any:
    weights = L.Softmax(axis=1)(L.Dense(1)(x)[..., 0], mask=x[..., 0] > 0)
    return ops.sum(x * weights[..., None], axis=1)


def sorted_ends(x: Any) -> Any:
    last = L.ZeroPadding1D((4, 0))(x)[:, -5:]
    return ops.concatenate([ops.sort(last, axis=1)[:, 2], ops.top_k(ops.transpose(last, (0, 2, 1)), 2)[0][..., 1]], -1)


KINDS: dict[str, Callable[[], Any]] = {
    "a masked layer that starts from an input": masked_from_an_input,
    "statistics pooling": lambda: of(statistics),
    "learned queries": lambda: of(lambda x: L.Dense(2)(L.Flatten()(Learned(queries=True)(L.GRU(6, **RS)(x))))),
    "learned keys": lambda: of(Learned(queries=False)),
    "a softmax over time with a mask": lambda: of(softmax_with_mask),
    "attention inside TimeDistributed": lambda: of(attention_inside, features=8),
    "any and all over time": lambda: of(extremes),
    "dot_product_attention with a mask": lambda: over(product_with_mask),
    "a recurrent layer over the features of the last answer": lambda: sequence(L.LSTM(6), L.Reshape((6, 1)), L.GRU(3)),
    "sorted last timesteps": lambda: of(sorted_ends),
}


@pytest.mark.many
@pytest.mark.parametrize("name", KINDS)
def test_a_model_over_time_equals_keras(name: str) -> None:
    model = KINDS[name]()
    randomise(model)

    _, report = export_model(model, name="m")

    assert report.parity.max_abs < 1e-5


def test_an_initial_state_from_an_input_is_sent_once_and_held_over_masked_timesteps() -> None:
    model = masked_from_an_input()
    randomise(model)
    step = StepModel(export_model(model, name="m")[0])
    rng = np.random.default_rng(4)
    x, start = rng.standard_normal((2, 6, 4)).astype(np.float32), rng.standard_normal((2, 5)).astype(np.float32)
    x[:, :2] = 0

    found, _ = step.chunk({"x": x, "start": np.repeat(start[:, None], 6, axis=1)}, step.initial_states(2))

    np.testing.assert_allclose(next(iter(found.values())), model([x, start]), atol=1e-5)


def test_two_windows_over_one_sequence_are_carried_once() -> None:
    gated = of(lambda x: L.Conv1D(3, 4, padding="causal")(x) * L.Conv1D(3, 4, padding="causal", activation="tanh")(x))
    randomise(gated)

    assert [state.shape for state in StepModel(export_model(gated, name="m")[0]).manifest.states] == [[3, 4]]


def test_a_cut_of_a_declared_length_in_front_of_flatten_is_refused_with_the_cut_that_is_a_window() -> None:
    """Of ten timesteps it is the same, and only the last ones are of any number."""
    x = keras.Input((10, 4), name="x")
    model = keras.Model(x, L.Dense(6)(L.Flatten(name="odd")(L.GRU(3, **RS)(x)[:, 7:])))

    with pytest.raises(RefusedModelError, match=r"'odd' .*takes one number of timesteps alone") as caught:
        export_model(model, name="cut")

    assert "x[:, -n:]" in caught.value.fix


def test_a_model_of_windows_is_exported_as_it_is() -> None:
    """Each timestep has the answer for the last n timesteps, zeros in front of the first ones."""
    n, inputs = 6, keras.Input((None, 4), name="x")
    layers = [L.Conv1D(5, 3, strides=2, padding="same"), L.Bidirectional(L.GRU(3, **RS)), L.Flatten(), L.Dense(2)]
    trained = keras.Sequential([keras.Input((n, 4)), *layers])
    randomise(trained)
    model = keras.Model(inputs, trained(L.ZeroPadding1D((n - 1, 0))(inputs)[:, -n:]))

    step = StepModel(export_model(model, name="windows", long_steps=100)[0])

    x = np.random.default_rng(1).normal(size=(1, 20, 4)).astype(np.float32)
    padded = np.concatenate([np.zeros((1, n - 1, 4), np.float32), x], axis=1)
    windows = np.concatenate([padded[:, at : at + n] for at in range(20)])
    (answers,) = step.chunk({"x": x}, step.initial_states(1))[0].values()
    np.testing.assert_allclose(answers[0], trained.predict_on_batch(windows), atol=1e-5)
