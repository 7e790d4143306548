"""The model that every server runs, its inputs and its expected predictions.

LSTM(64) and Dense(1) over 8 features. Stream s of class k = s mod CLASSES gets at step t the row
(31 k + 17 t) mod ROWS, so 256 sequences give the expected predictions of any number of streams.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stepwell_export.runtime.manifest import Array
from stepwell_export.runtime.step_model import StepModel

FEATURES = 8
CLASSES = 256
ROWS = 1024


@dataclass(frozen=True, slots=True)
class Workload:
    """Files for the load generator and the servers.

    Attributes:
        folder: Their folder.
        steps: Timesteps with known predictions.
        in_process: Steps per second of onnxruntime alone in this process, in batches of 256.
    """

    folder: Path
    steps: int
    in_process: float

    @property
    def models(self) -> Path:
        """A model folder with `bench.onnx`."""
        return self.folder / "models"

    @property
    def model(self) -> Path:
        """The exported step graph, which also runs chunks."""
        return self.models / "bench.onnx"

    @property
    def step_graph(self) -> Path:
        """The step graph for exactly one timestep, as a self-written server would use it."""
        return self.folder / "step.onnx"

    @property
    def keras_model(self) -> Path:
        """The trained Keras model."""
        return self.folder / "bench.keras"

    @property
    def rows(self) -> Path:
        """One row of inputs per line, in JSON."""
        return self.folder / "rows.txt"

    @property
    def row_values(self) -> Path:
        """The same rows as float32, `(ROWS, FEATURES)`."""
        return self.folder / "rows.f32"

    @property
    def expected(self) -> Path:
        """Expected predictions as float32, `(CLASSES, steps)`."""
        return self.folder / "expected.f32"


def make(folder: Path, *, steps: int) -> Workload:
    """Train and export the model, and compute its predictions for `steps` timesteps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    workload = Workload(folder, steps, 0.0)
    if not workload.step_graph.exists():
        _train(workload)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, FEATURES)).astype(np.float32).round(4)
    workload.rows.write_text("".join(json.dumps([float(f"{x:.4f}") for x in row]) + "\n" for row in rows))
    rows = np.array([json.loads(line) for line in workload.rows.read_text().splitlines()], np.float32)
    workload.row_values.write_bytes(rows.tobytes())
    expected, rate = _predict(StepModel(workload.model), rows, steps)
    workload.expected.write_bytes(expected.tobytes())
    return Workload(folder, steps, rate)


def _train(workload: Workload) -> None:
    os.environ.setdefault("KERAS_BACKEND", "jax")  # the extra installs JAX
    import keras

    from stepwell_export.converted import verify_model
    from stepwell_export.keras import convert

    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((None, FEATURES), name="x"), keras.layers.LSTM(64, name="lstm"), keras.layers.Dense(1, name="y")]
    )
    model.save(workload.keras_model)
    made = convert(model, name="bench")
    workload.model.write_bytes(verify_model(made)[0])
    workload.step_graph.write_bytes(made.proto.SerializeToString())


def _predict(model: StepModel, rows: Array, steps: int) -> tuple[Array, float]:
    """Return the predictions, `(CLASSES, steps)`, and the steps per second of computing them."""
    x, y = model.manifest.inputs[0].name, model.manifest.answered[0].name
    states = model.initial_states(CLASSES)
    classes = np.arange(CLASSES)
    expected = np.empty((CLASSES, steps), np.float32)
    started_at = time.process_time()
    for t in range(steps):
        outputs, states = model.step({x: rows[(31 * classes + 17 * t) % ROWS]}, states)
        expected[:, t] = outputs[y][:, 0]
    return expected, CLASSES * steps / (time.process_time() - started_at)
