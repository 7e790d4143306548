"""How do I classify a text that arrives one character at a time, and begin again with the next text?

An LSTM learns to distinguish English, German and Spanish by their letters. Each request has one character; every answer
is the label of the text so far, so the answer to the last character is the label of the text. Then the stream is reset,
and the next text starts from the initial state.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

SAMPLES = {
    "english": "the river runs under the old stone bridge while the children wait for their father with the bread "
    "that he brought from the market when the rain was over and everything had grown quiet again",
    "german": "der fluss zieht unter der alten steinernen brücke hindurch und die kinder warten auf ihren vater mit "
    "dem brot das er vom markt mitgebracht hat als der regen vorbei war und alles wieder still wurde",
    "spanish": "el río pasa bajo el viejo puente de piedra mientras los niños esperan a su padre con el pan que trajo "
    "del mercado cuando la lluvia se había ido y todo quedaba otra vez en silencio",
}
TEXTS = ["the water was cold and clear", "das wasser war kalt und klar", "el agua estaba fría y clara"]
LABELS = list(SAMPLES)
CHARACTERS = sorted(set("".join([*SAMPLES.values(), *TEXTS])))
WINDOW = 24


def build() -> keras.Model:
    """Return a model from character codes (batch, timestep) to one probability per language (batch, 3)."""
    x = keras.Input((None,), dtype="int32", name="character")
    h = keras.layers.Embedding(len(CHARACTERS), 16)(x)
    h = keras.layers.LSTM(64)(h)
    y = keras.layers.Dense(len(LABELS), activation="softmax", name="language")(h)
    return keras.Model(x, y, name="language")


def train(model: keras.Model) -> None:
    windows, labels = [], []
    for label, sample in enumerate(SAMPLES.values()):
        codes = encode(sample)
        for start in range(len(codes) - WINDOW + 1):
            windows.append(codes[start : start + WINDOW])
            labels.append(label)
    model.compile(keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy")
    model.fit(np.stack(windows), np.array(labels), batch_size=32, epochs=10, verbose=0)


def encode(text: str) -> list[int]:
    return [CHARACTERS.index(character) for character in text]


def main() -> None:
    keras.utils.set_random_seed(3)
    model = build()
    train(model)
    stream = "/v1/models/language/streams/reader"
    final = []
    with live(model) as http:
        for text in TEXTS:
            http.post(f"{stream}/reset")
            for code in encode(text):
                answer = http.post(f"{stream}/step", json={"inputs": {"character": code}}).json()
            probabilities = answer["outputs"]["language"]
            final.append(probabilities)
            label = LABELS[np.argmax(probabilities)]
            print(f"{text!r}: {label} ({max(probabilities):.0%}) after {answer['step']} characters")

    compare(final, np.concatenate([model.predict(np.array([encode(text)]), verbose=0) for text in TEXTS]))


if __name__ == "__main__":
    main()
