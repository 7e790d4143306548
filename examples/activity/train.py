"""Train the demo's model, which predicts the activity of a smartwatch's wearer at every timestep.

Reads `basic_motions.npz`, trains on its 40 training recordings, and prints the accuracy on the 40 held-out ones.
Writes `model.keras`, and `service/stepwell/addons/demo/recordings.npz`: the held-out recordings with this model's
whole-sequence predictions, with which the demo compares every live prediction. Takes ten seconds.

    python examples/activity/train.py
    ./stepwell export model.keras -o service/stepwell/addons/demo/models/activity.onnx
"""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

HERE = Path(__file__).parent
RECORDINGS = HERE.parents[1] / "service" / "stepwell" / "addons" / "demo" / "recordings.npz"
SEED = 7


def build(channels: int, classes: int) -> keras.Model:
    """Return a model from (batch, timestep, channel) to the class probabilities after each timestep."""
    x = keras.Input((None, channels), name="motion")
    h = keras.layers.Normalization(name="scale")(x)
    h = keras.layers.GRU(32, return_sequences=True, name="gru_1")(h)
    h = keras.layers.GRU(32, return_sequences=True, name="gru_2")(h)
    y = keras.layers.Dense(classes, activation="softmax", name="activity")(h)
    return keras.Model(x, y, name="activity")


def vary(x: np.ndarray, y: np.ndarray, *, times: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return each recording `times` times, with a random start, scale and noise.

    There are only 40 recordings; with another start, a recording is new to a recurrent model.
    """
    x, y = np.repeat(x, times, axis=0), np.repeat(y, times)
    starts = rng.integers(0, x.shape[1], len(x))
    x = np.stack([np.roll(recording, -start, axis=0) for recording, start in zip(x, starts, strict=True)])
    strength = rng.uniform(0.85, 1.15, (len(x), 1, 1))
    return (x * strength + rng.normal(0, 0.05, x.shape)).astype(np.float32), y


def accuracy_at(predictions: np.ndarray, labels: np.ndarray, timestep: int) -> float:
    """Return the share of recordings whose most probable class after `timestep` timesteps is the right one."""
    return float((predictions[:, timestep - 1].argmax(-1) == labels).mean())


def main(model_file: Path = HERE / "model.keras", recordings_file: Path = RECORDINGS) -> None:
    keras.utils.set_random_seed(SEED)
    data = np.load(HERE / "basic_motions.npz")
    x_train, y_train, x_test, y_test = (data[key] for key in ("x_train", "y_train", "x_test", "y_test"))
    timesteps, channels = x_train.shape[1:]

    model = build(channels, len(data["classes"]))
    model.get_layer("scale").adapt(x_train)
    x, y = vary(x_train, y_train, times=10, rng=np.random.default_rng(SEED))
    every_step = np.repeat(y[:, None], timesteps, axis=1)
    model.compile(keras.optimizers.Adam(3e-3, clipnorm=1.0), "sparse_categorical_crossentropy")
    print(f"training on {len(x)} sequences of {timesteps} timesteps ...")
    model.fit(x, every_step, batch_size=40, epochs=30, verbose=0)
    model.save(model_file)

    expected = model.predict(x_test, batch_size=len(x_test), verbose=0)
    np.savez_compressed(
        recordings_file,
        x=x_test, labels=y_test, expected=expected,
        channels=data["channels"], classes=data["classes"], rate_hz=data["rate_hz"],
    )  # fmt: skip

    print("\ntimesteps seen   accuracy on 40 training   on 40 held-out recordings")
    trained = model.predict(x_train, batch_size=len(x_train), verbose=0)
    for timestep in (5, 10, 20, 50, 100):
        print(
            f"{timestep:14d} {accuracy_at(trained, y_train, timestep):25.1%} "
            f"{accuracy_at(expected, y_test, timestep):26.1%}"
        )
    print(f"\nparameters {model.count_params()}; saved {model_file} and {recordings_file}")


if __name__ == "__main__":
    main()
