"""The committed model and recordings of the demo fit each other."""

from __future__ import annotations

import numpy as np
import pytest

from stepwell.addons.demo.recordings import MODEL, MODELS, Recordings
from stepwell_export.runtime.step_model import StepModel


@pytest.fixture(scope="module")
def recordings() -> Recordings:
    return Recordings.load()


@pytest.fixture(scope="module")
def model() -> StepModel:
    return StepModel(MODELS / f"{MODEL}.onnx")


def test_every_step_equals_the_whole_sequence_prediction_of_keras(model: StepModel, recordings: Recordings) -> None:
    states = model.initial_states(len(recordings))
    difference = 0.0
    for timestep in range(recordings.x.shape[1]):
        outputs, states = model.step({"motion": recordings.x[:, timestep]}, states)
        difference = max(difference, float(np.abs(outputs["activity"] - recordings.expected[:, timestep]).max()))

    assert difference <= 5e-6


def test_the_model_recognizes_held_out_activities(recordings: Recordings) -> None:
    assert (recordings.expected[:, -1].argmax(-1) == recordings.labels).mean() >= 0.95


def test_the_expected_predictions_are_probabilities(recordings: Recordings) -> None:
    np.testing.assert_allclose(recordings.expected.sum(-1), 1, atol=1e-5)


def test_each_class_has_equally_many_held_out_recordings(recordings: Recordings) -> None:
    assert np.bincount(recordings.labels).tolist() == [10, 10, 10, 10]


def test_the_manifest_has_the_class_names_of_the_recordings(model: StepModel, recordings: Recordings) -> None:
    assert (model.manifest.outputs[0].model_extra or {})["labels"] == list(recordings.classes)


def test_the_manifest_has_the_tolerance_of_the_export(model: StepModel) -> None:
    assert model.manifest.verified is not None
    assert model.manifest.verified.max_abs <= model.manifest.verified.atol == 1e-5
