"""Parity: over every transport, a stream's predictions equal those of Keras over the whole sequence."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from stepwell_export.exporter import export_source
from stepwell_export.runtime.step_model import StepModel
from tests.parity.transports import INPUT, OUTPUT, TRANSPORTS, Sequences
from tests.processes import ServiceProcess, service_process

keras = pytest.importorskip("keras", reason="Keras is not installed (the test extra brings it)")

STREAMS, STEPS, FEATURES = 5, 20, 4
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Case:
    """A served model, sequences, and the predictions of Keras for them."""

    service: ServiceProcess
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
        with service_process(models, Path(folder) / "s") as one:
            yield Case(one, models / "m.onnx", sequences, expected)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_transport_gives_the_predictions_of_the_keras_model(case: Case, transport: str) -> None:
    found = await TRANSPORTS[transport](case.service.url, "m", case.sequences)

    assert found.shape == case.expected.shape
    assert np.abs(found - case.expected).max() <= TOLERANCE


def test_the_step_model_gives_the_predictions_of_the_keras_model(case: Case) -> None:
    model = StepModel(case.file)
    found, _ = model.chunk({INPUT: case.sequences}, model.initial_states(STREAMS))

    assert np.abs(found[OUTPUT] - case.expected).max() <= TOLERANCE


async def test_transports_agree_bit_for_bit(case: Case) -> None:
    """All run the same step graph, and the results do not depend on the batch."""
    one, two = [
        await TRANSPORTS[transport](case.service.url, "m", case.sequences)
        for transport in ("HTTP, JSON", "HTTP, msgpack")
    ]

    assert np.array_equal(one, two)
