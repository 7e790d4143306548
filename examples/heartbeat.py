"""How do I notice an unusual heartbeat while it is measured?

A model learns to predict the next value of electrocardiograms with regular beats. Served, each patient is a stream and
each value a timestep. Where the heart does something else, here a beat that comes early and is wide, the prediction is
wrong, and the size of the error is the alarm. The electrocardiograms are simulated: a sum of waves for each beat.

With a file name, one of them is drawn: heartbeat.py heartbeat.svg
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

RATE, SECONDS, PATIENTS = 50, 12, 3
LENGTH = RATE * SECONDS
WAVES = ((-0.2, 0.12, 0.03), (-0.03, -0.15, 0.012), (0.0, 1.0, 0.014), (0.03, -0.25, 0.012), (0.25, 0.3, 0.05))
"""Of a beat, P, Q, R, S and T: its time in seconds, its height, its width in seconds."""
EARLY = ((0.0, 1.1, 0.05), (0.2, -0.5, 0.08))
"""Of an early and wide beat."""


def build() -> keras.Model:
    """Return a model from values (batch, timestep, 1) to the next value."""
    x = keras.Input((None, 1), name="voltage")
    h = keras.layers.GRU(32, return_sequences=True)(x)
    return keras.Model(x, keras.layers.Dense(1, name="next_voltage")(h), name="heart")


def record(patients: int, rng: np.random.Generator, *, unusual: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return voltages (patient, LENGTH + 1, 1), and the second of each patient's early beat, (patient,)."""
    seconds = np.arange(LENGTH + 1) / RATE
    voltage = 0.02 * rng.standard_normal((patients, LENGTH + 1))
    at = np.zeros(patients)
    for patient in range(patients):
        beats = np.cumsum(rng.normal(0.8, 0.02, 2 * SECONDS)) - 0.5
        early = SECONDS // 2 if unusual else -1
        for n, beat in enumerate(beats):
            shift = -0.3 if n == early else 0.0
            for time, height, width in EARLY if n == early else WAVES:
                voltage[patient] += height * np.exp(-(((seconds - beat - shift - time) / width) ** 2) / 2)
        at[patient] = beats[early] - 0.3
    return voltage[..., None].astype(np.float32), at


def main() -> None:
    keras.utils.set_random_seed(4)
    model = build()
    voltage, _ = record(120, np.random.default_rng(4), unusual=False)
    model.compile(keras.optimizers.Adam(5e-3), "mse")
    model.fit(voltage[:, :-1], voltage[:, 1:], batch_size=12, epochs=10, verbose=0)

    voltage, at = record(PATIENTS, np.random.default_rng(40), unusual=True)
    streams = [f"patient-{n}" for n in range(PATIENTS)]
    predicted = np.zeros((PATIENTS, LENGTH, 1), np.float32)
    with live(model) as http:
        for timestep in range(LENGTH):
            body = {"streams": streams, "inputs": {"voltage": voltage[:, timestep].tolist()}}
            answer = http.post("/v1/models/heart/step", json=body).json()
            predicted[:, timestep] = answer["outputs"]["next_voltage"]

    error = alarm(voltage, predicted)
    for name, values, second in zip(streams, error, at, strict=True):
        loudest = values.argmax() / RATE
        print(
            f"{name}: alarm at {loudest:.1f} s, {values.max() / np.median(values):.0f} times the usual error; ", end=""
        )
        print(f"early beat at {second:.1f} s")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(drawing(voltage[0, 1:, 0], error[0]))
    compare(predicted, model.predict(voltage[:, :-1], verbose=0))


def alarm(voltage: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Return the error of the predictions, as the mean of a fifth of a second, (patient, LENGTH); the start is 0."""
    error = np.abs(voltage[:, 1:, 0] - predicted[..., 0])
    error[:, : 2 * RATE] = 0  # the first two seconds: the model has seen too little
    size = RATE // 5
    return np.stack([np.convolve(row, np.full(size, 1 / size))[: error.shape[1]] for row in error])


def drawing(voltage: np.ndarray, error: np.ndarray) -> str:
    """Return an electrocardiogram and the error of its predictions as an SVG."""
    from stepwell.addons.charts import line_chart, stacked

    charts = [line_chart("voltage", {"voltage": voltage.tolist()}), line_chart("error", {"error": error.tolist()})]
    return stacked(charts)


if __name__ == "__main__":
    main()
