"""What does an IMDb-style model, Embedding + LSTM + sigmoid, give for a review that is still being written?

It was trained on whole reviews, padded with zeros to one length. As a stream it gets one token at a time, without
padding, and predicts the sentiment of the prefix so far: the same as Keras for that prefix, padded.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from live import compare, live

PRAISE = ["wonderful", "moving", "brilliant", "funny"]
BLAME = ["boring", "awful", "clumsy", "dull"]
PLAIN = ["the", "a", "it", "film", "story", "cast", "ending", "was", "and", "but", "really"]
PADDING, NOT = "", "not"
VOCABULARY = [PADDING, NOT, *PRAISE, *BLAME, *PLAIN]
REVIEWS = [
    "it was not boring and the ending was really wonderful",
    "a brilliant cast but the story was dull and awful",
]
TOKENS = 10


def build() -> keras.Model:
    """Return a model from token ids (batch, timestep) to the probability of a positive review (batch, 1)."""
    x = keras.Input((None,), dtype="int32", name="token")
    h = keras.layers.Embedding(len(VOCABULARY), 16, mask_zero=True)(x)
    h = keras.layers.LSTM(32)(h)
    y = keras.layers.Dense(1, activation="sigmoid", name="praise")(h)
    return keras.Model(x, y, name="sentiment")


def invent(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return generated reviews (at most count, TOKENS), and whether each is more positive than negative.

    "not" inverts the word after it. Reviews have at least 3 tokens and are padded with zeros.
    """
    weight = np.array([{PADDING: 0.0, NOT: 4.0}.get(word, 1.0) for word in VOCABULARY])
    reviews = rng.choice(len(VOCABULARY), (count, TOKENS), p=weight / weight.sum())
    reviews[np.arange(TOKENS) >= rng.integers(3, TOKENS + 1, (count, 1))] = VOCABULARY.index(PADDING)
    value = np.array([(word in PRAISE) - (word in BLAME) for word in VOCABULARY])
    turned = np.roll(reviews == VOCABULARY.index(NOT), 1, axis=1)
    turned[:, 0] = False
    score = np.where(turned, -value[reviews], value[reviews]).sum(axis=1)
    return reviews[score != 0], score[score != 0] > 0


def main() -> None:
    keras.utils.set_random_seed(4)
    model = build()
    reviews, praise = invent(4000, np.random.default_rng(4))
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy")
    model.fit(reviews, praise, batch_size=64, epochs=8, verbose=0)

    words = np.array([review.split() for review in REVIEWS])  # (review, token)
    tokens = np.array([[VOCABULARY.index(word) for word in review] for review in words], np.int32)
    served = np.zeros((*tokens.shape, 1), np.float32)
    with live(model) as http:
        for review, row in enumerate(tokens):
            for position, token in enumerate(row.tolist()):
                path = f"/v1/models/sentiment/streams/review-{review}/step"
                answer = http.post(path, json={"inputs": {"token": token}, "seq": position + 1}).json()
                served[review, position] = answer["outputs"]["praise"]
            print("  ".join(f"{word} {p:.2f}" for word, p in zip(words[review], served[review, :, 0], strict=True)))

    is_read = np.tri(TOKENS, dtype=bool)  # (prefix, token): the first prefix has one token
    prefixes = np.where(is_read, tokens[:, None], VOCABULARY.index(PADDING))  # (review, prefix, token)
    compare(served, model.predict(prefixes.reshape(-1, TOKENS), verbose=0).reshape(served.shape))


if __name__ == "__main__":
    main()
