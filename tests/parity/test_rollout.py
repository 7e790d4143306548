"""Parity: a rollout equals the feedback loop on the original Keras model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stepwell.addons.rollouts.sampling import sample_indices, uniforms
from stepwell_export.exporter import export_source
from stepwell_export.runtime.feedback import Draw
from tests.api.running import Service, running_service
from tests.servers import Server

keras = pytest.importorskip("keras", reason="Keras is not installed")

LETTERS = 12


def series() -> Any:
    """A model that predicts the next pair of numbers from the current one."""
    x = keras.Input((None, 2), name="now")
    h = keras.layers.GRU(16, return_sequences=True)(x)
    h = keras.layers.LSTM(8, return_sequences=True)(h)
    return keras.Model(x, keras.layers.Dense(2, name="next")(h))


def text() -> Any:
    """A model that predicts the probabilities of the next letter from the current one."""
    x = keras.Input((None,), dtype="int32", name="letter")
    h = keras.layers.Embedding(LETTERS, 8)(x)
    h = keras.layers.LSTM(24, return_sequences=True)(h)
    return keras.Model(x, keras.layers.Dense(LETTERS, activation="softmax", name="next")(h))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The Keras models, and the folder of their step graphs."""
    keras.utils.set_random_seed(3)
    folder = tmp_path_factory.mktemp("models")
    made = {"series": series(), "text": text()}
    for name, rule in (("series", {"now": "next"}), ("text", {"letter": "next"})):
        made[name].set_weights([2 * weight for weight in made[name].get_weights()])  # so that the predictions vary
        export_source(made[name], folder / f"{name}.onnx", feedback=rule)
    return made, folder


@pytest.fixture(scope="module")
def served(originals: tuple[dict[str, Any], Path], shared_redis: Server) -> Iterator[Service]:
    with running_service(shared_redis.url, originals[1]) as one:
        yield one


class KerasLoop:
    """A growing sequence that Keras evaluates as a whole, padded to one length so that it is compiled once."""

    def __init__(self, model: Any, past: Any, room: int) -> None:
        self._model = model
        self._length = len(past)
        self._whole = np.zeros((1, len(past) + room, *np.shape(past)[1:]), past.dtype)
        self._whole[0, : len(past)] = past

    def predict(self) -> np.ndarray[Any, Any]:
        """Return the prediction of the last timestep so far; later timesteps do not affect it."""
        found: np.ndarray[Any, Any] = self._model.predict_on_batch(self._whole)[0, self._length - 1]
        return found

    def grow(self, x: Any) -> None:
        self._whole[0, self._length] = x
        self._length += 1


@pytest.mark.slow
def test_numbers_fed_back_equal_those_of_the_keras_loop(
    originals: tuple[dict[str, Any], Path], served: Service, stream: str
) -> None:
    past = np.random.default_rng(5).normal(size=(10, 2)).astype(np.float32)
    served.http.post(served.path("series", stream, "steps"), json={"inputs": past.tolist(), "return": "last"})
    found = served.http.post(served.path("series", stream, "rollout"), json={"horizon": 50}).json()

    loop, by_hand = KerasLoop(originals[0]["series"], past, 50), []
    for _ in range(50):
        loop.grow(loop.predict())
        by_hand.append(loop.predict())
    np.testing.assert_allclose(found["outputs"]["next"], by_hand, atol=1e-5, rtol=0)
    assert np.ptp(by_hand, axis=0).min() > 0.01, "the predictions do not vary"


@pytest.mark.parametrize("how", [Draw(), Draw(0.7, top_k=4), Draw(1.3, top_p=0.8)], ids=["plain", "top_k", "top_p"])
def test_sampled_letters_equal_those_of_the_keras_loop(
    originals: tuple[dict[str, Any], Path], served: Service, stream: str, how: Draw
) -> None:
    horizon, seed = 100, 23
    given = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    body = {"horizon": horizon, "inputs": 1, "seed": seed, **{n: v for n, v in given.items() if v is not None}}
    found = served.http.post(served.path("text", stream, "rollout"), json=body).json()

    numbers, by_hand = uniforms(seed, 0, 0, horizon + 1), []
    loop = KerasLoop(originals[0]["text"], np.array([1], np.int32), horizon)
    for t in range(1, horizon + 1):
        by_hand.append(int(sample_indices(loop.predict()[None], numbers[t : t + 1], how)[0]))
        loop.grow(by_hand[-1])
    assert found["next"]["letter"] == by_hand
    assert len(set(by_hand)) > 3
