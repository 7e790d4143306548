"""How do I forecast a river for the rain that is expected, and for other rain?

Each hour the model gets the rain and the flow of a river, and predicts the flow of the next hour. Before a storm, the
stream of the gauge is forked twice. One fork gets the rain of the weather forecast, the other no rain, and each gets
its own predictions as the flow: the forecast, and what the river would do without the storm. The stream itself stays at
its step. The rain and the river are simulated: two reservoirs, one quick and one slow.

With a file name, the forecasts are drawn: river_flow.py river-flow.svg
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import httpx2
import keras
import numpy as np
from live import compare, live

HOURS, NOW, AHEAD = 200, 140, 48
STREAM = "/v1/models/river/streams/gauge-7"


def build() -> keras.Model:
    """Return a model from (batch, timestep, 1) of rain and of flow to the flow of the next hour."""
    rain, flow = keras.Input((None, 1), name="rain"), keras.Input((None, 1), name="flow")
    h = keras.layers.GRU(24, return_sequences=True)(keras.layers.Concatenate()([rain, flow]))
    change = keras.layers.Dense(1)(h)
    return keras.Model([rain, flow], keras.layers.Add(name="next_flow")([flow, change]), name="river")


def simulate(rivers: int, rng: np.random.Generator, hours: int = HOURS) -> tuple[np.ndarray, np.ndarray]:
    """Return hourly rain and flow, (river, hours + 1, 1) each, of rivers with a storm after `NOW`."""
    rain = rng.gamma(0.6, 0.5, (rivers, hours + 1)) * (rng.random((rivers, hours + 1)) < 0.15)
    rain[:, NOW + 6 : NOW + 16] += rng.gamma(2, 1.5, (rivers, 10))
    flow, quick, slow = np.zeros_like(rain), np.zeros(rivers), np.full(rivers, 0.3)
    for hour in range(hours + 1):
        flow[:, hour] = quick + slow
        quick = 0.82 * quick + 0.18 * 0.6 * rain[:, hour]  # reaches the gauge in the next hour
        slow = 0.99 * slow + 0.01 * 0.4 * rain[:, hour]
    return rain[..., None].astype(np.float32), flow[..., None].astype(np.float32)


def main() -> None:
    keras.utils.set_random_seed(3)
    model = build()
    rain, flow = simulate(200, np.random.default_rng(3))
    model.compile(keras.optimizers.Adam(5e-3), "mse")
    model.fit([rain[:, :-1], flow[:, :-1]], flow[:, 1:], batch_size=10, epochs=25, verbose=0)

    rain, flow = (series[0] for series in simulate(1, np.random.default_rng(30)))
    with live(model) as http:
        history = {"rain": rain[:NOW].tolist(), "flow": flow[:NOW].tolist()}
        http.post(f"{STREAM}/steps", json={"inputs": history, "return": "none"})
        storm = forecast(http, "gauge-7-forecast", rain[NOW : NOW + AHEAD], flow[NOW])
        dry = forecast(http, "gauge-7-dry", np.zeros((AHEAD, 1), np.float32), flow[NOW])
        print(f"two forecasts of {AHEAD} hours; the stream is still at step {http.get(STREAM).json()['step']}")

    truth = flow[NOW + 1 : NOW + AHEAD + 1]
    print(f"highest flow: {storm.max():.2f} forecast, {truth.max():.2f} in truth, {dry.max():.2f} without the storm")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(drawing(rain, flow, storm, dry))

    given = np.concatenate([flow[: NOW + 1], storm[:-1]])
    compare(storm, model.predict([rain[None, : NOW + AHEAD], given[None]], verbose=0)[0, NOW:])


def forecast(http: httpx2.Client, fork: str, rain: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Return the flows of the coming hours, (AHEAD, 1), from a fork of the stream that gets this rain."""
    http.post(f"{STREAM}/fork", json={"to": fork})
    flows = []
    for amount in rain.tolist():
        path = f"/v1/models/river/streams/{fork}/step"
        answer = http.post(path, json={"inputs": {"rain": amount, "flow": flow.tolist()}}).json()
        flow = np.array(answer["outputs"]["next_flow"], np.float32)
        flows.append(flow)
    return np.stack(flows)


def drawing(rain: np.ndarray, flow: np.ndarray, storm: np.ndarray, dry: np.ndarray) -> str:
    """Return the rain, the flow and both forecasts as an SVG."""
    from stepwell.addons.charts import line_chart, stacked

    end = NOW + AHEAD + 1
    before = [float("nan")] * (NOW + 1)
    lines = {
        "flow": flow[:end, 0].tolist(),
        "forecast": [*before, *storm[:, 0]],
        "without storm": [*before, *dry[:, 0]],
    }
    charts = [line_chart("rain per hour", {"rain": rain[:end, 0].tolist()}), line_chart("flow", lines)]
    return stacked(charts)


if __name__ == "__main__":
    main()
