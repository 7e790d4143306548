"""Zoo: recurrent layers and cells, with every option that changes what a step computes."""

from __future__ import annotations

from typing import Any

import keras

from tests.model_export.keras.zoo_parts import (
    RS,
    Doubled,
    L,
    LeakyPair,
    MinimalCell,
    Plain,
    ZooModel,
    cells,
    of,
    sequence,
)


def maps(*layers: Any, shape: tuple[int, ...] = (6, 6, 2)) -> Any:
    """Return a model over `(batch, any time, rows, columns, channels)`."""
    return keras.Sequential([keras.Input((None, *shape), name="x"), *layers])


def initial_state() -> Any:
    x, who = keras.Input((None, 3), name="x"), keras.Input((5,), name="who")
    start = [L.Dense(4)(who), L.Dense(4, "tanh")(who)]
    return keras.Model([x, who], L.LSTM(4, **RS)(x, initial_state=start))


def initial_states_of_cells() -> Any:
    x, who = keras.Input((None, 3), name="x"), keras.Input((5,), name="who")
    h = L.Dense(4)(who)
    both = L.RNN(L.StackedRNNCells([L.GRUCell(4), L.LSTMCell(4)]), **RS)(x, initial_state=[h, [h, h]])
    return keras.Model([x, who], L.SimpleRNN(4, **RS)(both, initial_state=h))


ZOO: dict[str, ZooModel] = {
    "lstm_softmax": ZooModel(
        lambda: sequence(L.LSTM(8, **RS), L.Dense(3, "softmax")),
        "LSTM of sequences, Dense softmax",
        "two states, h and c",
    ),
    "lstm_last": ZooModel(
        lambda: sequence(L.LSTM(8), L.Dense(1, "sigmoid")),
        "LSTM with return_sequences=False, Dense sigmoid",
        "the answer for the timesteps so far, at every step",
    ),
    "gru_600": ZooModel(
        lambda: sequence(L.GRU(600, **RS), L.Dense(2), features=10),
        "GRU of 600 units, Dense",
        "one state",
    ),
    "gru_reset_before_no_bias": ZooModel(
        lambda: sequence(L.GRU(7, use_bias=False, reset_after=False, **RS)),
        "GRU without bias, reset_after=False",
        "one state",
    ),
    "simple_relu": ZooModel(
        lambda: sequence(L.SimpleRNN(6, activation="relu", **RS), L.TimeDistributed(L.Dense(2))),
        "SimpleRNN with relu, TimeDistributed(Dense)",
        "one state",
    ),
    "stacked": ZooModel(
        lambda: sequence(L.LSTM(6, **RS), L.GRU(5, **RS), L.SimpleRNN(4, use_bias=False, **RS)),
        "LSTM, GRU and SimpleRNN on top of each other",
        "each layer has its own states",
    ),
    "stateful_one_step": ZooModel(
        lambda: keras.Sequential([keras.Input(batch_shape=(1, 1, 4), name="x"), L.GRU(5, stateful=True), L.Dense(2)]),
        "stateful=True, batch 1, one timestep a call",
        "from zeros for each stream, any batch",
    ),
    "cells": ZooModel(
        lambda: sequence(L.RNN(cells(), **RS)),
        "RNN of StackedRNNCells",
        "the states of every cell",
    ),
    "return_state": ZooModel(
        lambda: of(L.LSTM(4, return_state=True, name="rnn", **RS)),
        "LSTM, return_state=True",
        "its states are outputs as well",
    ),
    "custom_cell": ZooModel(
        lambda: sequence(L.Masking(), L.RNN(MinimalCell(4), **RS)),
        "RNN of a custom cell, masked",
        "its `call` is traced; its states are kept where masked",
    ),
    "subclasses": ZooModel(
        lambda: sequence(Plain(4, **RS), Doubled(3)),
        "subclasses of LSTM and Dense",
        "the parent's rule, or traced where `call` differs",
    ),
    "cell_that_starts_elsewhere": ZooModel(
        lambda: sequence(L.RNN(LeakyPair(4), **RS)),
        "RNN of a custom cell with two states and its own get_initial_state",
        "traced; its initial row is in the manifest",
    ),
    "odd_activations": ZooModel(
        lambda: sequence(L.LSTM(4, activation="gelu", **RS), L.GRU(3, recurrent_activation="sparse_sigmoid", **RS)),
        "LSTM with gelu, GRU with sparse_sigmoid gates",
        "any activation of Keras, in the cell",
    ),
    "conv_lstm_2d": ZooModel(
        lambda: maps(L.ConvLSTM2D(3, 3, padding="same", **RS), L.ConvLSTM2D(2, (2, 3), dilation_rate=2)),
        "ConvLSTM2D, padding same then dilated, the last with return_sequences=False",
        "convolutional cells, two state maps each",
    ),
    "initial_states_of_cells": ZooModel(
        initial_states_of_cells,
        "StackedRNNCells and SimpleRNN with computed initial states",
        "chosen at the first timestep",
    ),
    "recurrent_over_bands": ZooModel(
        lambda: maps(
            L.TimeDistributed(L.Bidirectional(L.GRU(3, **RS))),
            L.TimeDistributed(L.LSTM(4, go_backwards=True)),
            L.LSTM(3, **RS),
            shape=(5, 2),
        ),
        "TimeDistributed(Bidirectional(GRU)) over an axis inside one timestep",
        "both directions are run in full at every timestep",
    ),
}
