"""Does it still agree with Keras when the state is large, and what does it cost? A GRU(600), one timestep a request.

Rounding differences could grow over time in 600 units that feed each other. They do not, and storing the state adds
none: the state that Redis returns is bit for bit the one that was stored, 2,400 bytes per stream.
"""

from __future__ import annotations

import os
from time import perf_counter

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

TIMESTEPS, FEATURES = 60, 8


def build() -> keras.Model:
    """Return a model from (batch, timestep, feature) to one number after each timestep."""
    x = keras.Input((None, FEATURES), name="x")
    h = keras.layers.GRU(600, return_sequences=True)(x)
    y = keras.layers.Dense(1, name="y")(h)
    return keras.Model(x, y, name="large")


def main() -> None:
    keras.utils.set_random_seed(5)
    model = build()
    data = np.random.default_rng(5).standard_normal((TIMESTEPS, FEATURES)).astype(np.float32)

    with live(model) as http:
        served, milliseconds = [], []
        for timestep in data.tolist():
            sent = perf_counter()
            answer = http.post("/v1/models/large/streams/one/step", json={"inputs": timestep}).json()
            milliseconds.append((perf_counter() - sent) * 1000)
            served.append(answer["outputs"]["y"])
        state = http.get("/v1/models/large").json()["bytes_per_stream"]
    print(f"{model.count_params():,} weights, {state:,} bytes of state in the stream's record")
    print(f"{TIMESTEPS} timesteps, one a request: median {np.median(milliseconds):.1f} ms")
    compare(served, model.predict(data[None], verbose=0)[0])


if __name__ == "__main__":
    main()
