"""Zoo: masked timesteps, from every source and through everything that hands a mask on."""

from __future__ import annotations

from typing import Any

import keras

from tests.model_export.keras.zoo_parts import RS, L, MinimalCell, SkipZeros, ZooModel, of, ops, sequence


def masked_branches() -> Any:
    ids = keras.Input((None,), name="ids")
    a = L.LSTM(4, return_sequences=True)(L.Embedding(6, 3, mask_zero=True)(ids))
    b = L.GRU(4, return_sequences=True)(L.Embedding(6, 3, mask_zero=True)(ids))
    return keras.Model(ids, L.LSTM(3)(L.Concatenate()([a, L.Add()([a, b])])))


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


def masked_network() -> Any:
    x = keras.Input((None, 4), name="x")
    h = L.TimeDistributed(keras.Sequential([keras.Input((4,)), L.Dense(3, "relu")]))(L.Masking()(x))
    return keras.Model(x, L.LSTM(3, **RS)(L.Activation("tanh")(L.Dropout(0.1)(h))))


ZOO: dict[str, ZooModel] = {
    "tokens_masked": ZooModel(
        lambda: keras.Sequential(
            [keras.Input((None,), name="ids"), L.Embedding(9, 4, mask_zero=True), L.LSTM(5, **RS), L.GRU(4)]
        ),
        "Embedding with mask_zero=True, LSTM, GRU",
        "masked: states kept, answer repeated",
    ),
    "masked_branches": ZooModel(
        masked_branches,
        "masks through Add and Concatenate",
        "a timestep counts where any input counts",
    ),
    "masked_half": ZooModel(
        masked_half,
        "one branch masked, one not",
        "the sum and the concatenation are not masked",
    ),
    "explicit_mask": ZooModel(
        explicit_mask,
        "a mask as an input: LSTM(x, mask=flag)",
        "the flag is sent with each timestep",
    ),
    "lost_mask": ZooModel(
        lambda: of(lost_mask),
        "layers that drop the mask",
        "as in Keras: layers behind them are not masked",
    ),
    "masked_by_a_custom_layer": ZooModel(
        lambda: sequence(SkipZeros(), L.GRU(3, **RS)),
        "a custom layer with its own compute_mask",
        "`compute_mask` is traced",
    ),
    "masked_average": ZooModel(
        lambda: keras.Sequential(
            [
                keras.Input((None,), name="ids"),
                L.Embedding(7, 3, mask_zero=True),
                L.GlobalAveragePooling1D(),
                L.Dense(2),
            ]
        ),
        "Embedding with mask_zero=True, GlobalAveragePooling1D",
        "the mean of the timesteps that count so far",
    ),
    "masked_network": ZooModel(
        masked_network,
        "masks through TimeDistributed, Dropout, Activation",
        "masked: states kept, answer repeated",
    ),
    "masked_unrolled": ZooModel(
        lambda: keras.Sequential(
            [
                keras.Input((4, 3), name="x"),
                L.Masking(),
                L.RNN(MinimalCell(3), unroll=True, **RS),
                L.GRU(2, unroll=True),
            ]
        ),
        "Masking, unrolled custom cell and GRU",
        "the previous answer is a state of its own",
    ),
}
