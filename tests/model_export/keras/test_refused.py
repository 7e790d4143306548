"""What cannot be stepped is refused by the layer's name and class, with the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

from model_export.errors import RefusedModelError
from model_export.keras.step import export_keras
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


class Subclassed(keras.Model):  # type: ignore[misc]  # Keras has no types
    """A model whose `call` is Python code."""

    def call(self, x: Any) -> Any:
        return x


def stateful_twice() -> Any:
    x = keras.Input(batch_shape=(1, None, 3))
    rnn = L.GRU(3, stateful=True, name="odd", **RS)
    return keras.Model(x, rnn(rnn(x)))


def computed_state() -> Any:
    x, start = keras.Input((None, 3)), keras.Input((4,))
    return keras.Model([x, start], L.GRU(4, name="odd")(x, initial_state=start))


def static_beside_timed() -> Any:
    x, who = keras.Input((None, 3)), keras.Input((2, 3))
    return keras.Model([x, who], L.Add(name="odd")([x, L.Reshape((2, 3))(L.Flatten()(L.LSTM(6)(who)))]))


def fixed(*layers: Any, steps: int = 6, features: int = 4) -> Any:
    return keras.Sequential([keras.Input((steps, features)), *layers])


def dropout_that_stays_on() -> Any:
    return of(lambda x: L.Dropout(0.5, name="odd")(L.LSTM(3, **RS)(x), training=True))


# name: (model with a layer called "odd", its class, words of the reason)
REFUSED: dict[str, tuple[Callable[[], Any], str, str]] = {
    "bidirectional": (lambda: sequence(L.Bidirectional(L.LSTM(3, **RS), name="odd")), "Bidirectional", "from its end"),
    "go_backwards": (lambda: sequence(L.LSTM(3, go_backwards=True, name="odd")), "LSTM", "go_backwards"),
    "global_pooling": (lambda: sequence(L.GlobalAveragePooling1D(name="odd")), "GlobalAveragePooling1D", "pools over"),
    "max_pooling": (lambda: sequence(L.MaxPooling1D(name="odd")), "MaxPooling1D", "pools over the time axis"),
    "flatten": (lambda: fixed(L.Flatten(name="odd")), "Flatten", "flattens the time axis"),
    "softmax": (lambda: sequence(L.Softmax(axis=1, name="odd")), "Softmax", "along the time axis"),
    "layer_norm": (lambda: fixed(L.LayerNormalization(axis=[1, 2], name="odd")), "LayerNormalization", "time axis"),
    "batch_norm": (lambda: fixed(L.BatchNormalization(axis=1, name="odd")), "BatchNormalization", "time axis"),
    "unit_norm": (lambda: sequence(L.UnitNormalization(axis=1, name="odd")), "UnitNormalization", "time axis"),
    "conv_same": (lambda: sequence(L.Conv1D(3, 3, padding="same", name="odd")), "Conv1D", "padding='same'"),
    "conv_valid": (lambda: sequence(L.Conv1D(3, 3, name="odd")), "Conv1D", "padding='valid'"),
    "conv_strides": (
        lambda: sequence(L.Conv1D(3, 3, padding="causal", strides=2, name="odd")), "Conv1D", "strides=2 skips",
    ),
    "conv_2d": (
        lambda: keras.Sequential([keras.Input((None, 8, 1)), L.Conv2D(2, (1, 3), name="odd")]),
        "Conv2D", "over the time axis",
    ),
    "conv_lstm": (
        lambda: keras.Sequential([keras.Input((None, 8, 8, 1)), L.ConvLSTM2D(2, 3, name="odd")]),
        "ConvLSTM2D", "no rule",
    ),
    "padding_time": (lambda: sequence(L.ZeroPadding1D((2, 0), name="odd")), "ZeroPadding1D", "number of timesteps"),
    "cropping": (lambda: sequence(L.Cropping1D(1, name="odd")), "Cropping1D", "number of timesteps"),
    "attention": (lambda: of(lambda x: L.Attention(name="odd")([x, x])), "Attention", "attends over the time axis"),
    "self_attention": (
        lambda: of(lambda x: L.MultiHeadAttention(2, 2, name="odd")(x, x)), "MultiHeadAttention", "attends over",
    ),
    "repeat_vector": (lambda: sequence(L.LSTM(3), L.RepeatVector(5, name="odd")), "RepeatVector", "one vector"),
    "lambda": (lambda: sequence(L.Lambda(lambda x: x * 2, name="odd")), "Lambda", "Python code"),
    "reshape_time": (lambda: fixed(L.Reshape((3, 8), name="odd")), "Reshape", "mixes timesteps"),
    "reshape_unknown": (lambda: sequence(L.Reshape((-1, 2), name="odd")), "Reshape", "mixes timesteps"),
    "permute_time": (lambda: fixed(L.Permute((2, 1), name="odd")), "Permute", "moves the time axis"),
    "concatenate_time": (
        lambda: of(lambda x: L.Concatenate(axis=1, name="odd")([x, x])), "Concatenate", "along the time axis",
    ),
    "static_beside_timed": (static_beside_timed, "Add", "one without"),
    "rnn_on_the_last_answer": (
        lambda: sequence(L.LSTM(6), L.Reshape((2, 3)), L.GRU(3, name="odd")), "GRU", "carries no time axis",
    ),
    "time_distributed_on_the_last_answer": (
        lambda: sequence(L.LSTM(6), L.Reshape((2, 3)), L.TimeDistributed(L.Dense(3), name="odd")),
        "TimeDistributed", "carries no time axis",
    ),
    "computed_state": (computed_state, "GRU", "initial state is computed"),
    "stateful_twice": (stateful_twice, "GRU", "stateful and called more than once"),
    "dropout_that_stays_on": (dropout_that_stays_on, "Dropout", "training=True"),
    "half_precision": (lambda: sequence(L.LSTM(3, dtype="mixed_float16", name="odd")), "LSTM", "computes in float16"),
    "double_precision": (lambda: sequence(L.Dense(3, dtype="float64", name="odd")), "Dense", "computes in float64"),
    "custom_without_keras_ops": (lambda: of(NumpyLayer(name="odd")), "NumpyLayer", "cannot be traced"),
    "custom_over_time": (lambda: of(Mixing(name="odd")), "Mixing", "(Mean) cannot be stepped: it works along the time"),
    "mask_of_parts": (
        lambda: keras.Sequential([keras.Input((None, 5)), L.Embedding(4, 2, mask_zero=True, name="odd")]),
        "Embedding", "masks parts of a timestep",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_layer_that_cannot_be_stepped_is_refused_by_name(name: str) -> None:
    build, cls, reason = REFUSED[name]
    model = build()

    with pytest.raises(RefusedModelError) as caught:
        export_keras(model, name="m")

    assert caught.value.problem.startswith(f"Layer 'odd' ({cls}) cannot be stepped: ")
    assert reason in caught.value.problem
    assert caught.value.fix


# name: (model, class of the operation, words of the reason)
REFUSED_OPERATIONS: dict[str, tuple[Callable[[], Any], str, str]] = {
    "mean_over_time": (lambda: of(lambda x: x - ops.mean(x, axis=1, keepdims=True)), "Mean", "along the time axis"),
    "max_over_everything": (lambda: of(lambda x: x / ops.max(x)), "Max", "mixes streams"),
    "softmax_over_time": (lambda: of(lambda x: ops.softmax(x, axis=1)), "Softmax", "along the time axis"),
    "first_timestep": (lambda: of(lambda x: x[:, 0]), "GetItem", "only has the newest one"),
    "shifted": (lambda: of(lambda x: x[:, 1:]), "GetItem", "only has the newest one"),
    "one_row": (lambda: of(lambda x: x[0]), "GetItem", "picks rows of the batch"),
    "cumulative_sum": (lambda: of(lambda x: ops.cumsum(x, axis=1)), "Cumsum", "there is no rule"),
    "product_of_values": (lambda: of(lambda x: ops.matmul(x, ops.transpose(x, (0, 2, 1)))), "Transpose", "time axis"),
    "new_axis_in_front": (lambda: of(lambda x: ops.expand_dims(x, 1)), "ExpandDims", "before the features"),
    "concatenated_in_time": (lambda: of(lambda x: ops.concatenate([x, x], axis=1)), "Concatenate", "the time axis"),
    "batch_meets_time": (lambda: of(lambda x: x + L.LSTM(4)(x)), "Add", "2 and 3 axes"),
}


@pytest.mark.parametrize("name", REFUSED_OPERATIONS)
def test_an_operation_over_time_or_batch_is_refused_by_its_class(name: str) -> None:
    build, cls, reason = REFUSED_OPERATIONS[name]
    model = build()

    with pytest.raises(RefusedModelError) as caught:
        export_keras(model, name="m")

    assert f"({cls}) cannot be stepped: " in caught.value.problem
    assert reason in caught.value.problem


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Subclassed(name="own"), r"'own' \(Subclassed\) has no graph of layers to walk: its `call` is Python"),
        (lambda: keras.Sequential([L.LSTM(3)]), r"\(Sequential\) has no graph of layers to walk: it is not built yet"),
        (lambda: keras.Sequential([keras.Input((4,)), L.Dense(2)]), "No input .* has a time axis"),
        (lambda: of(L.Softmax(), features=None), "expected fixed sizes behind batch and time"),  # type: ignore[arg-type]
        (lambda: keras.Model(s := keras.Input((None, 1), dtype="string"), s), "has dtype string"),
    ],
)  # fmt: skip
def test_a_model_as_a_whole_that_cannot_be_walked_is_refused(build: Callable[[], Any], words: str) -> None:
    with pytest.raises(RefusedModelError, match=words):
        export_keras(build(), name="m")


def test_the_path_of_a_nested_layer_is_in_the_message() -> None:
    block = keras.Sequential([keras.Input((None, 4)), L.Bidirectional(L.LSTM(2, **RS), name="both")], name="encoder")

    with pytest.raises(RefusedModelError, match=r"Layer 'encoder\.both' \(Bidirectional\)"):
        export_keras(of(block), name="m")


def test_a_custom_cell_that_mixes_rows_is_refused_by_its_name() -> None:
    class Mean(MinimalCell):
        def call(self, x: Any, states: Any, training: bool = False) -> Any:
            h = states[0] - ops.mean(x, axis=0)
            return h, [h]

    with pytest.raises(RefusedModelError, match=r"'rnn\.\w+' \(Mean\) cannot be stepped: .*mixes streams"):
        export_keras(of(L.RNN(Mean(4), name="rnn")), name="m")
