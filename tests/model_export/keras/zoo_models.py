"""Zoo: how models are put together, their inputs and their outputs."""

from __future__ import annotations

from typing import Any

import keras

from tests.model_export.keras.zoo_parts import RS, L, ZooModel, of, sequence


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


ZOO: dict[str, ZooModel] = {
    "two_inputs_two_outputs": ZooModel(
        two_inputs_two_outputs,
        "two inputs, two outputs, one per timestep and one per sequence",
        "both sent with each timestep",
    ),
    "dict_of_outputs": ZooModel(
        dict_of_outputs,
        "outputs in a dict",
        "named by their keys",
    ),
    "static_input": ZooModel(
        static_input,
        "an input without time axis beside a sequence",
        "sent with each timestep",
    ),
    "shared_layer": ZooModel(
        shared_layer,
        "one LSTM called on two inputs",
        "each call has its own states",
    ),
    "nested": ZooModel(
        nested,
        "Sequential models inside a functional one",
        "layers are named by their path",
    ),
    "network_of_each_timestep": ZooModel(
        lambda: sequence(
            L.TimeDistributed(keras.Sequential([keras.Input((4,)), L.Dense(3, "relu"), L.Dense(2)])), L.GRU(3, **RS)
        ),
        "TimeDistributed of a whole network",
        "run on each timestep",
    ),
    "tokens": ZooModel(
        lambda: keras.Sequential([keras.Input((None,), name="ids"), L.Embedding(9, 4), L.LSTM(5, **RS)]),
        "Embedding of ids, LSTM",
        "an id is an int32",
    ),
    "numbers": ZooModel(
        lambda: keras.Sequential([keras.Input((None,), name="x"), L.Reshape((-1, 1)), L.LSTM(3, **RS)]),
        "a sequence of plain numbers, Reshape((-1, 1)), LSTM",
        "a timestep is one number",
    ),
    "fixed_numbers": ZooModel(
        lambda: keras.Sequential([keras.Input((9,), name="x"), L.Reshape((9, 1)), L.LSTM(3, **RS)]),
        "a fixed number of plain numbers, LSTM",
        "a timestep is one number",
    ),
    "fixed_reshape": ZooModel(
        lambda: keras.Sequential(
            [keras.Input((12, 6), name="x"), L.Reshape((12, 2, 3)), L.TimeDistributed(L.Flatten()), L.GRU(4)]
        ),
        "Reshape of a fixed length, TimeDistributed(Flatten), GRU",
        "verified over that length",
    ),
}
