"""How do I generate text character by character without sending the text so far again and again?

An LSTM(128) learns a short verse. The client sends one character, gets the probabilities of the next one, samples it at
a temperature of its choice, and sends that. The text so far is in the state of the stream; two texts at two
temperatures are two streams of one model. Afterwards Keras gets each text as a whole and must predict the same.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import httpx2
import keras
import numpy as np
from live import compare, live

VERSE = """\
the well is deep, the well is wide,
a little water stands inside.
the bucket goes down, the bucket comes back,
a step for the rope, a drop for the sack.
the rope remembers where it has been,
and what it has heard, and what it has seen.
"""
CHARACTERS = sorted(set(VERSE))
CODES = {character: code for code, character in enumerate(CHARACTERS)}
START, LENGTH = "the ", 120
WINDOW = 32


def build() -> keras.Model:
    """Return a model from character codes (batch, timestep) to the probabilities of each next character."""
    x = keras.Input((None,), dtype="int32", name="character")
    h = keras.layers.Embedding(len(CHARACTERS), 24)(x)
    h = keras.layers.LSTM(128, return_sequences=True)(h)
    y = keras.layers.Dense(len(CHARACTERS), activation="softmax", name="next")(h)
    return keras.Model(x, y, name="verse")


def train(model: keras.Model) -> None:
    codes = encode(VERSE + VERSE[: WINDOW + 1])
    windows = np.stack([codes[start : start + WINDOW + 1] for start in range(len(VERSE))])
    model.compile(keras.optimizers.Adam(1e-2), "sparse_categorical_crossentropy")
    model.fit(windows[:, :-1], windows[:, 1:], batch_size=32, epochs=12, verbose=0)


def encode(text: str) -> np.ndarray:
    return np.array([CODES[character] for character in text], np.int32)


def draw(probabilities: np.ndarray, temperature: float, rng: np.random.Generator) -> int:
    """Sample a code; the lower the temperature, the more likely the most probable one."""
    weights = np.exp((np.log(probabilities + 1e-12) - np.log(probabilities.max())) / temperature)
    return int(rng.choice(len(weights), p=weights / weights.sum()))


def generate(http: httpx2.Client, temperature: float, rng: np.random.Generator) -> tuple[str, list[list[float]]]:
    """Return a text, and the service's answers to each of its characters except the last."""
    text, answers = START, []
    for position in range(LENGTH):
        body = {"inputs": {"character": CODES[text[position]]}, "seq": position + 1}
        answer = http.post(f"/v1/models/verse/streams/temperature-{temperature}/step", json=body).json()
        answers.append(answer["outputs"]["next"])
        if position + 1 == len(text):
            text += CHARACTERS[draw(np.array(answers[-1]), temperature, rng)]
    return text, answers


def main() -> None:
    keras.utils.set_random_seed(2)
    model = build()
    train(model)
    with live(model) as http:
        for temperature in (0.2, 1.5):
            text, answers = generate(http, temperature, np.random.default_rng(2))
            print(f"temperature {temperature}:\n{text}\n")
            compare(answers, model.predict(encode(text[:-1])[None], verbose=0)[0])


if __name__ == "__main__":
    main()
