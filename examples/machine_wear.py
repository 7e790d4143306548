"""How do I follow the wear of a fleet of machines, which cannot be measured while they run?

Each minute every machine sends its load, its vibration and its temperature. The vibration of one minute shows little:
it also depends on the load, and is noisy. The model was trained on machines whose wear was measured, and carries what
it has seen in its state. One request has the timestep of the whole fleet. The machines are simulated: wear grows with
the load, each machine at its own pace.

With a file name, the wear of three machines is drawn: machine_wear.py machine-wear.svg
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

MINUTES, MACHINES = 240, 12
LIMIT = 0.7
"""The wear at which a machine is to be serviced; 1 is broken."""


def build() -> keras.Model:
    """Return a model from load, vibration and temperature (batch, timestep, 3) to the wear so far."""
    x = keras.Input((None, 3), name="sensors")
    h = keras.layers.LSTM(24, return_sequences=True)(x)
    return keras.Model(x, keras.layers.Dense(1, name="wear")(h), name="machine")


def run_machines(machines: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return sensors (machine, MINUTES, 3) and the true wear (machine, MINUTES, 1)."""
    load = np.clip(0.5 + 0.3 * np.sin(np.arange(MINUTES) / 20 + rng.uniform(0, 6, (machines, 1))), 0, 1)
    load = np.clip(load + 0.1 * rng.standard_normal(load.shape), 0, 1)
    pace = rng.uniform(0.3, 1.5, (machines, 1))
    wear = np.cumsum(pace * load**2, axis=1) / (0.35 * MINUTES)
    vibration = (0.3 + wear) * (0.5 + load) + 0.2 * rng.standard_normal(load.shape)
    temperature = 0.4 + 0.3 * load + 0.2 * wear + 0.05 * rng.standard_normal(load.shape)
    return np.stack([load, vibration, temperature], axis=2).astype(np.float32), wear[..., None].astype(np.float32)


def main() -> None:
    keras.utils.set_random_seed(5)
    model = build()
    sensors, wear = run_machines(300, np.random.default_rng(5))
    model.compile(keras.optimizers.Adam(5e-3), "mse")
    model.fit(sensors, wear, batch_size=25, epochs=12, verbose=0)

    sensors, wear = run_machines(MACHINES, np.random.default_rng(50))
    streams = [f"machine-{n}" for n in range(MACHINES)]
    predicted = np.zeros_like(wear)
    with live(model) as http:
        for minute in range(MINUTES):
            body = {"streams": streams, "inputs": {"sensors": sensors[:, minute].tolist()}}
            predicted[:, minute] = http.post("/v1/models/machine/step", json=body).json()["outputs"]["wear"]

    late = []
    for name, guess, true in zip(streams, predicted[..., 0], wear[..., 0], strict=True):
        if (true >= LIMIT).any():
            alarm, limit = (int(np.argmax(values >= LIMIT)) for values in (guess, true))
            late.append(alarm - limit)
            print(f"{name}: service at minute {alarm}; wear was {LIMIT} at minute {limit}")
    print(f"off by {np.abs(predicted - wear).mean():.3f} on average; {len(late)} of {MACHINES} machines need service")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(drawing(sensors, predicted, wear))
    compare(predicted, model.predict(sensors, verbose=0))


def drawing(sensors: np.ndarray, predicted: np.ndarray, wear: np.ndarray) -> str:
    """Return the vibration of one machine, and the wear of three as predicted and as it is, as an SVG."""
    from stepwell.addons.charts import line_chart, stacked

    three = np.argsort(wear[:, -1, 0])[[0, MACHINES // 2, -1]].tolist()
    names = ("little used", "usual", "worn most")
    lines = {name: predicted[n, :, 0].tolist() for name, n in zip(names, three, strict=True)}
    truth = {f"{name}, true"[:14]: wear[n, :, 0].tolist() for name, n in zip(names, three, strict=True)}
    vibration = {"vibration": sensors[three[-1], :, 1].tolist()}
    charts = [line_chart("vibration of the machine worn most", vibration), line_chart("wear, predicted", lines)]
    return stacked([*charts, line_chart("wear, measured", truth)])


if __name__ == "__main__":
    main()
