"""How does a model that many machines share learn that one of them has changed?

Each machine has its own readout of the shared LSTM, learned from its own truths. With a file name it draws the errors.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

from stepwell import Part, Pipeline, stages
from stepwell.addons.charts import line_chart

MACHINES, STEPS, CHANGE = 8, 1200, 500

keras.utils.set_random_seed(4)
rng = np.random.default_rng(4)
load, x = rng.uniform(0, 1, (MACHINES, STEPS)), np.zeros((MACHINES, STEPS, 2), np.float32)
gain = np.where((np.arange(MACHINES)[:, None] == 0) & (np.arange(STEPS) >= CHANGE), 2.0, 1.0)  # one machine changes
for t in range(1, STEPS):  # vibration follows the load of the timestep before
    x[:, t, 0] = 0.6 * x[:, t - 1, 0] + gain[:, t] * load[:, t - 1] ** 2 + 0.02 * rng.standard_normal(MACHINES)
x[..., 1] = load
sensors = keras.Input((None, 2), name="x")
hidden = keras.layers.LSTM(12, return_sequences=True, name="h")(sensors)
shared = keras.Model(sensors, [hidden, keras.layers.Dense(1, name="shared")(hidden)], name="fleet")
shared.compile(keras.optimizers.Adam(1e-2), loss=[None, "mse"])
shared.fit(x[:, : CHANGE - 1], [x[:, : CHANGE - 1], x[:, 1:CHANGE, :1]], epochs=250, verbose=0)

readout = stages.Readout("h", truth="x[0]", forgetting=0.98)
parts = [stages.Impute("last", of="x", to="filled"), Part(shared, of="filled", to=("h", "shared")), readout]
with live(Pipeline(parts), "fleet") as http:
    fleet = {"streams": [f"machine-{n}" for n in range(MACHINES)]}
    bodies = [{**fleet, "inputs": {"x": rows.tolist()}} for rows in x.swapaxes(0, 1)]
    answers = [http.post("/v1/models/fleet/step", json=body).json()["outputs"] for body in bodies]
found = {name: np.array([answer[name] for answer in answers])[..., 0].T for name in ("shared", "y")}
errors = {name: np.abs(values[0, :-1] - x[0, 1:, 0]) for name, values in found.items()}
for name, error in errors.items():
    print(f"{name}: off by {error[50:CHANGE].mean():.3f} before the change, {error[-500:].mean():.3f} at the end")
if len(sys.argv) > 1:
    lines = {"shared model": errors["shared"].tolist(), "own readout": errors["y"].tolist()}
    Path(sys.argv[1]).write_text(line_chart("error of the machine that changes", lines))
compare(found["y"], readout.reference(shared.predict(x, verbose=0)[0], x)[..., 0])
