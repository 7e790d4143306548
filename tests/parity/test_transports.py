"""Parity: whichever door a stream comes by, its predictions are Keras' own over the whole sequence."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from model_export.export import export_source
from model_export.step_model import StepModel
from tests.parity.doors import DOORS, INPUT, OUTPUT, Sequences
from tests.processes import Service, service

keras = pytest.importorskip("keras", reason="Keras is not installed (the test extra brings it)")

STREAMS, STEPS, FEATURES = 5, 20, 4
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A served model, sequences, and what Keras says of them."""

    service: Service
    file: Path
    sequences: Sequences
    expected: Sequences


@pytest.fixture(scope="module")
def case() -> Iterator[Case]:
    keras.utils.set_random_seed(5)
    x = keras.Input((None, FEATURES), name=INPUT)
    h = keras.layers.GRU(12, return_sequences=True)(keras.layers.LSTM(16, return_sequences=True)(x))
    model = keras.Model(x, keras.layers.Dense(3, activation="softmax", name=OUTPUT)(h))
    sequences = np.random.default_rng(5).normal(size=(STREAMS, STEPS, FEATURES)).astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="sw") as folder:
        models = Path(folder) / "models"
        models.mkdir()
        model.save(Path(folder) / "m.keras")
        export_source(str(Path(folder) / "m.keras"), models / "m.onnx")
        expected = np.asarray(model.predict(sequences, verbose=0))
        with service(models, Path(folder) / "s") as one:
            yield Case(one, models / "m.onnx", sequences, expected)


@pytest.mark.parametrize("door", DOORS)
async def test_every_door_gives_the_original_models_predictions(case: Case, door: str) -> None:
    found = await DOORS[door](case.service.url, "m", case.sequences)

    assert found.shape == case.expected.shape
    assert np.abs(found - case.expected).max() <= TOLERANCE


def test_python_gives_the_original_models_predictions(case: Case) -> None:
    model = StepModel(case.file)
    found, _ = model.chunk({INPUT: case.sequences}, model.initial_states(STREAMS))

    assert np.abs(found[OUTPUT] - case.expected).max() <= TOLERANCE


async def test_the_doors_agree_to_the_last_bit(case: Case) -> None:
    """The same step graph runs behind each of them, and batches do not show in the numbers."""
    one, two = [await DOORS[door](case.service.url, "m", case.sequences) for door in ("HTTP, JSON", "HTTP, msgpack")]

    assert np.array_equal(one, two)
