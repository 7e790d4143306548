"""What cannot be stepped is refused by the layer's name and class, with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from stepwell_export.keras.sequence import export_keras
from stepwell_export.runtime.errors import RefusedModelError
from tests.model_export.keras.zoo_parts import RS, L, MinimalCell, of, ops, sequence


class NumpyLayer(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A custom layer that does not use keras.ops."""

    def call(self, x: Any) -> Any:
        return x + np.asarray(x).mean()

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape)


class Mixing(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A custom layer of keras.ops that subtracts the mean over time."""

    def call(self, x: Any) -> Any:
        return x - ops.mean(x, axis=1, keepdims=True)


class Sampling(keras.Layer):  # type: ignore[misc]  # Keras has no types
    """A custom layer that adds noise, training or not."""

    def __init__(self, *, seeded: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seeds = keras.random.SeedGenerator(1) if seeded else None

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(ops.shape(x), seed=self.seeds)

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape)


class Subclassed(keras.Model):  # type: ignore[misc]  # Keras has no types
    """A model whose `call` is Python code."""

    def call(self, x: Any) -> Any:
        return x


class Looking(keras.Model):  # type: ignore[misc]  # Keras has no types
    """A model whose Python code looks at a number, which a symbolic tensor has not."""

    def call(self, x: Any) -> Any:
        return x * float(x[0, 0, 0])


def looks_at_numbers() -> Any:
    model = Looking(name="own")
    model(np.ones((1, 2, 3), np.float32))
    return model


def stateful_twice() -> Any:
    x = keras.Input(batch_shape=(1, None, 3))
    rnn = L.GRU(3, stateful=True, name="odd", **RS)
    return keras.Model(x, rnn(rnn(x)))


def state_of_a_sequence() -> Any:
    """An encoder and a decoder: the decoder starts when the encoder's sequence has ended."""
    x, y = keras.Input((None, 3)), keras.Input((None, 4))
    _, *states = L.LSTM(4, return_state=True)(x)
    return keras.Model([x, y], L.LSTM(4, name="odd")(y, initial_state=states))


def static_beside_timed() -> Any:
    x, who = keras.Input((None, 3)), keras.Input((2, 3))
    return keras.Model([x, who], L.Add(name="odd")([x, L.Reshape((2, 3))(L.Flatten()(L.LSTM(6)(who)))]))


def fixed(*layers: Any, steps: int = 6, features: int = 4) -> Any:
    return keras.Sequential([keras.Input((steps, features)), *layers])


def quantized() -> Any:
    model = sequence(L.Dense(3, name="odd"))
    model.quantize("int8")
    return model


def dropout_that_stays_on() -> Any:
    return of(lambda x: L.Dropout(0.5, name="odd")(L.LSTM(3, **RS)(x), training=True))


# name: (model with a layer called "odd", its class, words of the reason)
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "bidirectional": (lambda: sequence(L.Bidirectional(L.LSTM(3, **RS), name="odd")), "LSTM", "is reverse over time"),
    "softmax_masked": (
        lambda: sequence(L.Masking(), L.Softmax(name="odd")), "Softmax", "cannot be traced",
    ),
    "layer_norm": (
        lambda: fixed(L.LayerNormalization(axis=[1, 2], name="odd")),
        "LayerNormalization", "along the time axis",
    ),
    "conv_same": (
        lambda: sequence(L.Conv1D(3, 3, padding="same", name="odd")),
        "Conv1D", "on the right of the time axis",
    ),
    "padded_recurrent": (
        lambda: sequence(L.ZeroPadding1D((2, 0)), L.GRU(3, name="odd")), "GRU", "ends 2 timestep(s) after",
    ),
    "cropped_less_than_padded": (
        lambda: sequence(L.ZeroPadding1D((2, 0)), L.Cropping1D((1, 0)), L.LSTM(3, name="odd", **RS)),
        "LSTM", "begins in the padding in front of the sequence",
    ),
    "dot_over_time": (lambda: of(lambda x: L.Dot(2, name="odd")([x, x])), "Dot", "every timestep with every other"),
    "einsum_over_time": (
        lambda: fixed(L.EinsumDense("btf,ts->bsf", (6, 4), name="odd")),
        "EinsumDense", "one number of timesteps alone",
    ),
    "attention": (lambda: of(lambda x: L.Attention(name="odd")([x, x])), "Attention", "attends to timesteps to come"),
    "lambda_over_time": (
        lambda: sequence(L.Lambda(lambda x: x[:, ::-1], name="odd")), "Lambda", "reads the sequence backwards",
    ),
    "reshape_time": (lambda: fixed(L.Reshape((3, 8), name="odd")), "Reshape", "one number of timesteps alone"),
    "static_beside_timed": (static_beside_timed, "Add", "cannot be traced"),
    "state_of_a_sequence": (state_of_a_sequence, "LSTM", "which the sequence decides"),
    "stateful_twice": (stateful_twice, "GRU", "stateful and called more than once"),
    "dropout_that_stays_on": (dropout_that_stays_on, "Dropout", "training=True"),
    "quantized": (quantized, "Dense", "weights are quantized to int8"),
    "random_numbers": (lambda: of(Sampling(name="odd")), "Sampling", "cannot be traced"),
    "random_numbers_of_a_seed": (
        lambda: of(Sampling(seeded=True, name="odd")), "Sampling", "draws random numbers",
    ),
    "custom_without_keras_ops": (lambda: of(NumpyLayer(name="odd")), "NumpyLayer", "decides by the value of a tensor"),
    "custom_over_time": (lambda: of(Mixing(name="odd")), "Mixing", "known after the last timestep only"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_cannot_be_stepped_is_refused_by_name(name: str) -> None:
    build, cls, reason = REFUSED[name]
    model = build()

    with pytest.raises(RefusedModelError) as caught:
        export_keras(model, name="m")

    assert re.search(rf"[Ll]ayer 'odd[.\w]*' \({cls}\)", caught.value.problem)
    assert reason in caught.value.problem
    assert caught.value.fix


# name: (model, class of the operation, words of the reason)
REFUSED_OPERATIONS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "max_over_everything": (lambda: of(lambda x: x / ops.max(x)), "Max", "reduces over the rows of the batch"),
    "second_timestep": (lambda: of(lambda x: x[:, 1]), "GetItem", "counted from its beginning"),
    "shifted": (lambda: of(lambda x: x[:, 1:]), "GetItem", "1 timestep(s) shorter"),
    "ahead": (lambda: of(lambda x: ops.pad(x[:, 1:], ((0, 0), (0, 1), (0, 0)))), "Pad", "1 timestep(s) ahead"),
    "end_in_front": (
        lambda: of(lambda x: ops.concatenate([x[:, -1:], x[:, :-1]], axis=1)),
        "Concatenate",
        "puts a part of the sequence in front of it",
    ),
    "one_row": (lambda: of(lambda x: x[0]), "GetItem", "picks rows of the batch"),
    "rolled": (lambda: of(lambda x: ops.roll(x, 1, axis=1)), "Roll", "up to a limit only"),
    "sorted": (lambda: of(lambda x: ops.sort(x, axis=1)), "Sort", "sorts the timesteps of the whole sequence"),
    "sum_of_the_batch": (
        lambda: of(lambda x: ops.einsum("btf->tf", x)),
        "Einsum",
        "reduces over the rows of the batch",
    ),
    "batch_meets_time": (lambda: of(lambda x: x + L.LSTM(4)(x)), "Add", "cannot be traced"),
}


@pytest.mark.parametrize("name", REFUSED_OPERATIONS)
def test_an_operation_over_time_or_batch_is_refused_by_its_class(name: str) -> None:
    build, cls, reason = REFUSED_OPERATIONS[name]
    model = build()

    with pytest.raises(RefusedModelError) as caught:
        export_keras(model, name="m")

    assert f"({cls})" in caught.value.problem
    assert reason in caught.value.problem


def test_a_refusal_names_the_layer_that_shortens_the_sequence_and_not_the_last_one() -> None:
    model = sequence(L.Conv1D(3, 4, name="short"), L.LayerNormalization(), L.GRU(5, **RS, name="answer"), L.Dense(2))

    with pytest.raises(RefusedModelError, match=r"Layer 'short' \(Conv1D\) makes output .* 3 timestep\(s\) shorter"):
        export_keras(model, name="m")


# name: (model, words of what can be done about it)
FIXES: dict[str, tuple[Callable[[], Any], str]] = {
    "attention": (lambda: of(lambda x: L.Attention()([x, x])), "use_causal_mask=True"),
    "endless attention": (lambda: of(lambda x: L.Attention()([x, x], use_causal_mask=True)), "keras.Input((T, ...))"),
    "convolution": (lambda: sequence(L.Conv1D(3, 3)), "padding='causal' (Conv1D)"),
    "a layer of one's own": (lambda: of(Mixing()), "Or write a step rule for Mixing"),
    "median": (lambda: of(lambda x: ops.median(x, axis=1)), "ZeroPadding1D((n - 1, 0))(x)[:, -n:] in Keras"),
    "variance": (lambda: of(lambda x: ops.var(x, axis=1)), "the mean of the squares less the square of the mean"),
    "skewness": (
        lambda: of(lambda x: ops.mean((x - ops.mean(x, axis=1, keepdims=True)) ** 3, axis=1)),
        "or take the last n timesteps",
    ),
    "a softmax written out": (
        lambda: of(lambda x: ops.sum(x * (ops.exp(x) / ops.sum(ops.exp(x), axis=1, keepdims=True)), axis=1)),
        "as a softmax over time",
    ),
    "softmax behind a mask": (lambda: sequence(L.Masking(), L.Softmax()), "Activation('softmax')"),
}


@pytest.mark.parametrize("name", FIXES)
def test_a_refusal_says_what_to_do_in_the_terms_of_keras(name: str) -> None:
    build, words = FIXES[name]

    with pytest.raises(RefusedModelError) as caught:
        export_keras(build(), name="m")

    assert words in caught.value.fix
    assert "--length" not in caught.value.fix


def test_nobody_is_sent_to_write_a_step_rule_for_a_lambda() -> None:
    with pytest.raises(RefusedModelError) as caught:
        export_keras(sequence(L.Lambda(lambda x: x[:, ::-1])), name="m")

    assert "step rule" not in caught.value.fix


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Subclassed(name="own"), r"'own' \(Subclassed\) has no graph .* it is not built yet"),
        (lambda: keras.Sequential([L.LSTM(3)]), r"\(Sequential\) has no graph .* it is not built yet"),
        (looks_at_numbers, r"'own' \(Looking\) cannot be called on symbolic tensors .* (Type|Attribute)Error: "),
        (lambda: sequence(L.ZeroPadding1D((2, 0))), r"\(ZeroPadding1D\) makes output .* 2 timestep\(s\) longer than"),
        (lambda: fixed(L.Permute((2, 1))), "Output 'permute.*' does not have the timesteps on axis 1"),
        (lambda: of(lambda x: ops.expand_dims(x, 1)), "Output 'expand_dims.*' does not have the timesteps on axis 1"),
        (lambda: keras.Sequential([keras.Input((4,)), L.Dense(2)]), "No input .* has a time axis"),
        (lambda: of(L.Softmax(), features=None), "expected fixed sizes behind batch and time"),  # type: ignore[arg-type]
        (lambda: keras.Model(s := keras.Input((None, 1), dtype="string"), s), "has dtype string"),
    ],
)  # fmt: skip
def test_a_model_as_a_whole_that_cannot_be_walked_is_refused(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(RefusedModelError, match=words):
        export_keras(build(), name="m")


def test_a_custom_cell_that_mixes_rows_is_refused_by_its_name() -> None:
    class Mean(MinimalCell):
        def call(self, x: Any, states: Any, training: bool = False) -> Any:
            h = states[0] - ops.mean(x, axis=0)
            return h, [h]

    with pytest.raises(RefusedModelError, match=r"Layer 'rnn\.\w+' \(Mean\) reduces over the rows"):
        export_keras(of(L.RNN(Mean(4), name="rnn")), name="m")
