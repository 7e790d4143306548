"""The two networks of DTLN, a noise suppressor, as Keras models with their authors' weights.

Source: Westhausen and Meyer, "Dual-Signal Transformation LSTM Network for Real-Time Noise Suppression", 2020.
The weights' file is of one combined network; the two halves share its layer names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import keras

L = keras.layers
FOLDER = Path(__file__).resolve().parents[4] / "shared" / "models" / "dtln"


def mask_network() -> Any:
    """Return the first half: the magnitudes of a spectrum to a mask for it, `(batch, time, 257)`."""
    magnitude = keras.Input((None, 257), name="magnitude")
    h = L.LSTM(128, return_sequences=True, name="lstm")(magnitude)
    h = L.LSTM(128, return_sequences=True, name="lstm_1")(L.Dropout(0.25)(h))
    mask = L.Activation("sigmoid", name="mask")(L.Dense(257, name="dense")(h))
    return with_weights(keras.Model(magnitude, mask))


def block_network() -> Any:
    """Return the second half: a block of samples to a cleaner one, `(batch, time, 512)`."""
    block = keras.Input((None, 512), name="block")
    encoded = L.Conv1D(256, 1, use_bias=False, name="conv1d")(block)
    h = L.LayerNormalization(epsilon=1e-7, name="layer_normalization")(encoded)
    h = L.LSTM(128, return_sequences=True, name="lstm_2")(h)
    h = L.LSTM(128, return_sequences=True, name="lstm_3")(L.Dropout(0.25)(h))
    mask = L.Activation("sigmoid")(L.Dense(256, name="dense_1")(h))
    decoder = L.Conv1D(512, 1, padding="causal", use_bias=False, name="conv1d_1")
    return with_weights(keras.Model(block, decoder(L.Multiply()([encoded, mask]))))


def with_weights(model: Any) -> Any:
    """Give each layer the weights of its name."""
    with h5py.File(FOLDER / "model.h5") as file:
        for layer in model.layers:
            if layer.weights:
                group = file[layer.name]
                layer.set_weights([group[name][()] for name in group.attrs["weight_names"]])
    return model
