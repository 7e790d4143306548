"""How do I replace the model under live streams by one that I have trained further?

The demo's model recognizes the activities of 200 smartwatches. Then it is trained further, and the new version is tried
in the shadow on half of the streams, answers this half, then all streams, and is promoted. No stream starts again: the
new version continues with the state that the old one has computed. With a file name, both versions are compared on the
recordings first, by `stepwell backtest`, and plotted: release.py backtest.svg
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import httpx2
import keras
import numpy as np
from activity.train import build, vary
from live import compare, serving

import stepwell

STREAMS = [f"watch-{n}" for n in range(200)]
SHADOW, HALF, ALL, PROMOTED = 20, 40, 60, 80  # timesteps at which the release is changed
RELEASE = "/v1/models/activity/release"


def main() -> None:
    keras.utils.set_random_seed(7)
    data = np.load(Path(__file__).parent / "activity" / "basic_motions.npz")
    old = build(data["x_train"].shape[2], len(data["classes"]))
    old.get_layer("scale").adapt(data["x_train"])
    train(old, data, epochs=3)
    new = build(data["x_train"].shape[2], len(data["classes"]))
    new.get_layer("scale").adapt(data["x_train"])
    new.set_weights(old.get_weights())
    train(new, data, epochs=3)

    recordings, _ = vary(data["x_test"], data["y_test"], times=5, rng=np.random.default_rng(1))
    with tempfile.TemporaryDirectory(prefix="stepwell-") as folder:
        export(old, Path(folder), version=1)
        with serving(Path(folder)) as http:
            served, versions = [step_all(http, recordings, 0, SHADOW)], np.ones(len(STREAMS), int)
            http.put(RELEASE, json={"current": 1})  # a version that is added would be current at once
            export(new, Path(folder), version=2)
            if sys.argv[1:]:
                backtest(Path(folder), recordings, sys.argv[1])
            http.post("/v1/models/reload")
            http.put(RELEASE, json={"candidate": 2, "mode": "shadow", "percent": 50})
            served.append(step_all(http, recordings, SHADOW, HALF, versions))
            http.put(RELEASE, json={"candidate": 2, "mode": "ramp", "percent": 50})
            served.append(step_all(http, recordings, HALF, ALL, versions))
            first = versions == 2
            http.put(RELEASE, json={"percent": 100})
            served.append(step_all(http, recordings, ALL, PROMOTED, versions))
            http.post(f"{RELEASE}/promote", json={"why": "better on every watch"})
            served.append(step_all(http, recordings, PROMOTED, recordings.shape[1], versions))

    expected = old.predict(recordings, batch_size=len(STREAMS), verbose=0)
    expected[first, HALF:] = continue_from(old, new, recordings[first], SHADOW)[:, HALF - SHADOW :]
    expected[~first, ALL:] = continue_from(old, new, recordings[~first], ALL)
    compare(np.concatenate(served, axis=1), expected)


def train(model: keras.Model, data: np.lib.npyio.NpzFile, *, epochs: int) -> None:
    """Train a model on varied recordings."""
    x, y = vary(data["x_train"], data["y_train"], times=2, rng=np.random.default_rng(epochs))
    model.compile(keras.optimizers.Adam(3e-3, clipnorm=1.0), "sparse_categorical_crossentropy")
    model.fit(x, np.repeat(y[:, None], x.shape[1], axis=1), batch_size=40, epochs=epochs, verbose=0)


def export(model: keras.Model, root: Path, *, version: int) -> None:
    """Export a model to the models folder of the service, as a version."""
    model.save(root / f"{version}.keras")
    target = root / "models" / "activity" / str(version) / "model.onnx"
    target.parent.mkdir(parents=True)
    stepwell.export(root / f"{version}.keras", target)


def backtest(root: Path, recordings: np.ndarray, plot: str) -> None:
    """Compare both versions on the recordings, and write a picture."""
    inputs: dict[str, Any] = {"x:motion": recordings}
    np.savez(root / "recordings.npz", **inputs)
    new, old = (f"models/activity/{version}/model.onnx" for version in (2, 1))
    arguments = ["backtest", new, "--against", old, "recordings.npz", "--plot", str(Path(plot).resolve())]
    subprocess.run([sys.executable, "-P", "-m", "stepwell", *arguments], cwd=root, check=True)


def step_all(
    http: httpx2.Client, recordings: np.ndarray, start: int, end: int, versions: np.ndarray | None = None
) -> np.ndarray:
    """Step all streams from one timestep to another, and return the predictions (stream, timestep, class).

    Where another version answers than before, `versions` is updated.
    """
    predictions = []
    for t in range(start, end):
        body = {"streams": STREAMS, "inputs": {"motion": recordings[:, t].tolist()}, "seq": [t + 1] * len(STREAMS)}
        answer = http.post("/v1/models/activity/step", json=body).json()
        predictions.append(answer["outputs"]["activity"])
        for stream, version in enumerate(answer.get("version", [])):
            if version is not None and versions is not None:
                versions[stream] = version
    if versions is not None:
        print(f"timesteps {start + 1:2d} to {end:3d}: version 2 answers {np.sum(versions == 2):3d} of the streams")
    return np.array(predictions, np.float32).transpose(1, 0, 2)


def continue_from(old: keras.Model, new: keras.Model, recordings: np.ndarray, start: int) -> np.ndarray:
    """Return the new model's predictions from a timestep on, with the states that the old model has there."""
    h, then = old.get_layer("scale")(recordings[:, :start]), new.get_layer("scale")(recordings[:, start:])
    for name in ("gru_1", "gru_2"):
        h, state = with_state(old.get_layer(name))(h)
        then, _ = with_state(new.get_layer(name))(then, initial_state=state)
    return np.asarray(new.get_layer("activity")(then))


def with_state(layer: keras.layers.GRU) -> keras.layers.GRU:
    """Return the same layer, which also returns its state."""
    copy = keras.layers.GRU.from_config({**layer.get_config(), "return_state": True})
    copy.build((None, None, layer.cell.kernel.shape[0]))
    copy.set_weights(layer.get_weights())
    return copy


if __name__ == "__main__":
    main()
