"""How do I give a new stream the past samples that I already have, and then predict on from there?

With one request: the past as a chunk with `"return": "none"`. It builds the state of the stream and returns no
predictions. Single timesteps then continue where the history ended; here each prediction is the next input, a forecast.
The same forecast from a stream that was not primed shows the value of the history.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import httpx2
import keras
import numpy as np
from live import compare, live

PAST, AHEAD = 60, 20
EPOCHS, BATCH = 20, 16


def build() -> keras.Model:
    """Return a model from (batch, timestep, 1) to the next value after each timestep."""
    x = keras.Input((None, 1), name="value")
    h = keras.layers.LSTM(32, return_sequences=True)(x)
    y = keras.layers.Dense(1, name="next")(h)
    return keras.Model(x, y, name="wave")


def waves(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return sine waves of periods from 16 to 24 timesteps, shape (count, PAST + AHEAD + 1, 1)."""
    period, phase = rng.uniform(16, 24, (count, 1)), rng.uniform(0, 2 * np.pi, (count, 1))
    wave = np.sin(2 * np.pi * np.arange(PAST + AHEAD + 1) / period + phase)
    return wave[..., None].astype(np.float32)


def forecast(http: httpx2.Client, stream: str, value: list[float]) -> list[list[float]]:
    """Return AHEAD predictions of a stream, starting from its next value; each prediction is the next input."""
    predictions = []
    for _ in range(AHEAD):
        answer = http.post(f"/v1/models/wave/streams/{stream}/step", json={"inputs": {"value": value}}).json()
        value = answer["outputs"]["next"]
        predictions.append(value)
    return predictions


def main() -> None:
    keras.utils.set_random_seed(7)
    model = build()
    series = waves(256, np.random.default_rng(7))
    rate = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=EPOCHS * len(series) // BATCH)
    model.compile(keras.optimizers.Adam(rate), "mse")
    model.fit(series[:, :-1], series[:, 1:], batch_size=BATCH, epochs=EPOCHS, verbose=0)

    wave = waves(1, np.random.default_rng(70))[0]
    past, now, future = wave[:PAST], wave[PAST].tolist(), wave[PAST + 1 :]
    with live(model) as http:
        body = {"inputs": {"value": past.tolist()}, "return": "none"}
        answer = http.post("/v1/models/wave/streams/primed/steps", json=body).json()
        print(f"primed: step {answer['step']}, outputs {answer['outputs']}")
        primed = forecast(http, "primed", now)
        unprimed = forecast(http, "unprimed", now)
    for name, predictions in (("with", primed), ("without", unprimed)):
        error = np.abs(np.array(predictions) - future).mean()
        print(f"forecast of {AHEAD} timesteps {name} the past: off by {error:.2f} on average")

    whole = np.concatenate([wave[: PAST + 1], np.array(primed[:-1], np.float32)])
    compare(primed, model.predict(whole[None], verbose=0)[0, PAST:])


if __name__ == "__main__":
    main()
