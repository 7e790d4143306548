"""Does it matter whether a stateful model gets whole sequences, chunks of 10, or single timesteps?

No. 32 sequences of 21 timesteps are sent to the service twice, all 32 streams in each request: in chunks of 10, 10 and
1, and as single timesteps. Keras gets whole sequences. All results agree: the state that a `stateful=True` model keeps
between two batches by row, the service keeps between two requests by stream id.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

BATCH, TIMESTEPS, FEATURES = 32, 21, 16
CHUNK = 10


def build() -> keras.Model:
    """Return a model from (32, timestep, 16) to 16 probabilities after each timestep."""
    x = keras.Input(batch_shape=(BATCH, None, FEATURES), name="x")
    h = keras.layers.LSTM(32, return_sequences=True, stateful=True)(x)
    y = keras.layers.Dense(16, activation="softmax", name="y")(h)
    return keras.Model(x, y, name="chunks")


def main() -> None:
    keras.utils.set_random_seed(1)
    model = build()
    data = np.random.default_rng(1).standard_normal((BATCH, TIMESTEPS, FEATURES)).astype(np.float32)
    expected = model.predict(data, batch_size=BATCH, verbose=0)

    with live(model) as http:
        chunks, streams = [], [f"by-chunks-{row}" for row in range(BATCH)]
        for start in range(0, TIMESTEPS, CHUNK):
            chunk = data[:, start : start + CHUNK]  # (stream, timestep, feature)
            answer = http.post("/v1/models/chunks/steps", json={"streams": streams, "inputs": chunk.tolist()}).json()
            chunks.append(np.array(answer["outputs"]["y"]))  # (stream, timestep, probability)
        print(f"{len(chunks)} requests with chunks of up to {CHUNK}; all streams are at step {set(answer['step'])}")
        by_chunks = np.concatenate(chunks, axis=1)
        compare(by_chunks, expected)

        singles, streams = [], [f"by-steps-{row}" for row in range(BATCH)]
        for timestep in range(TIMESTEPS):
            row = data[:, timestep]  # (stream, feature)
            answer = http.post("/v1/models/chunks/step", json={"streams": streams, "inputs": row.tolist()}).json()
            singles.append(answer["outputs"]["y"])  # (stream, probability)
        print(f"{len(singles)} requests with single timesteps; all streams are at step {set(answer['step'])}")
        by_steps = np.stack(singles, axis=1)
        compare(by_steps, expected)

    print(f"largest difference between the two: {np.abs(by_chunks - by_steps).max():.1e}")


if __name__ == "__main__":
    main()
