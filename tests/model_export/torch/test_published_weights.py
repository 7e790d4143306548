"""Published recurrent models equal the inference of their own packages, with the weights that those packages bring.

Nothing is installed here, and no weights are in the repository. BeatNet 1.1.3 is licensed under CC BY 4.0, the model
file in faster-whisper 1.2.1 (silero-vad 6 over whole recordings) under the MIT license.
"""

from __future__ import annotations

from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from stepwell_export import streaming
from stepwell_export.converted import verify_model
from stepwell_export.runtime.errors import RefusedModelError
from stepwell_export.runtime.step_model import StepModel
from stepwell_export.spec import StepSpec
from stepwell_export.torch import convert
from tests.model_export.torch.zoo_parts import nn, torch


def package_file(package: str, path: str, *, install: str) -> Path:
    """Return a file of an installed package, without importing it; skips the test where it is not there."""
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (file := Path(folder) / path).is_file():
            return file
    pytest.skip(f"{package}/{path} is not installed ({install})")


def beatnet(number: int) -> Any:
    """Return one of the three published beat trackers: a convolution over frequency, and two LSTM layers over time.

    The package's own module is loaded alone: the package needs releases that today's Python has not.
    """
    install = "pip install --no-deps BeatNet"
    spec = spec_from_file_location("beatnet_model", package_file("BeatNet", "model.py", install=install))
    assert spec is not None
    assert spec.loader is not None
    home = module_from_spec(spec)
    spec.loader.exec_module(home)
    module = home.BDA(272, 150, 2, "cpu")
    weights = package_file("BeatNet", f"models/model_{number}_weights.pt", install=install)
    module.load_state_dict(torch.load(weights, weights_only=True))
    return module.eval()


class TrackerStep(nn.Module):
    """The tracker with its states as inputs and outputs, which it keeps as attributes otherwise."""

    def __init__(self, tracker: Any) -> None:
        super().__init__()
        self.tracker = tracker

    def forward(self, frame: Any, h: Any, c: Any) -> tuple[Any, Any, Any]:
        self.tracker.hidden, self.tracker.cell = h.transpose(0, 1), c.transpose(0, 1)
        activations = self.tracker(frame[:, None])
        h, c = self.tracker.hidden.transpose(0, 1), self.tracker.cell.transpose(0, 1)
        return self.tracker.final_pred(activations[:, :, 0].T).T, h, c


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_published_beat_tracker_equals_its_own_inference_frame_by_frame(number: int) -> None:
    tracker, reference = beatnet(number), beatnet(number)
    zeros = torch.zeros(1, 2, 150)
    spec = StepSpec(
        TrackerStep(tracker),
        inputs={"frame": torch.rand(2, 272)},
        states={"h": zeros, "c": zeros},
        output_names=["beats"],
    )
    model = StepModel(verify_model(convert(spec, name="beats"), long_steps=100)[0])
    frames = np.random.default_rng(number).exponential(0.3, (1, 150, 272)).astype(np.float32)

    outputs, _ = model.chunk({"frame": frames}, model.initial_states(1))

    with torch.no_grad():  # as the package runs it in its mode `realtime`: a frame at a time, and its softmax behind
        want = [reference.final_pred(reference(torch.from_numpy(frames[:, t : t + 1]))[0]) for t in range(150)]
    np.testing.assert_allclose(outputs["beats"][0], np.stack(want)[..., 0], rtol=0, atol=1e-5)


def test_a_module_that_keeps_its_states_as_attributes_is_refused_with_the_form_to_write() -> None:
    spec = StepSpec(beatnet(1), inputs={"frames": torch.rand(1, 20, 272)}, time_axis=1)

    with pytest.raises(RefusedModelError, match="keeps something from call to call") as caught:
        convert(spec, name="beats")

    assert "states={" in caught.value.fix


def test_a_published_voice_detector_over_whole_recordings_becomes_a_step_graph() -> None:
    path = package_file("faster_whisper", "assets/silero_vad_v6.onnx", install="pip install --no-deps faster-whisper")
    made = streaming.convert(path, name="voice")
    model = StepModel(verify_model(made, long_steps=100)[0])
    windows = np.random.default_rng(6).normal(0, 0.1, (120, 576)).astype(np.float32)

    outputs, _ = model.chunk({"input": windows[None]}, model.initial_states(1))

    zeros = np.zeros((1, 1, 128), np.float32)  # as the package calls it
    [want, *_] = ort.InferenceSession(str(path)).run(None, {"input": windows, "h": zeros, "c": zeros})
    np.testing.assert_allclose(outputs["speech_probs"].ravel(), want.ravel(), rtol=0, atol=1e-5)
