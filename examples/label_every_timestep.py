"""How do I get a label for every timestep, `return_sequences=True` and TimeDistributed(Dense), as the data comes in?

A tank is filled by an unknown amount per timestep, and the model learns to detect when it is more than a quarter full.
It never gets the sum, so its state has to carry it. Served, each request has one amount and gets its label at once;
TimeDistributed(Dense) is a plain Dense for one timestep.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

TIMESTEPS = 10
LABELS = ["less", "more"]


def build() -> keras.Model:
    """Return a model from amounts (batch, timestep, 1) to the probabilities of two labels after each timestep."""
    x = keras.Input((None, 1), name="amount")
    h = keras.layers.LSTM(24, return_sequences=True)(x)
    y = keras.layers.TimeDistributed(keras.layers.Dense(len(LABELS), activation="softmax"), name="level")(h)
    return keras.Model(x, y, name="tank")


def fill(tanks: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return amounts (tank, timestep, 1) from 0 to 1, and the label after each timestep (tank, timestep)."""
    amounts = rng.random((tanks, TIMESTEPS, 1)).astype(np.float32)
    return amounts, (amounts.cumsum(axis=1)[..., 0] > TIMESTEPS / 4).astype(np.int32)


def main() -> None:
    keras.utils.set_random_seed(6)
    model = build()
    amounts, labels = fill(2000, np.random.default_rng(6))
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(amounts, labels, batch_size=50, epochs=15, verbose=0)

    amounts, labels = fill(3, np.random.default_rng(60))
    served = np.zeros((*labels.shape, len(LABELS)), np.float32)
    with live(model) as http:
        for tank, row in enumerate(amounts.tolist()):
            for timestep, amount in enumerate(row):
                path = f"/v1/models/tank/streams/tank-{tank}/step"
                answer = http.post(path, json={"inputs": {"amount": amount}, "seq": timestep + 1}).json()
                served[tank, timestep] = answer["outputs"]["level"]
            print(f"tank {tank}, predicted: {' '.join(LABELS[label] for label in served[tank].argmax(axis=-1))}")
            print(f"        in truth:  {' '.join(LABELS[label] for label in labels[tank])}")
    compare(served, model.predict(amounts, verbose=0))


if __name__ == "__main__":
    main()
