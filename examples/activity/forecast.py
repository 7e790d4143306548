"""Train the demo's second model, which predicts the next acceleration of a smartwatch and its spread, and export it.

Reads `basic_motions.npz`, trains on its 40 training recordings, and prints the error on the 40 held-out ones. Its
feedback rule makes the next input of a prediction, so that the dashboard can show forecasts, and what really came
beside each prediction. Takes a minute.

    python examples/activity/forecast.py service/stepwell/addons/demo/models/motion.onnx
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

from stepwell import export

HERE = Path(__file__).parent
CHANNELS = 3  # the accelerometer's
RULE = {"motion": {"output": "next", "std": "spread"}}
SEED = 7


def build(recordings: np.ndarray) -> tuple[keras.Model, keras.Model]:
    """Return a model from (batch, timestep, 3) to the next row and its spread, and a model to train it with."""
    x = keras.Input((None, CHANNELS), name="motion")
    scale = keras.layers.Normalization(name="scale")
    scale.adapt(recordings)
    h = keras.layers.GRU(32, return_sequences=True, name="gru")(scale(x))
    change = keras.layers.Dense(CHANNELS, name="change")(h)
    mean = keras.layers.Add(name="next")([x, change])
    spread = keras.layers.Dense(CHANNELS, activation="softplus", name="spread")(h)
    return keras.Model(x, [mean, spread], name="motion"), keras.Model(x, keras.layers.Concatenate()([mean, spread]))


def surprise(true: keras.KerasTensor, predicted: keras.KerasTensor) -> keras.KerasTensor:
    """Return the negative log-likelihood of the true values, normal with the predicted mean and spread."""
    mean, spread = predicted[..., :CHANNELS], predicted[..., CHANNELS:] + 1e-3
    return keras.ops.log(spread) + keras.ops.square((true - mean) / spread) / 2


def main(file: Path) -> None:
    keras.utils.set_random_seed(SEED)
    data = np.load(HERE / "basic_motions.npz")
    train, held_out = data["x_train"][..., :CHANNELS], data["x_test"][..., :CHANNELS]
    model, trained = build(train)
    rng = np.random.default_rng(SEED)
    series = np.concatenate([train * strength for strength in rng.uniform(0.8, 1.2, 8)])
    rate = keras.optimizers.schedules.CosineDecay(5e-3, decay_steps=80 * len(series) // 16)
    trained.compile(keras.optimizers.Adam(rate, clipnorm=1.0), surprise)
    trained.fit(series[:, :-1], series[:, 1:], batch_size=16, epochs=80, verbose=0)

    names = data["channels"][:CHANNELS].tolist()
    labels = {"motion": names, "next": names, "spread": [f"spread of {name}" for name in names]}
    export(model, file, feedback=RULE, labels=labels)

    predicted, _ = model.predict(held_out[:, :-1], verbose=0)
    wrong, still = (np.abs(held_out[:, 1:] - other).mean() for other in (predicted, held_out[:, :-1]))
    print(f"{file}: mean error on held-out recordings {wrong:.3f}; {still:.3f} if the last value is the prediction")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
