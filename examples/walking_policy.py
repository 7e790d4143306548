"""Drives a robot's walking policy by a log of its simulator: `python examples/walking_policy.py LOG.csv [PICTURE.svg]`.

The service has the policy of `stepwell export motion.pt --example obs=1x47 -o models/walk.onnx`. A row of the log is a
timestep: the 47 numbers that the policy observed, and the 12 actions that it answered in the simulator.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from stepwell import Client

ACTIONS, SCALE = 12, 0.25
JOINTS = {"left hip": 0, "left knee": 3, "right hip": 6, "right knee": 9}


def main(log: str, picture: str = "", url: str = "http://127.0.0.1:8000", **more: Any) -> np.ndarray:
    rows = np.loadtxt(log, np.float32, delimiter=",")
    observed, logged = rows[:, :-ACTIONS], rows[:, -ACTIONS:]
    with Client(url, **more) as client:
        stream = client.model("walk").stream(Path(log).stem)
        actions = np.concatenate([stream.steps(observed[at : at + 50]).output for at in range(0, len(rows), 50)])
    most = np.abs(actions - logged).max()
    print(f"{len(rows)} timesteps, largest difference from the simulator's actions: {most:.1e}")
    if picture:
        from stepwell.addons.charts import line_chart, stacked

        targets = {name: (SCALE * actions[:, at]).tolist() for name, at in JOINTS.items()}
        wanted = (observed[:, 6] / 2).tolist()
        charts = [line_chart("wanted speed, m/s", {"forward": wanted}), line_chart("targets of joints, rad", targets)]
        Path(picture).write_text(stacked(charts))
    return actions


if __name__ == "__main__":
    main(*sys.argv[1:])
