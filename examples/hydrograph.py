"""Between which flows will a river be in the next hour, with 90 % certainty, also when its gauge becomes noisy?

The model predicts the flow of the next hour, and `Conformal` puts an interval around each prediction, which it learns
from the flows that come: at hour 2,000 the gauge begins to measure with three times the noise, and the interval becomes
wider by itself. Beside it an interval of a fixed width, that of the first hours. The rain and the river are those of
river_flow.py.

With a file name, the hydrograph is drawn: hydrograph.py hydrograph.svg
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live
from river_flow import build, simulate

from stepwell import Part, Pipeline, stages
from stepwell.addons.charts import line_chart

HOURS, CHANGE, WINDOW, SHOWN = 6000, 2000, 500, slice(1900, 2100)
NOISE = np.where(np.arange(HOURS + 1) < CHANGE, 0.01, 0.03)
FIRST = 500  # hours from which the fixed width is taken, and which neither interval is judged by


def main() -> None:
    keras.utils.set_random_seed(3)
    rng = np.random.default_rng(3)
    model = build()
    rain, flow = simulate(200, rng)
    flow += 0.01 * rng.standard_normal(flow.shape).astype(np.float32)
    model.compile(keras.optimizers.Adam(5e-3), "mse")
    model.fit([rain[:, :-1], flow[:, :-1]], flow[:, 1:], batch_size=10, epochs=25, verbose=0)

    rain, flow = (series[0] for series in simulate(1, rng, HOURS))
    flow += (NOISE * rng.standard_normal(HOURS + 1)).astype(np.float32)[:, None]
    pipeline = [
        stages.Impute("last", of="flow", to="filled"),  # a gauge may fail to send
        Part(model, of={"rain": "inputs.rain", "flow": "filled"}),
        stages.Conformal("next_flow", truth="flow", coverage=0.9),
        stages.IntervalCoverage(truth="flow"),
    ]
    with live(Pipeline(pipeline, outputs=["next_flow", "low", "high", "coverage"]), "river") as http:
        answers = [
            http.post(
                "/v1/models/river/streams/gauge-7/steps",
                json={"inputs": {"rain": rain[at : at + WINDOW].tolist(), "flow": flow[at : at + WINDOW].tolist()}},
            ).json()["outputs"]
            for at in range(0, HOURS, WINDOW)
        ]
    found = {name: np.concatenate([answer[name] for answer in answers])[:, 0] for name in answers[0]}
    came = flow[1:, 0]
    width = np.quantile(np.abs(came - found["next_flow"])[:FIRST], 0.9)
    inside = (came >= found["low"]) & (came <= found["high"])
    fixed = np.abs(came - found["next_flow"]) <= width
    parts = {
        "before the gauge becomes noisy": slice(FIRST, CHANGE),
        f"in the {FIRST} hours after it": slice(CHANGE, CHANGE + FIRST),
        "in all hours after that": slice(CHANGE + FIRST, HOURS),
    }
    for name, part in parts.items():
        wide = (found["high"] - found["low"])[part].mean()
        print(
            f"{name}: {inside[part].mean():.1%} within the learned interval, {wide:.3f} wide; "
            f"{fixed[part].mean():.1%} within the fixed one, {2 * width:.3f} wide"
        )
    short = FIRST + np.flatnonzero(found["coverage"][FIRST:] < 0.8)
    print(f"coverage below 0.8 in {len(short)} hours, from hour {short[0]} to {short[-1]}")
    if len(sys.argv) > 1:
        lines = {"flow": came, "high": found["high"], "low": found["low"]}
        shown = {name: values[SHOWN].tolist() for name, values in lines.items()}
        Path(sys.argv[1]).write_text(line_chart("flow and interval", shown, SHOWN.start))
    compare(found["next_flow"], model.predict([rain[None, :HOURS], flow[None, :HOURS]], verbose=0)[0, :, 0])


if __name__ == "__main__":
    main()
