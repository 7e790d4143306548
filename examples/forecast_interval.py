"""How do I get a forecast, and how far off it may be?

A model predicts the next value of a series and its spread. One request rolls the stream out two days ahead, 200 times:
each next input is sampled around the previous prediction (`"std"` names the output with the spread). The quantiles of
the samples are the forecast and its interval, and the stream stays at its step. Afterwards Keras gets the inputs of one
sample as a whole sequence and must predict the same.

With a file name, the forecast is plotted: forecast_interval.py forecast.svg
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

DAY, PAST, AHEAD, SAMPLES = 24, 72, 48, 200
RULE = {"value": {"output": "mean", "std": "spread"}}


def build() -> tuple[keras.Model, keras.Model]:
    """Return a model from (batch, timestep, 1) to the next value and its spread, and a model to train it with."""
    x = keras.Input((None, 1), name="value")
    h = keras.layers.LSTM(48, return_sequences=True)(x)
    mean = keras.layers.Dense(1, name="mean")(h)
    spread = keras.layers.Dense(1, activation="softplus", name="spread")(h)
    return keras.Model(x, [mean, spread], name="load"), keras.Model(x, keras.layers.Concatenate()([mean, spread]))


def surprise(true: keras.KerasTensor, predicted: keras.KerasTensor) -> keras.KerasTensor:
    """Return the negative log-likelihood of the true values, normal with the predicted mean and spread."""
    mean, spread = predicted[..., :1], predicted[..., 1:] + 1e-3
    return keras.ops.log(spread) + keras.ops.square((true - mean) / spread) / 2


def loads(count: int, rng: np.random.Generator) -> np.ndarray:
    """Return hourly loads with a daily rhythm and autocorrelated noise, shape (count, PAST + AHEAD + 1, 1)."""
    hours = np.arange(PAST + AHEAD + 1) + rng.integers(0, DAY, (count, 1))
    noise = np.zeros(hours.shape)
    for t in range(1, hours.shape[1]):
        noise[:, t] = 0.8 * noise[:, t - 1] + rng.normal(0, 0.12, count)
    return (np.sin(2 * np.pi * hours / DAY) + noise)[..., None].astype(np.float32)


def main() -> None:
    keras.utils.set_random_seed(5)
    model, trained = build()
    series = loads(400, np.random.default_rng(5))
    rate = keras.optimizers.schedules.CosineDecay(1e-2, decay_steps=15 * len(series) // 16)
    trained.compile(keras.optimizers.Adam(rate), surprise)
    trained.fit(series[:, :-1], series[:, 1:], batch_size=16, epochs=15, verbose=0)

    load = loads(1, np.random.default_rng(50))[0]
    past, now, future = load[:PAST], load[PAST], load[PAST + 1 :, 0]
    with live(model, feedback=RULE) as http:
        stream = "/v1/models/load/streams/house-7"
        http.post(f"{stream}/steps", json={"inputs": {"value": past.tolist()}, "return": "none"})
        body = {"horizon": AHEAD, "inputs": {"value": now.tolist()}, "samples": SAMPLES, "seed": 5}
        answer = http.post(f"{stream}/rollout", json=body).json()
        print(f"{SAMPLES} futures of {AHEAD} hours; the stream is still at step {http.get(stream).json()['step']}")

    samples = np.array(answer["next"]["value"])[..., 0]  # sampled around each prediction
    low, middle, high = np.quantile(samples, [0.1, 0.5, 0.9], axis=0)
    inside = ((low <= future) & (future <= high)).mean()
    print(f"forecast: off by {np.abs(middle - future).mean():.2f} on average")
    print(f"interval: {inside:.0%} of the true values lie in the middle 80 %, which is {(high - low).mean():.2f} wide")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(drawing(load[:, 0], low, middle, high))

    one = SAMPLES - 1
    whole = np.concatenate([past, now[None], np.array(answer["next"]["value"][one][:-1], np.float32)])
    predicted = np.stack(model.predict(whole[None], verbose=0))[:, 0, PAST:]
    compare([answer["outputs"][name][one] for name in ("mean", "spread")], predicted)


def drawing(load: np.ndarray, low: np.ndarray, middle: np.ndarray, high: np.ndarray) -> str:
    """Return the true loads, the forecast and its interval as an SVG."""

    def path(values: np.ndarray, begin: int) -> str:
        return " ".join(f"{5 * (begin + t):g},{90 - 40 * value:.1f}" for t, value in enumerate(values))

    band = f"{path(high, PAST + 1)} {' '.join(reversed(path(low, PAST + 1).split()))}"
    shapes = [
        f'<polygon points="{band}" fill="#9cc4e4"/>',
        f'<polyline points="{path(load, 0)}" fill="none" stroke="#444" stroke-width="1.5"/>',
        f'<polyline points="{path(middle, PAST + 1)}" fill="none" stroke="#1b6ca8" stroke-width="2"/>',
        f'<line x1="{5 * PAST}" x2="{5 * PAST}" y1="5" y2="175" stroke="#999" stroke-dasharray="4"/>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {5 * len(load)} 180" role="img">'
    title = "<title>True loads, and from the dashed line on the forecast with its 80 % interval</title>"
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, title, background, *shapes, "</svg>\n"])


if __name__ == "__main__":
    main()
